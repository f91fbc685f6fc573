"""What comes out, for OpenAPI and for the tests that hold the answers to it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from foundry_ray.actors.task.messages import (
    OperationView,
    ProvisioningView,
    PullRequestView,
    SandboxView,
)
from foundry_ray.core.facts import FileChange, TranscriptEvent, Trouble

T = TypeVar("T")


class Shown(BaseModel):
    """Something that clients see."""

    model_config = ConfigDict(extra="forbid")


class Items(Shown, Generic[T]):
    """A whole list."""

    items: list[T]


class Page(Items[T], Generic[T]):
    """A page of a list; ``next_cursor`` is None on the last one."""

    next_cursor: str | None


class Health(Shown):
    """The process is up."""

    status: Literal["ok"]


class Readiness(Shown):
    """Whether Foundry can work; each check says ``ok`` or what is wrong."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]


class AuthStatus(Shown):
    """Whether somebody is signed in."""

    status: Literal["signed_in", "signed_out"]


class AppUser(Shown):
    """Who is signed in."""

    id: str
    login: str
    name: str
    avatar_url: str
    email: str


class AppOrganizationGitHub(Shown):
    """GitHub at a glance."""

    installation_status: str
    sync_status: str
    install_url: str


class RuntimeBadge(Shown):
    """How an organization's actors are."""

    status: Literal["healthy", "error"]
    error_count: int


class AppOrganization(Shown):
    """An organization of the person who is signed in."""

    id: str
    login: str
    kind: Literal["organization", "personal"]
    role: str
    avatar_url: str
    github: AppOrganizationGitHub
    runtime: RuntimeBadge


class App(Shown):
    """The application for whoever asks."""

    auth: AuthStatus
    user: AppUser | None = None
    organizations: list[AppOrganization]
    active_organization_id: str | None


class Token(Shown):
    """An API token, without its secret."""

    id: str
    name: str
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    revision: int


class NewToken(Shown):
    """An API token with its secret, which is shown only here."""

    id: str
    token: str


class SyncProgress(Shown):
    """How far a sync is."""

    done: int
    total: int
    label: str


class GitHubPart(Shown):
    """An organization's installation and sync."""

    connected_account: str | None
    installation_status: Literal["connected", "install_required", "reconnect_required", "suspended"]
    sync_status: Literal["pending", "syncing", "synced", "error"]
    sync_progress: SyncProgress
    sync_error: Trouble | None
    last_sync_at: datetime | None
    last_webhook_at: datetime | None
    last_webhook_event: str | None
    install_url: str


class Runtime(RuntimeBadge):
    """How an organization's actors are, and since when."""

    last_error_at: datetime | None


class Counts(Shown):
    """How much there is."""

    repositories: int
    tasks: int
    tasks_by_status: dict[str, int]
    open_pull_requests: int


class RepositorySummary(Shown):
    """A repository as lists show it."""

    id: str
    full_name: str
    default_branch: str
    private: bool
    archived: bool
    html_url: str
    task_count: int
    open_pull_request_count: int
    last_activity_at: datetime
    revision: int
    updated_at: datetime


class TaskSummary(Shown):
    """A task as lists show it."""

    id: str
    repository_id: str
    title: str
    branch: str
    status: str
    pull_request: PullRequestView | None
    diff: dict[str, int]
    active_session_id: str
    owner: dict[str, str]
    created_at: datetime
    updated_at: datetime
    revision: int


class PullRequestSummary(Shown):
    """A pull request as lists show it; ``as_of`` is GitHub's own time of this state."""

    id: str
    number: int
    repository_id: str
    title: str
    state: Literal["open", "draft", "merged", "closed"]
    url: str
    head_ref: str
    head_sha: str
    base_ref: str
    author_login: str
    merged_at: datetime | None
    updated_at: datetime
    as_of: datetime
    revision: int


class Organization(Shown):
    """An organization with everything that its pages begin with."""

    id: str
    login: str
    kind: Literal["organization", "personal"]
    display_name: str
    avatar_url: str
    settings: dict[str, Any]
    github: GitHubPart
    runtime: Runtime
    counts: Counts
    repositories: list[RepositorySummary]
    tasks: list[TaskSummary]
    pull_requests: list[PullRequestSummary]
    revision: int
    updated_at: datetime


class Affected(Shown):
    """What an incident affects."""

    kind: str
    id: str
    title: str


class RuntimeIssue(Shown):
    """One incident (S28)."""

    id: str
    code: str
    message: str
    entity: str
    workflow: str
    step: str
    attempt: int
    will_retry: bool
    count: int
    affected: list[Affected]
    first_seen_at: datetime
    last_seen_at: datetime
    resolved_at: datetime | None
    hint: str
    revision: int
    updated_at: datetime


class Cleared(Shown):
    """How many runtime issues were cleared."""

    cleared: int


class HistoryItem(Shown):
    """Something that happened."""

    id: str
    at: datetime
    actor: dict[str, str]
    kind: str
    repository_id: str
    task_id: str | None
    summary: str
    data: dict[str, Any]


class BranchPullRequest(Shown):
    """The pull request of a branch."""

    number: int
    url: str
    state: str


class Branch(Shown):
    """A branch on the remote (``sha``), reserved by a task (``task_id``), or both."""

    name: str
    sha: str | None
    task_id: str | None = None
    pull_request: BranchPullRequest | None = None
    revision: int
    updated_at: datetime | None


class QueuedMessage(Shown):
    """A message that waits for the agent."""

    id: str
    text: str
    author: dict[str, Any]
    created_at: datetime


class SessionSummary(Shown):
    """A session as lists show it."""

    id: str
    title: str
    agent: str
    model: str | None
    mode: str | None
    status: Literal["pending", "starting", "idle", "running", "needs_you", "error", "closed"]
    error: Trouble | None
    thinking_since: datetime | None
    queued: list[QueuedMessage]
    created_at: datetime
    updated_at: datetime
    revision: int


class Task(TaskSummary):
    """A task whole."""

    prompt: str
    base_branch: str
    provisioning: ProvisioningView
    sandboxes: list[SandboxView]
    sessions: list[SessionSummary]
    has_unpushed: bool
    operations: dict[str, OperationView]


class Changes(Shown):
    """A branch against its merge base; ``as_of`` is None before the first snapshot."""

    base: str
    head: str
    files: list[FileChange]
    as_of: datetime | None
    revision: int = 0
    updated_at: datetime | None = None


class Diff(Shown):
    """The differences in one file, as git writes them."""

    path: str
    patch: str
    as_of: datetime


class PermissionRequest(Shown):
    """A question of the agent: may it do this?"""

    id: str
    tool_call: dict[str, Any] | None
    options: list[dict[str, Any]]
    state: Literal["open", "answered", "closed"]
    option_id: str | None
    answered_by: dict[str, Any] | None
    created_at: datetime
    revision: int
    updated_at: datetime


class Session(SessionSummary):
    """A session whole; ``last_index`` is the index of the transcript's last event."""

    permission_requests: list[PermissionRequest]
    models: dict[str, Any] | None
    modes: dict[str, Any] | None
    last_index: int


class Sent(Shown):
    """A message was taken."""

    message_id: str
    state: Literal["sent", "queued"]


class Transcript(Items[TranscriptEvent]):
    """A part of a transcript; go on after ``next_after``."""

    next_after: int


class CommandState(Shown):
    """What has come of a command.

    ``status`` and ``answer`` are what its route would have answered; of a refused command
    the answer is a problem.
    """

    command_id: str
    state: Literal["pending", "done", "refused"]
    created_at: datetime
    status: int | None = None
    answer: Any = None


class Delivered(Shown):
    """What became of a webhook: it is durable now, it was before, or it was a ping."""

    status: Literal["accepted", "known", "pong"]
