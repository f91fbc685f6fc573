"""What people see, composed of the flats' read models in one transaction each.

Every function makes a bounded number of queries, whatever the number of tasks.
"""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.app_shell import read_models as app_shell
from foundry_ray.actors.github_state import read_models as github_state
from foundry_ray.actors.history import read_models as history
from foundry_ray.actors.organization import read_models as organization
from foundry_ray.actors.repository import read_models as repository
from foundry_ray.actors.repository.read_models import TaskFilter
from foundry_ray.actors.task import read_models as task
from foundry_ray.actors.task_session import read_models as task_session
from foundry_ray.core import keys
from foundry_ray.core.errors import NotFound
from foundry_ray.serve.auth import Principal
from foundry_ray.serve.services import Services
from foundry_ray.serve.shapes import page_cursor, plain
from foundry_ray.store.engine import Transaction

ALIVE = ("open", "draft")


# -- application ---------------------------------------------------------------------


async def app(
    services: Services, transaction: Transaction, principal: Principal | None
) -> dict[str, Any]:
    """Return who is signed in, and their organizations (S9, S22)."""
    if principal is None:
        return {
            "auth": {"status": "signed_out"},
            "organizations": [],
            "active_organization_id": None,
        }
    person = principal.person
    found = await app_shell.list_organizations(transaction, person.id)
    ids = [one["id"] for one in found]
    mirrors = await github_state.list_states(transaction, ids, services.install_url)
    health = await organization.list_health(transaction, ids)
    return {
        "auth": {"status": "signed_in"},
        "user": {
            "id": person.id,
            "login": person.login,
            "name": person.name,
            "avatar_url": principal.avatar_url,
            "email": person.email,
        },
        "organizations": [
            {
                "id": one["id"],
                "login": one["login"],
                "kind": one["kind"],
                "role": one["role"],
                "avatar_url": one["avatar_url"],
                "github": {
                    name: mirrors[one["id"]][name]
                    for name in ("installation_status", "sync_status", "install_url")
                },
                "runtime": {name: health[one["id"]][name] for name in ("status", "error_count")},
            }
            for one in found
        ],
        "active_organization_id": principal.active_organization_id,
    }


# -- organization and repositories ---------------------------------------------------


async def repository_keys(transaction: Transaction, organization_id: str) -> list[str]:
    """Return the keys of an organization's repositories."""
    ids = await organization.list_repository_ids(transaction, organization_id)
    return [keys.repository(organization_id, one) for one in ids]


async def one_organization(
    services: Services, transaction: Transaction, organization_id: str
) -> dict[str, Any]:
    """Return an organization with everything that its pages begin with.

    Raises:
        NotFound: Nobody who signed in has such an organization.
    """
    row = await organization.get_organization(transaction, organization_id)
    row = row or await app_shell.get_account(transaction, organization_id)
    if row is None:
        raise NotFound
    mirrors = await github_state.list_states(transaction, [organization_id], services.install_url)
    health = await organization.list_health(transaction, [organization_id])
    repo_keys = await repository_keys(transaction, organization_id)
    repositories = await _repositories(transaction, organization_id, repo_keys)
    tasks = await _summaries(transaction, repo_keys, TaskFilter())
    pulls = await github_state.list_pull_requests(transaction, organization_id)
    by_status: dict[str, int] = {}
    for one in tasks:
        by_status[one["status"]] = by_status.get(one["status"], 0) + 1
    whole = {
        "id": row["id"],
        "login": row["login"],
        "kind": row["kind"],
        "display_name": row["display_name"],
        "avatar_url": row["avatar_url"],
        "settings": row["settings"],
        "github": mirrors[organization_id],
        "runtime": health[organization_id],
        "counts": {
            "repositories": len(repositories),
            "tasks": len(tasks),
            "tasks_by_status": by_status,
            "open_pull_requests": len(pulls),
        },
        "repositories": repositories,
        "tasks": tasks,
        "pull_requests": pulls,
        "revision": row["revision"],
        "updated_at": row["updated_at"],
    }
    shown: dict[str, Any] = plain(whole)
    return shown


async def _repositories(
    transaction: Transaction, organization_id: str, repo_keys: list[str]
) -> list[dict[str, Any]]:
    rows = await repository.list_repositories(transaction, repo_keys)
    pulls = await github_state.count_open(transaction, organization_id)
    return [
        {
            "id": row["id"],
            "full_name": row["full_name"],
            "default_branch": row["default_branch"],
            "private": row["private"],
            "archived": row["archived"],
            "html_url": row["html_url"],
            "task_count": row["task_count"],
            "open_pull_request_count": pulls.get(row["id"], 0),
            "last_activity_at": row["last_activity_at"],
            "revision": row["revision"],
            "updated_at": row["updated_at"],
        }
        for row in rows
        if not row["gone"]
    ]


async def repositories(
    transaction: Transaction, organization_id: str, only: str | None = None
) -> list[dict[str, Any]]:
    """Return the repositories of an organization, or the one with an id, if it is there."""
    if only is None:
        repo_keys = await repository_keys(transaction, organization_id)
    else:
        repo_keys = [keys.repository(organization_id, only)]
    return await summaries_of_repositories(transaction, organization_id, repo_keys)


async def summaries_of_repositories(
    transaction: Transaction, organization_id: str, repo_keys: list[str]
) -> list[dict[str, Any]]:
    """Return the summaries of these repositories, by name."""
    shown: list[dict[str, Any]] = plain(
        await _repositories(transaction, organization_id, repo_keys)
    )
    return shown


async def branches(
    transaction: Transaction, organization_id: str, repository_id: str
) -> list[dict[str, Any]]:
    """Return the branches on the remote and those that tasks have reserved, by name."""
    repo_key = keys.repository(organization_id, repository_id)
    refs = {row["name"]: row for row in await repository.list_refs(transaction, repo_key)}
    reserved = await repository.list_reservations(transaction, repo_key)
    pulls = await github_state.list_pull_requests(
        transaction, organization_id, repository_id, states=("open", "draft", "merged", "closed")
    )
    by_branch: dict[str, dict[str, Any]] = {}
    for pull in reversed(pulls):  # the latest stays, an open one before all
        held = by_branch.get(pull["head_ref"])
        if held is None or held["state"] not in ALIVE or pull["state"] in ALIVE:
            by_branch[pull["head_ref"]] = pull
    shown = []
    for name in sorted({*refs, *reserved}):
        ref = refs.get(name)
        branch: dict[str, Any] = {"name": name, "sha": ref["sha"] if ref else None}
        if name in reserved:
            branch["task_id"] = reserved[name]
        if name in by_branch:
            pull = by_branch[name]
            branch["pull_request"] = {k: pull[k] for k in ("number", "url", "state")}
        branch["revision"] = ref["revision"] if ref else 0
        branch["updated_at"] = ref["updated_at"] if ref else None
        shown.append(branch)
    made: list[dict[str, Any]] = plain(shown)
    return made


async def events(
    transaction: Transaction,
    organization_id: str,
    *,
    repository_id: str | None,
    task_id: str | None,
    before: str | None,
    limit: int,
) -> dict[str, Any]:
    """Return a page of what happened, the newest first (S11)."""
    if repository_id is not None:
        repo_keys = [keys.repository(organization_id, repository_id)]
    else:
        repo_keys = await repository_keys(transaction, organization_id)
    found = await history.list_events(
        transaction,
        [keys.history(one) for one in repo_keys],
        task_id=task_id,
        before=before,
        limit=limit + 1,
    )
    return page(plain(found), limit)


# -- tasks and sessions --------------------------------------------------------------


async def _summaries(
    transaction: Transaction, repo_keys: list[str], wanted: TaskFilter
) -> list[dict[str, Any]]:
    """Return summaries from the tasks' own rows, from the index before their first turn."""
    index = await repository.list_tasks(transaction, repo_keys, wanted)
    own = await task.list_summaries(transaction, [row["task_key"] for row in index])
    return [own.get(row["task_key"]) or row["summary"] for row in index]


async def tasks(
    transaction: Transaction,
    organization_id: str,
    repository_id: str | None,
    wanted: TaskFilter,
    limit: int,
) -> dict[str, Any]:
    """Return a page of task summaries, the newest first."""
    if repository_id is not None:
        repo_keys = [keys.repository(organization_id, repository_id)]
    else:
        repo_keys = await repository_keys(transaction, organization_id)
    found = await _summaries(transaction, repo_keys, wanted)
    return page(plain(found), limit)


async def task_key(transaction: Transaction, organization_id: str, task_id: str) -> str:
    """Return the key of a task of an organization.

    Raises:
        NotFound: The organization has no such task.
    """
    repository_id = await organization.get_repository_of(transaction, organization_id, task_id)
    if repository_id is not None:
        return keys.task(keys.repository(organization_id, repository_id), task_id)
    # A task that was accepted this very moment is in its repository's index only.
    repo_keys = await repository_keys(transaction, organization_id)
    found = await repository.find_task(transaction, repo_keys, task_id)
    if found is None:
        raise NotFound
    return found


async def one_task(transaction: Transaction, key: str) -> dict[str, Any]:
    """Return a task whole.

    Raises:
        NotFound: There is no such task.
    """
    accepted = await repository.get_task(transaction, key)
    if accepted is None:
        raise NotFound
    view = await task.get_task(transaction, key) or accepted
    known = {one["id"]: one for one in [*accepted["sessions"], *view["sessions"]]}
    ids = sorted({*known, view["active_session_id"]})
    for row in await task_session.list_sessions(transaction, task_session.session_keys(key, ids)):
        known[row["id"]] = row
    shown: dict[str, Any] = plain({**view, "sessions": [known[i] for i in ids if i in known]})
    return shown


async def changes(transaction: Transaction, key: str) -> dict[str, Any]:
    """Return the last snapshot of a task's branch against its merge base."""
    row = await task.get_changes(transaction, key)
    if row is None:
        return {"base": "", "head": "", "files": [], "as_of": None}
    shown: dict[str, Any] = plain(row)
    return shown


async def one_session(transaction: Transaction, key: str) -> dict[str, Any]:
    """Return a session whole; before its first turn, what its task's index row says.

    Raises:
        NotFound: The task has no such session.
    """
    found = await task_session.get_session(transaction, key)
    if found is None:
        above = keys.parent_of(key)
        assert above is not None
        # The first session is in the repository's index, a further one in the task's.
        indexes = (
            await repository.get_task(transaction, above),
            await task.get_task(transaction, above),
        )
        for one in [each for index in indexes if index for each in index["sessions"]]:
            if one["id"] == keys.last_id(key):
                found = {
                    **one,
                    "permission_requests": [],
                    "models": None,
                    "modes": None,
                    "last_index": 0,
                }
    if found is None:
        raise NotFound
    shown: dict[str, Any] = plain(found)
    return shown


def page(items: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return a page of *items*, of which there may be one more than *limit*."""
    more = len(items) > limit
    shown = items[:limit]
    return {"items": shown, "next_cursor": page_cursor(shown[-1]["id"]) if more else None}
