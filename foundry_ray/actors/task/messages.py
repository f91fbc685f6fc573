"""What others may say to a task."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from foundry_ray.core.facts import (
    PHASES,
    Changes,
    Phase,
    PhaseState,
    PullRequestFacts,
    Trouble,
)
from foundry_ray.core.messages import Command, Event, Lane, Person, Value


class StartTask(Command):
    """Begin a task whose branch is reserved; before any kill of it."""

    lane = Lane.CONTROL
    kind: Literal["task.start"] = "task.start"
    prompt: str
    title: str
    branch: str
    base_branch: str
    on_branch: str | None
    agent: str
    model: str | None
    sandbox_key: str
    session_id: str
    owner: Person


class PhaseChanged(Event):
    """Provisioning came to a phase, or moved within it (S37)."""

    kind: Literal["task.phase_changed"] = "task.phase_changed"
    phase: Phase
    state: PhaseState
    attempt: int = 1
    detail: str = ""
    error: Trouble | None = None


class SessionChanged(Event):
    """A session's summary."""

    kind: Literal["task.session_changed"] = "task.session_changed"
    session_id: str
    status: str
    summary: dict[str, Any]


class CreateSession(Command):
    """Begin another agent session on the task's branch; it becomes the active one (S15)."""

    kind: Literal["task.create_session"] = "task.create_session"
    agent: str | None = None
    model: str | None = None
    title: str | None = None
    by: Person


class ChangesTaken(Event):
    """The branch against its merge base, as the sandbox has it now."""

    kind: Literal["task.changes_taken"] = "task.changes_taken"
    changes: Changes
    patches: dict[str, str]
    origin: Literal["turn", "push"] = "turn"


class Push(Command):
    """Push the branch to GitHub."""

    kind: Literal["task.push"] = "task.push"
    by: Person


class Pushed(Event):
    """The remote has the branch at ``sha``."""

    kind: Literal["task.pushed"] = "task.pushed"
    sha: str
    by: Person


class PushFailed(Event):
    """The branch could not be pushed."""

    kind: Literal["task.push_failed"] = "task.push_failed"
    error: Trouble


class Publish(Command):
    """Create or update the branch's pull request; pushes first if there is something to push."""

    kind: Literal["task.publish"] = "task.publish"
    title: str | None = None
    body: str | None = None
    draft: bool | None = None
    base: str | None = None
    by: Person


class PublishFailed(Event):
    """The pull request could not be published."""

    kind: Literal["task.publish_failed"] = "task.publish_failed"
    error: Trouble


class TaskPullRequestChanged(Event):
    """The branch's pull request, as GitHub describes it now."""

    kind: Literal["task.pull_request_changed"] = "task.pull_request_changed"
    pull_request: PullRequestFacts


class Archive(Command):
    """Stop the work and keep everything."""

    kind: Literal["task.archive"] = "task.archive"
    by: Person


class Kill(Command):
    """Destroy the sandbox and give the branch back."""

    lane = Lane.CONTROL
    kind: Literal["task.kill"] = "task.kill"
    by: Person


class SandboxEnded(Event):
    """The sandbox was stopped, or deleted."""

    kind: Literal["task.sandbox_ended"] = "task.sandbox_ended"
    state: Literal["stopped", "deleted"]


class RetryTask(Command):
    """Resume a failed provisioning at the failed step, perhaps with another branch name."""

    kind: Literal["task.retry"] = "task.retry"
    branch: str | None = None
    by: Person


class BranchReserved(Event):
    """The repository reserved another branch name for the task, or refused."""

    kind: Literal["task.branch_reserved"] = "task.branch_reserved"
    branch: str
    error: Trouble | None = None


# -- how a task looks from outside (docs/reference/api.md) ---------------------------


class PhaseView(Value):
    """One phase of provisioning."""

    name: Phase
    state: PhaseState = "pending"
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempt: int = 0
    detail: str = ""


class ProvisioningView(Value):
    """Where provisioning is, and what went wrong (S37)."""

    phase: Phase = "queued"
    phases: list[PhaseView]
    error: Trouble | None = None


class PullRequestView(Value):
    """The branch's pull request."""

    number: int
    url: str
    state: Literal["open", "draft", "merged", "closed"]
    title: str = ""
    head_sha: str = ""
    as_of: datetime


class SandboxView(Value):
    """One sandbox of a task."""

    id: str
    provider: str
    state: str
    active: bool
    created_at: datetime


class OperationView(Value):
    """Outside work that a person asked for."""

    state: Literal["running", "done", "failed"]
    at: datetime
    error: Trouble | None = None
    sha: str | None = None


class TaskSummary(Value):
    """A task as lists show it."""

    id: str
    repository_id: str
    title: str
    branch: str
    status: str
    pull_request: PullRequestView | None = None
    diff: dict[str, int]
    active_session_id: str
    owner: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    revision: int


class TaskView(TaskSummary):
    """A task whole, but for its sessions, which have rows of their own."""

    prompt: str
    base_branch: str
    provisioning: ProvisioningView
    sandboxes: list[SandboxView]
    sessions: list[dict[str, Any]]
    has_unpushed: bool
    operations: dict[str, OperationView]


def queued_phases(now: datetime) -> list[PhaseView]:
    """Return the phases of a task that was accepted now."""
    return [
        PhaseView(name=name, state="running", started_at=now, attempt=1)
        if name == "queued"
        else PhaseView(name=name)
        for name in PHASES
    ]


def pending_session(
    session_id: str, title: str, agent: str, model: str | None, now: datetime
) -> dict[str, Any]:
    """Return the summary of a session as it is until its own first turn."""
    return {
        "id": session_id,
        "title": title,
        "agent": agent,
        "model": model,
        "mode": None,
        "status": "pending",
        "error": None,
        "thinking_since": None,
        "queued": [],
        "created_at": now.isoformat(),
        "updated_at": now.isoformat(),
        "revision": 0,
    }
