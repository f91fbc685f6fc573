"""What a repository shows of itself; reads only, and wakes nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foundry_ray.core import keys
from foundry_ray.store.engine import Transaction


async def list_repositories(
    transaction: Transaction, repository_keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Return these repositories with the number and last activity of their tasks, by name."""
    return await transaction.fetch(
        "SELECT r.id, r.full_name, r.default_branch, r.private, r.archived, r.gone, r.html_url,"
        " r.revision, r.updated_at, coalesce(t.number, 0) AS task_count,"
        " greatest(t.latest, r.updated_at) AS last_activity_at"
        " FROM repository AS r LEFT JOIN (SELECT actor_key, count(*) AS number,"
        " max(updated_at) AS latest FROM repository_task WHERE actor_key = ANY(%(keys)s)"
        " GROUP BY actor_key) AS t ON t.actor_key = r.actor_key"
        " WHERE r.actor_key = ANY(%(keys)s) ORDER BY lower(r.full_name)",
        {"keys": list(repository_keys)},
    )


async def list_refs(transaction: Transaction, repository_key: str) -> list[dict[str, Any]]:
    """Return the branches on the remote, by name."""
    return await transaction.fetch(
        "SELECT name, sha, revision, updated_at FROM repository_ref WHERE actor_key = %s"
        " ORDER BY name",
        (repository_key,),
    )


async def list_reservations(transaction: Transaction, repository_key: str) -> dict[str, str]:
    """Return which task has which branch."""
    rows = await transaction.fetch(
        "SELECT branch, id FROM repository_task WHERE actor_key = %s AND branch IS NOT NULL",
        (repository_key,),
    )
    return {row["branch"]: row["id"] for row in rows}


@dataclass(frozen=True)
class TaskFilter:
    """Which tasks of an index are wanted.

    Attributes:
        text: Occurs in the title or in the branch, in any case.
        before: Only tasks older than the one with this id.
    """

    status: str | None = None
    text: str | None = None
    before: str | None = None
    limit: int | None = None


async def list_tasks(
    transaction: Transaction, repository_keys: Sequence[str], wanted: TaskFilter
) -> list[dict[str, Any]]:
    """Return the index rows of tasks (id, task_key, status, summary), the newest first."""
    rows = await transaction.fetch(
        "SELECT id, actor_key, status, summary FROM repository_task"
        " WHERE actor_key = ANY(%(keys)s)"
        " AND (%(status)s::text IS NULL OR status = %(status)s)"
        " AND (%(before)s::text IS NULL OR id < %(before)s)"
        " AND (%(text)s::text IS NULL OR position(lower(%(text)s) IN lower("
        "(summary->>'title') || ' ' || (summary->>'branch'))) > 0)"
        " ORDER BY id DESC LIMIT %(limit)s",
        {
            "keys": list(repository_keys),
            "status": wanted.status,
            "text": wanted.text,
            "before": wanted.before,
            "limit": wanted.limit,
        },
    )
    return [
        {
            "id": row["id"],
            "task_key": keys.task(row["actor_key"], row["id"]),
            "status": row["status"],
            "summary": row["summary"],
        }
        for row in rows
    ]


async def get_task(transaction: Transaction, task_key: str) -> dict[str, Any] | None:
    """Return what the 201 answered; it holds until the task's own first turn."""
    row = await transaction.one(
        "SELECT view FROM repository_task WHERE actor_key = %s AND id = %s",
        (keys.parent_of(task_key), keys.last_id(task_key)),
    )
    return row["view"] if row else None


async def find_task(
    transaction: Transaction, repository_keys: Sequence[str], task_id: str
) -> str | None:
    """Return the key of a task that may not be in its organization's index yet."""
    row = await transaction.one(
        "SELECT actor_key FROM repository_task WHERE actor_key = ANY(%s) AND id = %s",
        (list(repository_keys), task_id),
    )
    return keys.task(row["actor_key"], task_id) if row else None
