"""What a repository remembers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlmodel import Field

from foundry_ray.core.facts import RepositoryFacts
from foundry_ray.store.columns import StateRow, json_field
from foundry_ray.store.engine import Transaction


class Repository(StateRow, table=True):
    """One repository, as GitHub describes it."""

    __tablename__ = "repository"

    id: str
    full_name: str
    name: str
    default_branch: str
    private: bool
    archived: bool
    clone_url: str
    html_url: str
    gone: bool = False

    def describe(self, facts: RepositoryFacts) -> None:
        """Take over what GitHub says."""
        for name, value in facts.model_dump().items():
            setattr(self, name, value)
        self.gone = False


class RepositoryRef(StateRow, table=True):
    """A branch on the remote."""

    __tablename__ = "repository_ref"

    name: str = Field(primary_key=True)
    sha: str


class RepositoryTask(StateRow, table=True):
    """The index row of a task; it answers reads until the task's own first turn.

    Attributes:
        branch: The reserved branch; None once it was given back.
        view: What the 201 answered.
        summary: The task's newest summary.
    """

    __tablename__ = "repository_task"

    id: str = Field(primary_key=True)
    branch: str | None = None
    status: str
    view: dict[str, Any] = json_field()
    summary: dict[str, Any] = json_field()


@dataclass
class RepositoryState:
    """A repository, its branches, its tasks."""

    key: str
    row: Repository | None
    refs: dict[str, RepositoryRef]
    tasks: dict[str, RepositoryTask]

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> RepositoryState:
        """Read the state of one repository."""
        rows = await transaction.owned(Repository, key)
        return cls(
            key,
            rows[0] if rows else None,
            {ref.name: ref for ref in await transaction.owned(RepositoryRef, key)},
            {task.id: task for task in await transaction.owned(RepositoryTask, key)},
        )

    def holder_of(self, branch: str) -> RepositoryTask | None:
        """Return the task that has the branch reserved."""
        for task in self.tasks.values():
            if task.branch == branch:
                return task
        return None
