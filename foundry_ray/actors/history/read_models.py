"""What happened, for people; reads only, and wakes nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foundry_ray.actors.history.tables import HistoryEvent
from foundry_ray.store.engine import Transaction


async def list_events(
    transaction: Transaction,
    history_keys: Sequence[str],
    *,
    task_id: str | None = None,
    before: str | None = None,
    limit: int,
) -> list[dict[str, Any]]:
    """Return events of these histories, the newest first.

    Args:
        before: Only events older than the one with this id.
    """
    rows = await transaction.rows(
        HistoryEvent,
        "WHERE actor_key = ANY(%(keys)s)"
        " AND (%(task)s::text IS NULL OR task_id = %(task)s)"
        " AND (%(before)s::text IS NULL OR id < %(before)s)"
        " ORDER BY id DESC LIMIT %(limit)s",
        {"keys": list(history_keys), "task": task_id, "before": before, "limit": limit},
    )
    return [row.represent() for row in rows]
