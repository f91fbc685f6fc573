"""What Foundry knows of a user's GitHub account."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from foundry_ray.store.columns import StateRow, instant, json_field
from foundry_ray.store.engine import Transaction


class UserGitHubData(StateRow, table=True):
    """One user's GitHub identity; the token lies sealed under ``token_secret_id`` (S20)."""

    __tablename__ = "user_github_data"

    id: str
    login: str
    name: str = ""
    email: str = ""
    avatar_url: str = ""
    token_secret_id: str = ""
    token_expires_at: datetime | None = instant(nullable=True)
    scopes: list[str] = json_field(default=list)
    organization_ids: list[str] = json_field(default=list)


@dataclass
class UserState:
    """One user."""

    row: UserGitHubData | None

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> UserState:
        """Read one user."""
        rows = await transaction.owned(UserGitHubData, key)
        return cls(rows[0] if rows else None)
