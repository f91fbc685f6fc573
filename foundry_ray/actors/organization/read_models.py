"""What an organization shows of itself; reads only, and wakes nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foundry_ray.core import keys
from foundry_ray.runtime.tables import RtIssue
from foundry_ray.store.engine import Transaction


async def get_organization(transaction: Transaction, organization_id: str) -> dict[str, Any] | None:
    """Return the organization's own row, or None."""
    return await transaction.one(
        "SELECT id, login, kind, display_name, avatar_url, settings, revision, updated_at"
        " FROM organization WHERE actor_key = %s",
        (keys.organization(organization_id),),
    )


async def list_repository_ids(transaction: Transaction, organization_id: str) -> list[str]:
    """Return the ids of the organization's repositories."""
    rows = await transaction.fetch(
        "SELECT repository_id FROM organization_repository WHERE actor_key = %s"
        " ORDER BY lower(full_name)",
        (keys.organization(organization_id),),
    )
    return [row["repository_id"] for row in rows]


async def get_repository_of(
    transaction: Transaction, organization_id: str, task_id: str
) -> str | None:
    """Return the id of the repository that a task belongs to, if the task is in the index."""
    row = await transaction.one(
        "SELECT repository_id FROM organization_task WHERE actor_key = %s AND task_id = %s",
        (keys.organization(organization_id), task_id),
    )
    return row["repository_id"] if row else None


async def list_issues(transaction: Transaction, organization_id: str) -> list[dict[str, Any]]:
    """Return the organization's runtime issues, the latest seen first (S28)."""
    rows = await transaction.owned(
        RtIssue, keys.organization(organization_id), "ORDER BY last_seen_at DESC, id DESC"
    )
    return [row.represent() for row in rows]


async def has_issue(transaction: Transaction, organization_id: str, issue_id: str) -> bool:
    """Return whether the organization has this runtime issue."""
    row = await transaction.one(
        "SELECT 1 AS there FROM rt_issue WHERE actor_key = %s AND id = %s",
        (keys.organization(organization_id), issue_id),
    )
    return row is not None


async def list_health(
    transaction: Transaction, organization_ids: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the runtime status of each organization by its unresolved issues (S29)."""
    rows = await transaction.fetch(
        "SELECT actor_key, count(*) AS errors, max(last_seen_at) AS last FROM rt_issue"
        " WHERE actor_key = ANY(%s) AND resolved_at IS NULL GROUP BY actor_key",
        ([keys.organization(one) for one in organization_ids],),
    )
    known = {keys.organization_id(row["actor_key"]): row for row in rows}
    return {
        one: {
            "status": "error" if one in known else "healthy",
            "error_count": known[one]["errors"] if one in known else 0,
            "last_error_at": known[one]["last"] if one in known else None,
        }
        for one in organization_ids
    }
