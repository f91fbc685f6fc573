"""Webhooks: is it GitHub who speaks, about whom, and what does it say?

Nothing here stores or decides. `verify` comes first and works on the raw bytes;
`parse` gives what routing needs (installation id, then organization id, then
owner); the `..._of` functions read one fact each and raise `InvalidInput` when
the payload does not have it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr

from foundry_ray.core.errors import InvalidInput
from foundry_ray.integrations.github import wire
from foundry_ray.integrations.github.base import Installation, PullRequest, Repository
from foundry_ray.integrations.github.errors import Malformed

R = TypeVar("R")
Payload = dict[str, Any]

_SIGNATURE_PREFIX = b"sha256="


class WebhookFacts(BaseModel):
    """Whom a webhook is about; what GitHub left out is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: str
    guid: str
    """GitHub's delivery id; a redelivery keeps it."""
    action: str | None = None
    installation_id: int | None = None
    organization_id: int | None = None
    owner_id: int | None = None
    """The repository's owner, else the account of the installation."""
    owner_login: str | None = None
    repository_id: int | None = None
    sender_id: int | None = None
    sender_login: str | None = None


class PushFacts(BaseModel):
    """A ref moved, appeared or went."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: str
    """Full name, such as ``refs/heads/main``."""
    before: str
    """The old commit; forty zeros for a new ref."""
    after: str
    """The new commit; forty zeros for a deleted ref."""
    repository_id: int
    deleted: bool = False
    created: bool = False
    pusher_login: str | None = None


def verify(secret: SecretStr, body: bytes, signature_header: str | None) -> bool:
    """Return whether ``X-Hub-Signature-256`` proves that the sender knows *secret*.

    Takes the same time for every wrong signature. Without a secret nothing is proved.
    """
    key = secret.get_secret_value().encode()
    if not key or signature_header is None:
        return False
    expected = _SIGNATURE_PREFIX + hmac.new(key, body, hashlib.sha256).hexdigest().encode()
    return hmac.compare_digest(expected, signature_header.encode("utf-8", "replace"))


def parse(event: str, guid: str, body: bytes) -> tuple[WebhookFacts, Payload]:
    """Return whom the webhook is about, and its payload.

    Raises:
        InvalidInput: The body is not a JSON object, or an id in it is not a number.
    """
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise InvalidInput("The webhook's body is not a JSON object.", event=event, guid=guid)

    installation = _part(payload, "installation")
    organization = _part(payload, "organization")
    repository = _part(payload, "repository")
    sender = _part(payload, "sender")
    owner = (
        _part(repository, "owner") or _part(installation, "account") or _part(payload, "account")
    )
    action = payload.get("action")
    return WebhookFacts(
        event=event,
        guid=guid,
        action=action if isinstance(action, str) else None,
        installation_id=_id(installation),
        organization_id=_id(organization),
        owner_id=_id(owner),
        owner_login=_text(owner, "login") or _text(owner, "name"),
        repository_id=_id(repository),
        sender_id=_id(sender),
        sender_login=_text(sender, "login"),
    ), payload


def pull_request_of(payload: Payload) -> PullRequest:
    """Return the pull request that a ``pull_request*`` webhook tells about."""
    return _read(
        lambda: wire.pull_request(
            payload["pull_request"], repository_id=_id(_part(payload, "repository"))
        )
    )


def repository_of(payload: Payload) -> Repository:
    """Return the repository that a webhook tells about."""
    return _read(lambda: wire.repository(payload["repository"]))


def installation_of(payload: Payload) -> Installation:
    """Return the installation of an ``installation*`` webhook (others have only its id)."""
    return _read(lambda: wire.installation(payload["installation"]))


def repository_ids_of(payload: Payload) -> tuple[list[int], list[int]]:
    """Return ids of repositories that an ``installation*`` webhook adds and removes.

    With `repository_selection` "all", GitHub may name none: then only a sync knows.
    """
    added, removed = (
        _listed(payload, "repositories_added"),
        _listed(payload, "repositories_removed"),
    )
    whole = _listed(payload, "repositories")
    if payload.get("action") in ("deleted", "suspend"):
        return added, [*removed, *whole]
    return [*added, *whole], removed


def push_of(payload: Payload) -> PushFacts:
    """Return which ref a ``push`` webhook says moved."""
    return _read(
        lambda: PushFacts(
            ref=payload["ref"],
            before=payload["before"],
            after=payload["after"],
            repository_id=payload["repository"]["id"],
            deleted=bool(payload.get("deleted", False)),
            created=bool(payload.get("created", False)),
            pusher_login=_text(_part(payload, "pusher"), "name")
            or _text(_part(payload, "sender"), "login"),
        )
    )


def _read(reader: Callable[[], R]) -> R:
    try:
        return reader()
    except KeyError as error:
        missing = str(error)
    except Malformed as error:
        missing = str(error)
    except (TypeError, ValueError) as error:
        missing = type(error).__name__
    raise InvalidInput("The webhook's payload lacks what its event needs.", missing=missing)


def _part(payload: Payload, key: str) -> Payload:
    value = payload.get(key)
    return value if isinstance(value, dict) else {}


def _id(part: Payload) -> int | None:
    value = part.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput("An id in the webhook is not a number.")
    return value


def _text(part: Payload, key: str) -> str | None:
    value = part.get(key)
    return value if isinstance(value, str) and value else None


def _listed(payload: Payload, key: str) -> list[int]:
    value = payload.get(key)
    items = value if isinstance(value, list) else []
    found = [_id(item) for item in items if isinstance(item, dict)]
    return [number for number in found if number is not None]
