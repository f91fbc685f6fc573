"""What a task remembers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from foundry_ray.actors.task.messages import (
    OperationView,
    ProvisioningView,
    PullRequestView,
    SandboxView,
    TaskSummary,
    TaskView,
)
from foundry_ray.core import keys
from foundry_ray.store.columns import StateRow, instant, json_field
from foundry_ray.store.engine import Transaction


class Task(StateRow, table=True):
    """One task, one branch (S14).

    Attributes:
        life: ``live``, ``archiving``, ``archived``, ``killing`` or ``killed``.
        sessions: Summary of each session, by id.
        publish_wanted: What to publish once the push that runs has succeeded.
    """

    __tablename__ = "task"

    prompt: str
    title: str
    branch: str
    base_branch: str
    agent: str
    model: str | None = None
    life: str = "live"
    status: str = "provisioning"
    provisioning: dict[str, Any] = json_field()
    sandbox_key: str
    active_session_id: str
    owner: dict[str, Any] = json_field()
    pull_request: dict[str, Any] | None = json_field(nullable=True)
    diff: dict[str, Any] = json_field(default=dict)
    has_unpushed: bool = False
    sessions: dict[str, Any] = json_field(default=dict)
    operations: dict[str, Any] = json_field(default=dict)
    publish_wanted: dict[str, Any] | None = json_field(nullable=True)

    def summary(self) -> TaskSummary:
        """Return the task as lists show it."""
        return TaskSummary(
            id=keys.last_id(self.actor_key),
            repository_id=keys.repository_id(self.actor_key),
            title=self.title,
            branch=self.branch,
            status=self.status,
            pull_request=PullRequestView.model_validate(self.pull_request)
            if self.pull_request
            else None,
            diff=self.diff,
            active_session_id=self.active_session_id,
            owner={k: self.owner.get(k, "") for k in ("id", "login")},
            created_at=self.created_at,
            updated_at=self.updated_at,
            revision=self.revision,
        )

    def view(self, sandboxes: list[TaskSandbox]) -> TaskView:
        """Return the task whole."""
        return TaskView(
            **dict(self.summary()),
            prompt=self.prompt,
            base_branch=self.base_branch,
            provisioning=ProvisioningView.model_validate(self.provisioning),
            sandboxes=[sandbox.view() for sandbox in sandboxes],
            sessions=list(self.sessions.values()),
            has_unpushed=self.has_unpushed,
            operations={
                name: OperationView.model_validate(said) for name, said in self.operations.items()
            },
        )


class TaskSandbox(StateRow, table=True):
    """A sandbox that the task has or had; one is active (S15)."""

    __tablename__ = "task_sandbox"

    id: str = Field(primary_key=True)
    provider: str
    state: str = "creating"
    active: bool = True

    def view(self) -> SandboxView:
        """Return the sandbox as the task shows it."""
        return SandboxView(
            id=self.id,
            provider=self.provider,
            state=self.state,
            active=self.active,
            created_at=self.created_at,
        )


class TaskChanges(StateRow, table=True):
    """The last snapshot of the branch against its merge base."""

    __tablename__ = "task_changes"

    base: str
    head: str
    files: list[dict[str, Any]] = json_field()
    as_of: datetime = instant()


class TaskPatch(SQLModel, table=True):
    """The patch of one changed file in the last snapshot."""

    __tablename__ = "task_patch"

    actor_key: str = Field(primary_key=True)
    path: str = Field(primary_key=True)
    patch: str


@dataclass
class TaskState:
    """A task, its sandboxes, and which patches its snapshot has."""

    key: str
    row: Task | None
    sandboxes: list[TaskSandbox]
    changes: TaskChanges | None
    patched: set[str]

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> TaskState:
        """Read the state of one task; patches stay where they are."""
        rows = await transaction.owned(Task, key)
        changes = await transaction.owned(TaskChanges, key)
        paths = await transaction.fetch("SELECT path FROM task_patch WHERE actor_key = %s", (key,))
        return cls(
            key,
            rows[0] if rows else None,
            await transaction.owned(TaskSandbox, key, "ORDER BY id"),
            changes[0] if changes else None,
            {row["path"] for row in paths},
        )
