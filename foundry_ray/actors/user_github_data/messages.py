"""What others may say to a user's GitHub data."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from foundry_ray.core.facts import ConnectedAccount
from foundry_ray.core.messages import Event, Person


class IdentityObtained(Event):
    """The user signed in; their token lies sealed under ``token_secret_id``.

    ``state_hash`` names the sign-in, which goes on when this is kept.
    """

    kind: Literal["user_github_data.identity_obtained"] = "user_github_data.identity_obtained"
    state_hash: str
    person: Person
    avatar_url: str
    token_secret_id: str
    token_expires_at: datetime | None
    scopes: list[str]
    accounts: list[ConnectedAccount]
