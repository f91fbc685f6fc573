"""What a task shows of itself; reads only, and wakes nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foundry_ray.actors.task.tables import Task, TaskSandbox
from foundry_ray.core import keys
from foundry_ray.store.engine import Transaction


async def get_task(transaction: Transaction, task_key: str) -> dict[str, Any] | None:
    """Return the task whole; None until its first turn."""
    rows = await transaction.owned(Task, task_key)
    if not rows:
        return None
    sandboxes = await transaction.owned(TaskSandbox, task_key, "ORDER BY id")
    return rows[0].view(sandboxes).model_dump(mode="json")


async def list_summaries(
    transaction: Transaction, task_keys: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the summaries of these tasks by key; those before their first turn are missing.

    Built by hand, not through the row's class: a list of a thousand must not take seconds.
    """
    rows = await transaction.fetch(
        "SELECT actor_key, title, branch, status, pull_request, diff, active_session_id, owner,"
        " created_at, updated_at, revision FROM task WHERE actor_key = ANY(%s)",
        (list(task_keys),),
    )
    return {
        row["actor_key"]: {
            "id": keys.last_id(row["actor_key"]),
            "repository_id": keys.repository_id(row["actor_key"]),
            "title": row["title"],
            "branch": row["branch"],
            "status": row["status"],
            "pull_request": row["pull_request"],
            "diff": row["diff"],
            "active_session_id": row["active_session_id"],
            "owner": {k: row["owner"].get(k, "") for k in ("id", "login")},
            "created_at": row["created_at"],
            "updated_at": row["updated_at"],
            "revision": row["revision"],
        }
        for row in rows
    }


async def get_changes(transaction: Transaction, task_key: str) -> dict[str, Any] | None:
    """Return the last snapshot of the branch against its merge base; None before the first."""
    return await transaction.one(
        "SELECT base, head, files, as_of, revision, updated_at FROM task_changes"
        " WHERE actor_key = %s",
        (task_key,),
    )


async def get_patch(transaction: Transaction, task_key: str, path: str) -> str | None:
    """Return the differences in one file of the last snapshot."""
    row = await transaction.one(
        "SELECT patch FROM task_patch WHERE actor_key = %s AND path = %s", (task_key, path)
    )
    return row["patch"] if row else None
