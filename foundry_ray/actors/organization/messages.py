"""What others may say to an organization."""

from __future__ import annotations

from typing import Literal

from foundry_ray.core.facts import AccountFacts
from foundry_ray.core.messages import Command, Event, Person


class ConnectOrganization(Command):
    """The account is known to Foundry, with or without an installation of the App."""

    kind: Literal["organization.connect"] = "organization.connect"
    account: AccountFacts
    installation_id: str | None = None
    suspended: bool = False


class RepositoryIndexed(Event):
    """A repository is there, or was renamed; ``full_name`` empty means that it is gone."""

    kind: Literal["organization.repository_indexed"] = "organization.repository_indexed"
    repository_id: str
    full_name: str


class TaskIndexed(Event):
    """A task exists, and lives in a sandbox."""

    kind: Literal["organization.task_indexed"] = "organization.task_indexed"
    task_id: str
    repository_id: str
    title: str
    sandbox_key: str


class ClearIssues(Command):
    """Clear one runtime issue, or all (S30)."""

    kind: Literal["organization.clear_issues"] = "organization.clear_issues"
    by: Person
    issue_id: str | None = None
