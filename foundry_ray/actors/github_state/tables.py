"""What is known of one organization's GitHub."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from foundry_ray.core.facts import AccountFacts, PullRequestFacts, RepositoryFacts
from foundry_ray.store.columns import StateRow, instant, json_field
from foundry_ray.store.engine import Transaction


class GitHubState(StateRow, table=True):
    """The installation and how far the mirror is.

    Attributes:
        installation_status: ``connected``, ``install_required``, ``reconnect_required`` or
            ``suspended``.
        sync_status: ``pending``, ``syncing``, ``synced`` or ``error``.
        generation: Counts full syncs; rows that one did not see are gone on GitHub.
    """

    __tablename__ = "github_state"

    account: dict[str, Any] = json_field(default=dict)
    installation_id: str | None = Field(default=None, index=True)
    installation_status: str = "install_required"
    sync_status: str = "pending"
    sync_done: int = 0
    sync_total: int = 0
    sync_label: str = ""
    sync_error: dict[str, Any] | None = json_field(nullable=True)
    generation: int = 0
    sync_run_id: str | None = None
    sync_wanted: bool = False
    last_sync_at: datetime | None = instant(nullable=True)
    last_webhook_at: datetime | None = instant(nullable=True)
    last_webhook_event: str | None = None

    def represent(self, install_url: str) -> dict[str, Any]:
        """Return the GitHub part of an organization as clients see it."""
        return {
            "connected_account": self.account.get("login"),
            "installation_status": self.installation_status,
            "sync_status": self.sync_status,
            "sync_progress": {
                "done": self.sync_done,
                "total": self.sync_total,
                "label": self.sync_label,
            },
            "sync_error": self.sync_error,
            "last_sync_at": self.last_sync_at.isoformat() if self.last_sync_at else None,
            "last_webhook_at": self.last_webhook_at.isoformat() if self.last_webhook_at else None,
            "last_webhook_event": self.last_webhook_event,
            "install_url": install_url,
        }


class GitHubStateRepository(StateRow, table=True):
    """A repository that the installation can see."""

    __tablename__ = "github_state_repository"

    repository_id: str = Field(primary_key=True)
    facts: dict[str, Any] = json_field()
    generation: int = 0


class GitHubStatePullRequest(StateRow, table=True):
    """A pull request; the one place that knows its state (S23)."""

    __tablename__ = "github_state_pull_request"

    repository_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    state: str
    head_ref: str
    facts: dict[str, Any] = json_field()
    as_of: datetime = instant()
    generation: int = 0


class GitHubStateDelivery(SQLModel, table=True):
    """A webhook delivery and what became of it."""

    __tablename__ = "github_state_delivery"

    actor_key: str = Field(primary_key=True)
    guid: str = Field(primary_key=True)
    event: str
    action: str | None = None
    received_at: datetime = instant()
    outcome: str


@dataclass
class MirrorState:
    """One organization's GitHub."""

    key: str
    row: GitHubState | None
    repositories: dict[str, GitHubStateRepository]
    pull_requests: dict[tuple[str, int], GitHubStatePullRequest]

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> MirrorState:
        """Read the mirror of one organization."""
        rows = await transaction.owned(GitHubState, key)
        repositories = await transaction.owned(GitHubStateRepository, key)
        pulls = await transaction.owned(GitHubStatePullRequest, key)
        return cls(
            key,
            rows[0] if rows else None,
            {row.repository_id: row for row in repositories},
            {(row.repository_id, row.number): row for row in pulls},
        )

    @property
    def mirror(self) -> GitHubState:
        """Return the row; an account that was never connected has none."""
        assert self.row is not None
        return self.row

    @property
    def account(self) -> AccountFacts:
        """Return the mirrored account."""
        return AccountFacts.model_validate(self.mirror.account)

    def repository(self, repository_id: str) -> RepositoryFacts | None:
        """Return a repository's facts, if the installation can see it."""
        row = self.repositories.get(repository_id)
        return RepositoryFacts.model_validate(row.facts) if row else None

    def pull_request(self, repository_id: str, number: int) -> PullRequestFacts | None:
        """Return a pull request's facts, if it is known."""
        row = self.pull_requests.get((repository_id, number))
        return PullRequestFacts.model_validate(row.facts) if row else None
