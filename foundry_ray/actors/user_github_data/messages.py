"""What others may say to a user's GitHub data."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from foundry_ray.core.messages import Event, Person


class IdentityObtained(Event):
    """The user signed in; their token lies sealed under ``token_secret_id``."""

    kind: Literal["user_github_data.identity_obtained"] = "user_github_data.identity_obtained"
    person: Person
    avatar_url: str
    token_secret_id: str
    token_expires_at: datetime | None
    scopes: list[str]
    organization_ids: list[str]
