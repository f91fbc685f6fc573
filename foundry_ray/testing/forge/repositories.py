"""REST: repositories and who may do what in them."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from foundry_ray.testing.forge import making, shapes
from foundry_ray.testing.forge.auth import AsInstallation, AsUser
from foundry_ray.testing.forge.records import Repository
from foundry_ray.testing.forge.web import Call, answer, listing, not_found, route


def full(call: Call, repository: Repository) -> dict[str, Any]:
    """Return a repository in full, with what the caller may do there."""
    forge = call.forge
    owner = forge.directory.known(repository.owner_id)
    shape = listed(call, repository) | {
        "allow_squash_merge": True,
        "allow_merge_commit": True,
        "allow_rebase_merge": True,
        "allow_auto_merge": False,
        "delete_branch_on_merge": False,
        "network_count": 0,
        "subscribers_count": 0,
    }
    if owner.kind == "Organization":
        shape["organization"] = shapes.account(forge.at, owner)
    if repository.fork_of is not None:
        parent = forge.directory.repository_by_id(repository.fork_of)
        if parent is not None and forge.gate.sees(call.principal, parent):
            shape["parent"] = shape["source"] = listed(call, parent)
    return shape


def listed(call: Call, repository: Repository) -> dict[str, Any]:
    """Return a repository as lists carry it, with what the caller may do there."""
    forge = call.forge
    level: str | None = "read"
    if isinstance(call.principal, AsUser):
        level = forge.directory.access(call.principal.user.id, repository)
    elif isinstance(call.principal, AsInstallation):
        may_write = forge.gate.may(call.principal, repository, "contents", "write")
        level = "write" if may_write else "read"
    owner = forge.directory.known(repository.owner_id)
    count = forge.directory.open_pulls(repository.id)
    return shapes.repository(forge.at, repository, owner, open_pulls=count) | {
        "permissions": shapes.rights(level)
    }


async def get_repository(call: Call) -> Response:
    """GET one repository, by name or by id."""
    return answer(full(call, call.repository()))


async def organization_repositories(call: Call) -> Response:
    """GET the repositories of an organization that the caller may see."""
    org = call.forge.directory.account(call.part("org"))
    if org is None or org.kind != "Organization":
        not_found()
    seen = [
        repository
        for repository in call.forge.directory.repositories_of(org.id)
        if call.forge.gate.sees(call.principal, repository)
    ]
    return listing(call, seen, lambda repository: listed(call, repository))


async def user_repositories(call: Call) -> Response:
    """GET the repositories that the person has access to."""
    caller = call.user()
    seen = [
        repository
        for repository in call.forge.directory.all_repositories()
        if call.forge.directory.access(caller.user.id, repository) not in (None, "read")
        and call.forge.gate.sees(caller, repository)
    ]
    return listing(call, seen, lambda repository: listed(call, repository))


async def permission(call: Call) -> Response:
    """GET what a person may do here; 404 for somebody who has no access at all."""
    repository = call.repository()
    user = call.forge.directory.account(call.part("login"))
    if user is None or user.kind != "User":
        not_found()
    level = call.forge.directory.access(user.id, repository)
    if level is None:
        not_found()
    # The older field knows three levels only.
    older = {"maintain": "write", "triage": "read"}.get(level, level)
    return answer(
        {
            "permission": older,
            "role_name": level,
            "user": shapes.account(call.forge.at, user)
            | {"permissions": shapes.rights(level), "role_name": level},
        }
    )


async def fork(call: Call) -> Response:
    """POST a copy of a repository that the person may read, into their own account."""
    repository = call.repository("contents")
    return answer(full(call, await making.fork(call.forge, repository, call.user().user)), 202)


ROUTES = [
    route("POST", "/repos/{owner}/{repo}/forks", fork),
    route("GET", "/orgs/{org}/repos", organization_repositories),
    route("GET", "/user/repos", user_repositories),
    route("GET", "/repos/{owner}/{repo}", get_repository),
    route("GET", "/repositories/{repository_id}", get_repository),
    route("GET", "/repos/{owner}/{repo}/collaborators/{login}/permission", permission),
    route("GET", "/repositories/{repository_id}/collaborators/{login}/permission", permission),
]
