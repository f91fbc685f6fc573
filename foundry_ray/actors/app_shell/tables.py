"""What the application remembers: sessions, tokens, and the directory of organizations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Field

from foundry_ray.runtime.issues import IssueBook
from foundry_ray.store.columns import StateRow, instant
from foundry_ray.store.engine import Transaction


class AppShellSession(StateRow, table=True):
    """One browser that is signed in; only the hash of its cookie is kept."""

    __tablename__ = "app_shell_session"

    id: str = Field(primary_key=True)
    token_hash: str = Field(unique=True)
    user_id: str = Field(index=True)
    active_organization_id: str | None = None
    expires_at: datetime = instant()


class AppShellToken(StateRow, table=True):
    """An API token; only its hash is kept."""

    __tablename__ = "app_shell_token"

    id: str = Field(primary_key=True)
    token_hash: str = Field(unique=True)
    user_id: str = Field(index=True)
    name: str
    expires_at: datetime | None = instant(nullable=True)


class AppShellSignIn(StateRow, table=True):
    """A sign-in under way.

    Attributes:
        command_id: Answered when GitHub has said who it is.
    """

    __tablename__ = "app_shell_sign_in"

    state_hash: str = Field(primary_key=True)
    return_to: str
    session_hash: str | None = None
    command_id: str | None = None
    expires_at: datetime = instant()


class AppShellAccount(StateRow, table=True):
    """An organization that somebody signed in may see (S22)."""

    __tablename__ = "app_shell_account"

    id: str = Field(primary_key=True)
    login: str
    kind: str
    name: str = ""
    avatar_url: str = ""


class AppShellMembership(StateRow, table=True):
    """A user of an organization."""

    __tablename__ = "app_shell_membership"

    user_id: str = Field(primary_key=True)
    organization_id: str = Field(primary_key=True)
    role: str


@dataclass
class AppState:
    """The application's state; sessions and tokens are looked up by SQL, not kept here."""

    sign_ins: dict[str, AppShellSignIn]
    organizations: dict[str, AppShellAccount]
    memberships: dict[tuple[str, str], AppShellMembership]
    issues: IssueBook

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> AppState:
        """Read the application's state."""
        return cls(
            {row.state_hash: row for row in await transaction.owned(AppShellSignIn, key)},
            {row.id: row for row in await transaction.owned(AppShellAccount, key)},
            {
                (row.user_id, row.organization_id): row
                for row in await transaction.owned(AppShellMembership, key)
            },
            await IssueBook.load(transaction, key, "app"),
        )
