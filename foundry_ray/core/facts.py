"""Values that several entities tell one another."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from foundry_ray.core.errors import FoundryError
from foundry_ray.core.messages import Value

AccountKind = Literal["organization", "personal"]
Phase = Literal[
    "queued",
    "creating_sandbox",
    "starting_agent_server",
    "waiting_preview",
    "waiting_health",
    "cloning",
    "checking_out",
    "starting_session",
    "ready",
]
PHASES: tuple[Phase, ...] = Phase.__args__  # type: ignore[attr-defined]
PhaseState = Literal["pending", "running", "done", "failed"]


class AccountFacts(Value):
    """A GitHub organization or personal account."""

    id: str
    login: str
    kind: AccountKind
    name: str = ""
    avatar_url: str = ""
    role: Literal["admin", "member"] = "member"


class ConnectedAccount(Value):
    """An account the user may see, and the App's installation on it."""

    account: AccountFacts
    installation_id: str | None = None
    suspended: bool = False


class RepositoryFacts(Value):
    """A repository as GitHub describes it."""

    id: str
    full_name: str
    name: str
    default_branch: str
    private: bool
    archived: bool
    clone_url: str
    html_url: str


class RefFacts(Value):
    """A branch on the remote; ``sha`` empty means that it is gone."""

    name: str
    sha: str


class PullRequestFacts(Value):
    """A pull request as GitHub last described it."""

    number: int
    repository_id: str
    head_repository_id: str | None
    head_ref: str
    head_sha: str
    base_ref: str
    title: str
    body: str = ""
    state: Literal["open", "draft", "merged", "closed"]
    url: str
    author_login: str
    updated_at: datetime
    merged_at: datetime | None = None
    merge_commit_sha: str | None = None


class Trouble(Value):
    """An error on its way to people: what happened, and what they can do."""

    code: str
    message: str
    retryable: bool = False
    hint: str = ""
    log_tail: str = ""

    @classmethod
    def of(cls, error: FoundryError) -> Trouble:
        """Return the error as a value."""
        said = error.context
        return cls(
            code=error.code,
            message=error.message,
            retryable=error.retryable,
            hint=error.hint,
            log_tail=str(said.get("log_tail") or said.get("stderr") or "")[-4000:],
        )


class FileChange(Value):
    """One changed file of a branch against its merge base."""

    path: str
    old_path: str | None = None
    status: Literal["added", "modified", "deleted", "renamed"]
    added: int
    removed: int
    binary: bool


class Changes(Value):
    """A branch against its merge base: committed and not, new files included."""

    base: str
    head: str
    files: list[FileChange]
    unpushed: bool = False

    def totals(self) -> dict[str, int]:
        """Return the sums that a list shows."""
        return {
            "added": sum(f.added for f in self.files),
            "removed": sum(f.removed for f in self.files),
            "files": len(self.files),
        }


class TranscriptEvent(Value):
    """One entry of a session's transcript; ``payload`` is the ACP envelope."""

    index: int
    id: str
    at: datetime
    sender: Literal["client", "agent"]
    author: dict[str, Any] | None = None
    payload: dict[str, Any]
