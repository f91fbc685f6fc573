"""What is known of GitHub, for people; reads only, and wakes nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from foundry_ray.actors.github_state.tables import GitHubState
from foundry_ray.core import keys
from foundry_ray.store.engine import Transaction

OPEN = ("open", "draft")


async def list_states(
    transaction: Transaction,
    organization_ids: Sequence[str],
    install_url: Callable[[str], str],
) -> dict[str, dict[str, Any]]:
    """Return installation and sync of each organization; of a new one, that it must be installed.

    Args:
        install_url: Gives the page where the App is installed on an account.
    """
    rows = await transaction.rows(
        GitHubState,
        "WHERE actor_key = ANY(%s)",
        ([keys.github(one) for one in organization_ids],),
    )
    known = {keys.organization_id(row.actor_key): row for row in rows}
    return {
        one: (known.get(one) or _unknown(one)).represent(install_url(one))
        for one in organization_ids
    }


def _unknown(organization_id: str) -> GitHubState:
    never = datetime.min.replace(tzinfo=UTC)
    return GitHubState(
        actor_key=keys.github(organization_id), account={}, created_at=never, updated_at=never
    )


async def list_pull_requests(
    transaction: Transaction,
    organization_id: str,
    repository_id: str | None = None,
    *,
    states: Sequence[str] = OPEN,
) -> list[dict[str, Any]]:
    """Return pull requests in these states, the most recently updated first (S23)."""
    rows = await transaction.fetch(
        "SELECT facts, revision, as_of FROM github_state_pull_request"
        " WHERE actor_key = %(key)s AND state = ANY(%(states)s)"
        " AND (%(repository)s::text IS NULL OR repository_id = %(repository)s)"
        " ORDER BY as_of DESC",
        {
            "key": keys.github(organization_id),
            "states": list(states),
            "repository": repository_id,
        },
    )
    return [represent_pull_request(row["facts"], row["revision"]) for row in rows]


def represent_pull_request(facts: dict[str, Any], revision: int) -> dict[str, Any]:
    """Return a pull request as lists show it."""
    shown = (
        "number", "repository_id", "title", "state", "url", "head_ref", "head_sha", "base_ref",
        "author_login", "merged_at", "updated_at",
    )  # fmt: skip
    return {
        "id": f"{facts['repository_id']}/{facts['number']}",
        **{name: facts.get(name) for name in shown},
        "as_of": facts.get("updated_at"),
        "revision": revision,
    }


async def count_open(transaction: Transaction, organization_id: str) -> dict[str, int]:
    """Return how many pull requests are open, by repository id."""
    rows = await transaction.fetch(
        "SELECT repository_id, count(*) AS number FROM github_state_pull_request"
        " WHERE actor_key = %s AND state = ANY(%s) GROUP BY repository_id",
        (keys.github(organization_id), list(OPEN)),
    )
    return {row["repository_id"]: row["number"] for row in rows}


async def get_route(
    transaction: Transaction, installation_id: str | None, account_ids: Sequence[str]
) -> str | None:
    """Return the key of the mirror that a webhook is for: by installation, else by account.

    Args:
        account_ids: Organization id, then owner id; the first that is known is taken.
    """
    candidates = [keys.github(one) for one in account_ids]
    rows = await transaction.fetch(
        "SELECT actor_key, installation_id FROM github_state"
        " WHERE installation_id = %s OR actor_key = ANY(%s)",
        (installation_id, candidates),
    )
    if installation_id is not None:
        for row in rows:
            if row["installation_id"] == installation_id:
                return str(row["actor_key"])
    known = {row["actor_key"] for row in rows}
    return next((key for key in candidates if key in known), None)
