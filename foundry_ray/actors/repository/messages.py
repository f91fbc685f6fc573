"""What others may say to a repository."""

from __future__ import annotations

from typing import Any, Literal

from foundry_ray.core.facts import PullRequestFacts, RefFacts, RepositoryFacts
from foundry_ray.core.messages import Command, Event, Person


class RepositoryDescribed(Event):
    """GitHub describes the repository; None means that it is gone or out of reach."""

    kind: Literal["repository.described"] = "repository.described"
    facts: RepositoryFacts | None


class RefsChanged(Event):
    """Branches on the remote; with ``whole``, all of them: others are gone."""

    kind: Literal["repository.refs_changed"] = "repository.refs_changed"
    refs: list[RefFacts]
    whole: bool = False
    guid: str | None = None
    by: Person | None = None


class PullRequestChanged(Event):
    """A pull request of the repository, as GitHub describes it now."""

    kind: Literal["repository.pull_request_changed"] = "repository.pull_request_changed"
    pull_request: PullRequestFacts
    action: str = ""
    guid: str | None = None
    by: Person | None = None


class CreateTask(Command):
    """Make a task: one branch, one sandbox, one session, at once (S26)."""

    kind: Literal["repository.create_task"] = "repository.create_task"
    prompt: str
    title: str | None = None
    branch: str | None = None
    on_branch: str | None = None
    agent: str
    model: str | None = None
    provider: str
    by: Person


class TaskChanged(Event):
    """A task's summary, for the repository's index."""

    kind: Literal["repository.task_changed"] = "repository.task_changed"
    task_id: str
    status: str
    summary: dict[str, Any]


class ReserveBranch(Command):
    """A task asks for another branch name; answered to the task."""

    kind: Literal["repository.reserve_branch"] = "repository.reserve_branch"
    task_id: str
    branch: str


class ReleaseBranch(Event):
    """A task gives its branch back."""

    kind: Literal["repository.release_branch"] = "repository.release_branch"
    task_id: str
