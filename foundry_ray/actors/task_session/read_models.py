"""What a session shows of itself; reads only, and wakes nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foundry_ray.actors.task_session.tables import (
    TaskSession,
    TaskSessionEvent,
    TaskSessionMessage,
    TaskSessionPermission,
)
from foundry_ray.core import keys
from foundry_ray.store.engine import Transaction


async def list_sessions(
    transaction: Transaction, session_keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the summaries of these sessions, the oldest first."""
    rows = await transaction.rows(
        TaskSession, "WHERE actor_key = ANY(%s) ORDER BY actor_key", (list(session_keys),)
    )
    queued = await transaction.rows(
        TaskSessionMessage,
        "WHERE actor_key = ANY(%s) AND state = 'queued' ORDER BY id",
        (list(session_keys),),
    )
    return [row.summary([m for m in queued if m.actor_key == row.actor_key]) for row in rows]


async def get_session(transaction: Transaction, session_key: str) -> dict[str, Any] | None:
    """Return the session with its open permission requests; None until its first turn.

    ``last_index`` is the index of the transcript's last event: what a stream appends is newer.
    """
    rows = await transaction.owned(TaskSession, session_key)
    if not rows:
        return None
    row = rows[0]
    queued = await transaction.rows(
        TaskSessionMessage,
        "WHERE actor_key = %s AND state = 'queued' ORDER BY id",
        (session_key,),
    )
    permissions = await transaction.rows(
        TaskSessionPermission,
        "WHERE actor_key = %s AND state = 'open' ORDER BY created_at, id",
        (session_key,),
    )
    return {
        **row.summary(queued),
        "permission_requests": [permission.represent() for permission in permissions],
        "models": row.models,
        "modes": row.modes,
        "last_index": row.last_index,
    }


async def has_permission(transaction: Transaction, session_key: str, permission_id: str) -> bool:
    """Return whether the agent ever asked for this permission."""
    row = await transaction.one(
        "SELECT 1 AS there FROM task_session_permission WHERE actor_key = %s AND id = %s",
        (session_key, permission_id),
    )
    return row is not None


async def list_events(
    transaction: Transaction, session_key: str, after: int, limit: int
) -> list[dict[str, Any]]:
    """Return the transcript after an index, in the agent's order."""
    rows = await transaction.rows(
        TaskSessionEvent,
        'WHERE actor_key = %s AND "index" > %s ORDER BY "index" LIMIT %s',
        (session_key, after, limit),
    )
    return [row.represent() for row in rows]


def session_keys(task_key: str, session_ids: Sequence[str]) -> list[str]:
    """Return the keys of these sessions of a task."""
    return [keys.session(task_key, one) for one in session_ids]
