"""REST: pull requests; how they are merged is in `merging`."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from foundry_ray.testing.forge import content, pushes
from foundry_ray.testing.forge.records import Account, Pull, Repository
from foundry_ray.testing.forge.web import (
    ApiError,
    Call,
    answer,
    invalid,
    listing,
    not_found,
    page,
    route,
)

SORTS = {"created": "created_at", "updated": "updated_at"}


def the_pull(call: Call, repository: Repository) -> Pull:
    """Return the pull request in the path, else 404."""
    found = call.forge.store.one(
        Pull,
        "SELECT * FROM pulls WHERE repository_id = ? AND number = ?",
        repository.id,
        call.number("number"),
    )
    if found is None:
        not_found()
    return found


async def _answer(call: Call, repository: Repository, pull: Pull, status: int = 200) -> Response:
    size = await content.size(call.forge, repository, pull.base_sha, pull.head_sha)
    mergeable = (
        await content.can_merge(call.forge, repository, pull) if pull.state == "open" else None
    )
    return answer(content.pull_request(call.forge, pull, size, mergeable=mergeable), status)


async def list_pulls(call: Call) -> Response:
    """GET pull requests by state, head and base, newest first unless said otherwise."""
    repository = call.repository("pull_requests")
    where, values = ["repository_id = ?"], [repository.id]
    conditions: list[tuple[str, Any]] = []
    state = call.query("state", "open")
    if state not in ("open", "closed", "all"):
        invalid({"resource": "PullRequest", "field": "state", "code": "invalid"})
    if state != "all":
        conditions.append(("state", state))
    if call.query("base"):
        conditions.append(("base_ref", call.query("base")))
    owner, colon, branch = call.query("head").partition(":")
    if colon:  # GitHub ignores a head without an owner
        source = _source(call, repository, owner)
        conditions.append(("head_repository_id", -1 if source is None else source.id))
        conditions.append(("head_ref", branch))
    for column, value in conditions:
        where.append(f"{column} = ?")
        values.append(value)
    sort = SORTS.get(call.query("sort", "created"), "created_at")
    usual = "desc" if sort == "created_at" else "asc"
    order = "DESC" if call.query("direction", usual) == "desc" else "ASC"
    found = call.forge.store.all(
        Pull,
        f"SELECT * FROM pulls WHERE {' AND '.join(where)} ORDER BY {sort} {order}, id {order}",
        *values,
    )
    return listing(call, found, lambda pull: content.pull_summary(call.forge, pull))


async def get_pull(call: Call) -> Response:
    """GET one pull request; whether it merges cleanly is found out by trying."""
    repository = call.repository("pull_requests")
    return await _answer(call, repository, the_pull(call, repository))


async def create_pull(call: Call) -> Response:
    """POST a pull request from a branch that has commits of its own."""
    repository = call.repository("pull_requests", "read")
    actor = call.actor()
    if not call.forge.gate.may_propose(call.principal, repository):
        raise ApiError(403, "Resource not accessible by integration")
    title, body = call.text("title"), call.text("body")
    if not title or not title.strip():
        invalid({"resource": "PullRequest", "field": "title", "code": "missing_field"})
    head, base_ref = call.text("head") or "", call.text("base") or ""
    owner, colon, branch = head.partition(":")
    source = _source(call, repository, owner) if colon else repository
    head_ref = branch if colon else head
    head_sha = None
    if source is not None and head_ref:
        head_sha = (await call.forge.git(source).refs()).get(f"refs/heads/{head_ref}")
    git = call.forge.git(repository)
    base_sha = (await git.refs()).get(f"refs/heads/{base_ref}")
    wrong = [
        {"resource": "PullRequest", "field": field, "code": "invalid"}
        for field, sha in (("head", head_sha), ("base", base_sha))
        if sha is None
    ]
    if source is None or head_sha is None or base_sha is None:
        invalid(*wrong)
    async with call.forge.lock(repository):
        if _open_one(call, repository, source, head_ref, base_ref) is not None:
            label = f"{call.forge.directory.known(source.owner_id).login}:{head_ref}"
            invalid(_custom(f"A pull request already exists for {label}."))
        number = repository.next_number
        fresh = call.forge.directory.repository_by_id(repository.id)
        if fresh is not None:  # another one may have been made while we waited
            number = fresh.next_number
        await pushes.hold(call.forge, repository, source.id, number, head_sha)
        if await git.count(f"{base_sha}..{head_sha}") == 0:
            invalid(_custom(f"No commits between {base_ref} and {head_ref}"))
        if await git.merge_base(base_sha, head_sha) is None:
            invalid(_custom(f"The {head_ref} branch has no history in common with {base_ref}"))
        size = await content.size(call.forge, repository, base_sha, head_sha)
        now = call.forge.store.now()
        with call.forge.store.transaction():
            made = call.forge.store.insert(
                "pulls",
                repository_id=repository.id,
                head_repository_id=source.id,
                number=number,
                title=title,
                body=body,
                state="open",
                draft=int(call.body.get("draft") is True),
                user_id=actor.id,
                head_ref=head_ref,
                head_sha=head_sha,
                base_ref=base_ref,
                base_sha=base_sha,
                created_at=now,
                updated_at=now,
            )
            call.forge.store.update("repositories", repository.id, next_number=number + 1)
            pull = call.forge.store.one(Pull, "SELECT * FROM pulls WHERE id = ?", made)
            assert pull is not None, "just inserted"
            pushes.announce(call.forge, pull, size, "opened", actor)
    return await _answer(call, repository, pull, 201)


def _custom(message: str) -> dict[str, Any]:
    return {"resource": "PullRequest", "code": "custom", "message": message}


def _source(call: Call, repository: Repository, owner: str) -> Repository | None:
    """Return the repository of *owner* that a head may come from: this one or a fork of it."""
    account = call.forge.directory.account(owner)
    if account is None:
        return None
    if account.id == repository.owner_id:
        return repository
    return next(
        (
            fork
            for fork in call.forge.directory.repositories_of(account.id)
            if fork.fork_of == repository.id and call.forge.gate.sees(call.principal, fork)
        ),
        None,
    )


def _open_one(
    call: Call, repository: Repository, source: Repository, head_ref: str, base_ref: str
) -> Pull | None:
    return call.forge.store.one(
        Pull,
        "SELECT * FROM pulls WHERE repository_id = ? AND head_repository_id = ? AND head_ref = ?"
        " AND base_ref = ? AND state = 'open'",
        repository.id,
        source.id,
        head_ref,
        base_ref,
    )


def _require_author_or_writer(call: Call, repository: Repository, pull: Pull) -> Account:
    actor = call.actor()
    may = call.forge.gate.may(call.principal, repository, "pull_requests", "write")
    if not may and actor.id != pull.user_id:
        raise ApiError(403, "Must have push access to repository")
    return actor


async def update_pull(call: Call) -> Response:
    """PATCH title, body, base or state."""
    repository = call.repository("pull_requests")
    actor = _require_author_or_writer(call, repository, the_pull(call, repository))
    async with call.forge.lock(repository):
        old = pull = the_pull(call, repository)
        changes: dict[str, Any] = {}
        title, state, base = call.text("title"), call.text("state"), call.text("base")
        if title is not None and title != pull.title:
            if not title.strip():
                invalid({"resource": "PullRequest", "field": "title", "code": "missing_field"})
            changes["title"] = {"from": pull.title}
            pull = replace(pull, title=title)
        if "body" in call.body and call.text("body") != pull.body:
            changes["body"] = {"from": pull.body or ""}
            pull = replace(pull, body=call.text("body"))
        if base is not None and base != pull.base_ref:
            pull, change = await _rebased(call, repository, pull, base)
            changes["base"] = change
        if state is not None and state not in ("open", "closed"):
            invalid({"resource": "PullRequest", "field": "state", "code": "invalid"})
        action = None
        if state is not None and state != pull.state:
            pull, action = await _turned(call, repository, pull, state)
        if pull == old:
            return await _answer(call, repository, pull)
        now = call.forge.store.now()
        pull = replace(pull, updated_at=now)
        size = await content.size(call.forge, repository, pull.base_sha, pull.head_sha)
        try:
            with call.forge.store.transaction():
                pushes.save(call.forge, pull)
                if changes:
                    pushes.announce(call.forge, pull, size, "edited", actor, changes=changes)
                if action is not None:
                    pushes.announce(call.forge, pull, size, action, actor)
        except sqlite3.IntegrityError as trouble:  # one open one per head and base
            raise ApiError(
                422,
                "Validation Failed",
                errors=[_custom(f"A pull request already exists for {pull.head_ref}.")],
            ) from trouble
    return await _answer(call, repository, pull)


async def _rebased(
    call: Call, repository: Repository, pull: Pull, base: str
) -> tuple[Pull, dict[str, Any]]:
    git = call.forge.git(repository)
    sha = (await git.refs()).get(f"refs/heads/{base}")
    if sha is None or pull.state != "open":
        invalid({"resource": "PullRequest", "field": "base", "code": "invalid"})
    if await git.count(f"{sha}..{pull.head_sha}") == 0:
        invalid(_custom(f"There are no new commits between base branch '{base}' and head branch"))
    change = {"ref": {"from": pull.base_ref}, "sha": {"from": pull.base_sha}}
    return replace(pull, base_ref=base, base_sha=sha), change


async def _turned(call: Call, repository: Repository, pull: Pull, state: str) -> tuple[Pull, str]:
    if state == "closed":
        return replace(pull, state="closed", closed_at=call.forge.store.now()), "closed"
    if pull.merged_at is not None:
        invalid(_custom("state cannot be changed. The pull request is merged."))
    source = call.forge.directory.repository_by_id(pull.head_repository_id)
    head = None
    if source is not None:
        head = (await call.forge.git(source).refs()).get(f"refs/heads/{pull.head_ref}")
    if source is None or head is None:
        invalid(_custom("state cannot be changed. The head branch has been deleted."))
    base = (await call.forge.git(repository).refs()).get(f"refs/heads/{pull.base_ref}")
    if base is None:
        invalid(_custom("state cannot be changed. The base branch has been deleted."))
    await pushes.hold(call.forge, repository, source.id, pull.number, head)
    opened = replace(pull, state="open", closed_at=None, head_sha=head, base_sha=base)
    return opened, "reopened"


# -- what is in it --------------------------------------------------------------


async def pull_commits(call: Call) -> Response:
    """GET the commits of a pull request, oldest first."""
    repository = call.repository("pull_requests")
    pull = the_pull(call, repository)
    commits = await call.forge.git(repository).log("--reverse", f"{pull.base_sha}..{pull.head_sha}")
    return listing(call, commits, lambda commit: content.commit(call.forge, repository, commit))


async def pull_files(call: Call) -> Response:
    """GET the files that a pull request changes."""
    repository = call.repository("pull_requests")
    pull, git = the_pull(call, repository), call.forge.git(repository)
    start = await git.merge_base(pull.base_sha, pull.head_sha) or content.EMPTY_TREE
    chosen, headers = page(call, await git.diff(start, pull.head_sha))
    return answer(
        [content.file_change(call.forge, repository, pull.head_sha, change) for change in chosen],
        headers=headers,
    )


ROUTES = []
for _base in ("/repos/{owner}/{repo}/pulls", "/repositories/{repository_id}/pulls"):
    ROUTES += [
        route("GET", _base, list_pulls),
        route("POST", _base, create_pull),
        route("GET", _base + "/{number}", get_pull),
        route("PATCH", _base + "/{number}", update_pull),
        route("GET", _base + "/{number}/commits", pull_commits),
        route("GET", _base + "/{number}/files", pull_files),
    ]
