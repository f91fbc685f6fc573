"""What can be watched: names, who may, and what a snapshot holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from foundry_ray.core import keys
from foundry_ray.core.errors import InvalidInput
from foundry_ray.serve import views
from foundry_ray.serve.services import Services
from foundry_ray.store.engine import Transaction

MOST = 50
_ID = r"[0-9a-z][0-9a-z_-]{0,63}"
_SHAPE = re.compile(
    rf"organization:(?P<org>[0-9]{{1,19}})"
    rf"|task:(?P<task_org>[0-9]{{1,19}})/(?P<task>{_ID})"
    rf"|session:(?P<session_org>[0-9]{{1,19}})/(?P<session_task>{_ID})/(?P<session>{_ID})"
)


@dataclass(frozen=True)
class Topic:
    """One topic.

    Attributes:
        key: The entity whose GET is the topic's snapshot.
    """

    name: str
    organization_id: str
    key: str


@dataclass(frozen=True)
class _Asked:
    name: str
    organization_id: str
    task_id: str | None = None
    session_id: str | None = None


def parse(text: str) -> list[_Asked]:
    """Read a comma-separated list of topics.

    Raises:
        InvalidInput: None, too many, or one of another kind.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not 1 <= len(names) <= MOST:
        raise InvalidInput(f"topics: between 1 and {MOST} are needed.")
    return [_parse(name) for name in names]


def _parse(name: str) -> _Asked:
    found = _SHAPE.fullmatch(name)
    if found is None:
        raise InvalidInput(
            "topics: one is not of a kind that can be watched.",
            hint="organization:<org>, task:<org>/<task>, session:<org>/<task>/<session>",
            topic=name[:200],
        )
    if found["org"]:
        return _Asked(name, found["org"])
    if found["task"]:
        return _Asked(name, found["task_org"], found["task"])
    return _Asked(name, found["session_org"], found["session_task"], found["session"])


async def find(transaction: Transaction, asked: _Asked) -> Topic:
    """Return the topic if what it is about exists.

    Raises:
        NotFound: It does not.
    """
    key = keys.organization(asked.organization_id)
    if asked.task_id is not None:
        key = await views.task_key(transaction, asked.organization_id, asked.task_id)
        if asked.session_id is not None:
            key = keys.session(key, asked.session_id)
            await views.one_session(transaction, key)
    return Topic(asked.name, asked.organization_id, key)


async def snapshot(services: Services, transaction: Transaction, topic: Topic) -> dict[str, Any]:
    """Return what the matching GET answers."""
    match keys.kind_of(topic.key):
        case "organization":
            return await views.one_organization(services, transaction, topic.organization_id)
        case "task":
            return await views.one_task(transaction, topic.key)
        case _:
            return await views.one_session(transaction, topic.key)
