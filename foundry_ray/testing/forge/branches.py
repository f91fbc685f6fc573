"""REST: branches and the refs below them."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from foundry_ray.testing.forge import content, pushes
from foundry_ray.testing.forge.context import Forge
from foundry_ray.testing.forge.git import Git, GitFailed
from foundry_ray.testing.forge.records import Pull, Repository
from foundry_ray.testing.forge.web import (
    ApiError,
    Call,
    answer,
    invalid,
    listing,
    not_found,
    nothing,
    page,
    route,
)


async def branches(call: Call) -> Response:
    """GET the branches, by name."""
    repository = call.repository("contents")
    prefix = "refs/heads/"
    refs = await call.forge.git(repository).refs()
    found = [
        (name.removeprefix(prefix), sha)
        for name, sha in sorted(refs.items())
        if name.startswith(prefix)
    ]
    return listing(call, found, lambda pair: content.branch(call.forge, repository, *pair))


async def get_branch(call: Call) -> Response:
    """GET one branch with its commit."""
    repository = call.repository("contents")
    name = call.part("branch")
    sha = (await call.forge.git(repository).refs()).get(f"refs/heads/{name}")
    if sha is None:
        raise ApiError(404, "Branch not found")
    return answer(await _full(call.forge, repository, name, sha))


async def _full(forge: Forge, repository: Repository, name: str, sha: str) -> dict[str, Any]:
    commit = content.commit(forge, repository, await forge.git(repository).commit(sha))
    owner = forge.directory.known(repository.owner_id)
    return content.branch(forge, repository, name, sha) | {
        "commit": commit,
        "_links": {
            "self": forge.at.rest("repos", owner.login, repository.name, "branches", name),
            "html": forge.at.html(owner.login, repository.name, "tree", name),
        },
    }


async def rename_branch(call: Call) -> Response:
    """POST a new name for a branch; its open pull requests follow."""
    repository = call.repository("contents", "write")
    old, new = call.part("branch"), call.text("new_name") or ""
    git, actor = call.forge.git(repository), call.actor()
    if not await _valid(git, f"refs/heads/{new}"):
        invalid({"resource": "Branch", "field": "new_name", "code": "invalid"})
    async with pushes.changing(call.forge, repository, actor):
        refs = await git.refs()
        sha = refs.get(f"refs/heads/{old}")
        if sha is None:
            not_found()
        if f"refs/heads/{new}" in refs:
            invalid({"resource": "Branch", "field": "new_name", "code": "already_exists"})
        await git.run("branch", "-m", old, new)
        with call.forge.store.transaction():
            if repository.default_branch == old:
                call.forge.store.update("repositories", repository.id, default_branch=new)
            for pull in call.forge.store.all(Pull, "SELECT * FROM pulls WHERE state = 'open'"):
                if pull.head_repository_id == repository.id and pull.head_ref == old:
                    call.forge.store.update("pulls", pull.id, head_ref=new)
                if pull.repository_id == repository.id and pull.base_ref == old:
                    call.forge.store.update("pulls", pull.id, base_ref=new)
    return answer(await _full(call.forge, repository, new, sha), 201)


# -- refs -----------------------------------------------------------------------


async def get_ref(call: Call) -> Response:
    """GET one ref by its name without ``refs/``."""
    repository = call.repository("contents")
    name = f"refs/{call.part('ref')}"
    sha = (await call.forge.git(repository).refs()).get(name)
    if sha is None:
        not_found()
    return answer(await _ref(call.forge, repository, name, sha))


async def matching_refs(call: Call) -> Response:
    """GET the refs whose names begin so; none is an empty list."""
    repository = call.repository("contents")
    prefix = f"refs/{call.request.path_params.get('ref', '')}"
    refs = await call.forge.git(repository).refs()
    found = [(name, sha) for name, sha in sorted(refs.items()) if name.startswith(prefix)]
    chosen, headers = page(call, found)
    shaped = [await _ref(call.forge, repository, name, sha) for name, sha in chosen]
    return answer(shaped, headers=headers)


async def create_ref(call: Call) -> Response:
    """POST a new branch or tag at a commit that exists."""
    repository = call.repository("contents", "write")
    name, sha = call.text("ref") or "", call.text("sha") or ""
    git = call.forge.git(repository)
    if not name.startswith(("refs/heads/", "refs/tags/")) or not await _valid(git, name):
        raise ApiError(422, f"{name} is not a valid ref name.")
    if await _kind(git, sha) is None:
        raise ApiError(422, "Object does not exist")
    async with pushes.changing(call.forge, repository, call.actor()):
        if name in await git.refs():
            raise ApiError(422, "Reference already exists")
        try:
            await git.update_ref(name, sha, None)
        except GitFailed as trouble:  # refs/heads/a beside refs/heads/a/b
            raise ApiError(422, "Reference update failed") from trouble
    return answer(await _ref(call.forge, repository, name, sha), 201)


async def update_ref(call: Call) -> Response:
    """PATCH a ref to another commit; without ``force`` only forward."""
    repository = call.repository("contents", "write")
    name, sha = f"refs/{call.part('ref')}", call.text("sha") or ""
    git = call.forge.git(repository)
    if await _kind(git, sha) is None:
        raise ApiError(422, "Object does not exist")
    async with pushes.changing(call.forge, repository, call.actor()):
        old = (await git.refs()).get(name)
        if old is None:
            raise ApiError(422, "Reference does not exist")
        if call.body.get("force") is not True and not await git.is_ancestor(old, sha):
            raise ApiError(422, "Update is not a fast forward")
        await git.update_ref(name, sha, old)
    return answer(await _ref(call.forge, repository, name, sha))


async def delete_ref(call: Call) -> Response:
    """DELETE a ref; open pull requests from it or into it are closed."""
    repository = call.repository("contents", "write")
    name = f"refs/{call.part('ref')}"
    git = call.forge.git(repository)
    if name == f"refs/heads/{repository.default_branch}":
        raise ApiError(422, "Cannot delete the default branch")
    async with pushes.changing(call.forge, repository, call.actor()):
        old = (await git.refs()).get(name)
        if old is None:
            raise ApiError(422, "Reference does not exist")
        await git.delete_ref(name, old)
    return nothing()


async def _ref(forge: Forge, repository: Repository, name: str, sha: str) -> dict[str, Any]:
    kind = await _kind(forge.git(repository), sha) or "commit"
    return content.reference(forge, repository, name, sha, kind)


async def _kind(git: Git, sha: str) -> str | None:
    if len(sha) != 40 or not all(letter in "0123456789abcdef" for letter in sha):
        return None
    try:
        return await git.text("cat-file", "-t", sha)
    except GitFailed:
        return None


async def _valid(git: Git, name: str) -> bool:
    try:
        await git.run("check-ref-format", name)
    except GitFailed:
        return False
    return not name.removeprefix("refs/heads/").startswith("-")


ROUTES = []
for _base in ("/repos/{owner}/{repo}", "/repositories/{repository_id}"):
    ROUTES += [
        route("GET", _base + "/branches", branches),
        route("POST", _base + "/branches/{branch:path}/rename", rename_branch),
        route("GET", _base + "/branches/{branch:path}", get_branch),
        route("POST", _base + "/git/refs", create_ref),
        route("GET", _base + "/git/refs", matching_refs),
        route("GET", _base + "/git/matching-refs/{ref:path}", matching_refs),
        route("GET", _base + "/git/ref/{ref:path}", get_ref),
        route("GET", _base + "/git/refs/{ref:path}", get_ref),
        route("PATCH", _base + "/git/refs/{ref:path}", update_ref),
        route("DELETE", _base + "/git/refs/{ref:path}", delete_ref),
    ]
