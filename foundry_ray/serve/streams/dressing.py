"""From feed rows to items as clients know them.

Most rows hold what clients see. A few items are composed of several flats' rows: those
are read when the row goes out, so that an item of a stream is the item of a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foundry_ray.actors.github_state.read_models import represent_pull_request
from foundry_ray.actors.organization import read_models as organization
from foundry_ray.core import keys
from foundry_ray.runtime.feed import Change
from foundry_ray.serve import views
from foundry_ray.serve.shapes import plain
from foundry_ray.store.engine import Transaction


async def dress(
    transaction: Transaction, changes: list[Change], install_url: Callable[[str], str]
) -> list[Change]:
    """Return the changes with their items as the matching GET shows them.

    Makes at most three queries for each organization that has a composed item among them.
    """
    repositories: dict[str, dict[str, Any]] = {}
    wanted: dict[str, set[str]] = {}
    badges = set()
    for change in changes:
        if change.topic.startswith("organization:") and change.data is not None:
            if change.kind == "repository":
                wanted.setdefault(_id(change), set()).add(change.item_id)
            elif change.kind == "runtime":
                badges.add(_id(change))
    for org, ids in wanted.items():
        repo_keys = [keys.repository(org, one) for one in sorted(ids)]
        for row in await views.summaries_of_repositories(transaction, org, repo_keys):
            repositories[row["id"]] = row
    health = plain(await organization.list_health(transaction, sorted(badges))) if badges else {}
    return [_dressed(change, repositories, health, install_url) for change in changes]


def _dressed(
    change: Change,
    repositories: dict[str, dict[str, Any]],
    health: dict[str, dict[str, Any]],
    install_url: Callable[[str], str],
) -> Change:
    data = change.data
    if data is None or not change.topic.startswith("organization:"):
        return change
    match change.kind:
        case "repository":
            data = repositories.get(change.item_id)
        case "runtime":
            data = health[_id(change)]
        case "github":
            data = {**data, "install_url": install_url(_id(change))}
        case "pull_request":
            data = represent_pull_request(data, change.item_revision)
    return change._replace(data=data)


def _id(change: Change) -> str:
    return change.topic.partition(":")[2]
