"""What an organization remembers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlmodel import Field

from foundry_ray.core import keys, topics
from foundry_ray.runtime.issues import IssueBook
from foundry_ray.runtime.tables import RtIssue
from foundry_ray.store.columns import StateRow, json_field
from foundry_ray.store.engine import Transaction


class Organization(StateRow, table=True):
    """One organization: a GitHub organization or a personal account (S22)."""

    __tablename__ = "organization"

    id: str
    login: str
    kind: str
    display_name: str = ""
    avatar_url: str = ""
    settings: dict[str, Any] = json_field(default=dict)


class OrganizationRepository(StateRow, table=True):
    """The index row of a repository (S12)."""

    __tablename__ = "organization_repository"

    repository_id: str = Field(primary_key=True)
    full_name: str


class OrganizationTask(StateRow, table=True):
    """The index row of a task and of its sandbox (S12)."""

    __tablename__ = "organization_task"

    task_id: str = Field(primary_key=True, index=True)
    repository_id: str
    title: str
    sandbox_key: str


@dataclass
class OrganizationState:
    """An organization, its indexes, its runtime issues."""

    key: str
    row: Organization | None
    repositories: dict[str, OrganizationRepository]
    tasks: dict[str, OrganizationTask]
    issues: IssueBook

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> OrganizationState:
        """Read the state of one organization."""
        rows = await transaction.owned(Organization, key)
        repositories = await transaction.owned(OrganizationRepository, key)
        tasks = await transaction.owned(OrganizationTask, key)
        return cls(
            key,
            rows[0] if rows else None,
            {row.repository_id: row for row in repositories},
            {row.task_id: row for row in tasks},
            await IssueBook.load(transaction, key, topics.organization(key)),
        )

    def title_of(self, entity: str) -> dict[str, str]:
        """Return what people call an entity: its task if it has one (N8)."""
        parts = entity.split("/")
        task = None
        if "task" in parts:
            task = self.tasks.get(parts[parts.index("task") + 1])
        elif "sandbox" in parts:
            task = next((t for t in self.tasks.values() if t.sandbox_key == entity), None)
        if task is not None:
            return {"kind": "task", "id": task.task_id, "title": task.title}
        if "repo" in parts and (known := self.repositories.get(parts[3])):
            return {"kind": "repository", "id": known.repository_id, "title": known.full_name}
        return {"kind": keys.kind_of(entity), "id": entity, "title": entity}

    def places_of(self, issue: RtIssue) -> list[tuple[str, str | None]]:
        """Return whom an issue affects in repositories: ids of repository and task."""
        places: dict[tuple[str, str | None], None] = {}
        for who in issue.affected.values():
            if who["kind"] == "task" and (task := self.tasks.get(who["id"])):
                places[(task.repository_id, task.task_id)] = None
            elif who["kind"] == "repository":
                places[(who["id"], None)] = None
        return list(places)
