"""What follows a change of refs: events, and pull requests that follow their branches.

The database remembers the refs that the world was told about. Whatever changes refs (a push, the
REST API, a merge) writes down its intent, changes git, and then `settle` compares and tells. A
forge that died in between settles at its next start, so no acknowledged change stays untold.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from foundry_ray.testing.forge import content
from foundry_ray.testing.forge.context import Forge, Size
from foundry_ray.testing.forge.git import ZERO, Git, GitFailed
from foundry_ray.testing.forge.records import Account, Intent, Pull, Repository

COMMITS_TOLD = 20  # of one push


@asynccontextmanager
async def changing(forge: Forge, repository: Repository, actor: Account) -> AsyncIterator[int]:
    """Hold the lock of *repository* while refs change; afterwards everybody is told.

    Yields:
        The id of the intent, for `intend_merge`.
    """
    async with forge.lock(repository):
        intent = forge.store.insert(
            "intents", repository_id=repository.id, actor_id=actor.id, at=forge.store.now()
        )
        try:
            yield intent
        finally:
            await settle(forge, intent)


def intend_merge(forge: Forge, intent: int, pull: Pull, sha: str) -> None:
    """Write down that the change about to happen merges *pull* as commit *sha*."""
    forge.store.update("intents", intent, pull_id=pull.id, merge_sha=sha)


async def settle_all(forge: Forge) -> None:
    """Finish what an earlier process began."""
    for intent in forge.store.all(Intent, "SELECT * FROM intents ORDER BY id"):
        await settle(forge, intent.id)


async def settle(forge: Forge, intent_id: int) -> None:
    """Compare git with what was told, then record refs, events and pull requests at once."""
    intent = forge.store.one(Intent, "SELECT * FROM intents WHERE id = ?", intent_id)
    assert intent is not None, "an intent stays until it is settled"
    repository = forge.directory.repository_by_id(intent.repository_id)
    if repository is None:  # deleted meanwhile
        forge.store.run("DELETE FROM intents WHERE id = ?", intent_id)
        return
    actor = forge.directory.known(intent.actor_id)
    git = forge.git(repository)
    before = told(forge, repository)
    after = await git.refs()
    changes = [
        _Change(name, before.get(name, ZERO), after.get(name, ZERO))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    stories = [await _story(forge, repository, actor, before, change) for change in changes]
    outcomes = await _outcomes(forge, repository, actor, intent, changes)
    owner = forge.directory.known(repository.owner_id)
    with forge.store.transaction():
        for change in changes:
            remember(forge, repository, change.name, change.after)
        if changes:
            now = forge.store.now()
            forge.store.update("repositories", repository.id, pushed_at=now, updated_at=now)
        fresh = forge.directory.repository_by_id(repository.id)
        for story in stories:
            for event, payload in story:
                forge.webhooks.emit(
                    event, None, payload, owner=owner, sender=actor, repository=fresh
                )
        for outcome in outcomes:
            save(forge, outcome.pull)
            announce(forge, outcome.pull, outcome.size, outcome.action, actor, **outcome.more)
        forge.store.run("DELETE FROM intents WHERE id = ?", intent_id)


def told(forge: Forge, repository: Repository) -> dict[str, str]:
    """Return the refs that the world was told about."""
    rows = forge.store.pairs("SELECT name, sha FROM refs WHERE repository_id = ?", repository.id)
    return {str(name): str(sha) for name, sha in rows}


def remember(forge: Forge, repository: Repository, name: str, sha: str) -> None:
    """Write down that *name* is now at *sha* (`ZERO`: gone)."""
    if sha == ZERO:
        forge.store.run(
            "DELETE FROM refs WHERE repository_id = ? AND name = ?", repository.id, name
        )
    else:
        forge.store.run(
            "INSERT OR REPLACE INTO refs (repository_id, name, sha) VALUES (?, ?, ?)",
            repository.id,
            name,
            sha,
        )


# -- push, create, delete -------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    name: str  # the full name of a branch or a tag
    before: str
    after: str

    @property
    def created(self) -> bool:
        return self.before == ZERO

    @property
    def deleted(self) -> bool:
        return self.after == ZERO

    @property
    def branch(self) -> str | None:
        prefix = "refs/heads/"
        return self.name.removeprefix(prefix) if self.name.startswith(prefix) else None


async def _story(
    forge: Forge,
    repository: Repository,
    actor: Account,
    before: Mapping[str, str],
    change: _Change,
) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of one changed ref, in GitHub's order."""
    short = change.name.split("/", 2)[2]
    kind = "tag" if change.branch is None else "branch"
    events = []
    if change.created:
        events.append(
            (
                "create",
                {
                    "ref": short,
                    "ref_type": kind,
                    "master_branch": repository.default_branch,
                    "description": repository.description,
                    "pusher_type": "user",
                },
            )
        )
    if change.deleted:
        events.append(("delete", {"ref": short, "ref_type": kind, "pusher_type": "user"}))
    events.append(("push", await _push(forge, repository, actor, before, change)))
    return events


async def _push(
    forge: Forge,
    repository: Repository,
    actor: Account,
    before: Mapping[str, str],
    change: _Change,
) -> dict[str, Any]:
    git = forge.git(repository)
    owner = forge.directory.known(repository.owner_id)
    span = change.after[:12] if change.created else f"{change.before[:12]}...{change.after[:12]}"
    tip = None if change.deleted else await _peeled(git, change.after)
    commits: list[dict[str, Any]] = []
    head: dict[str, Any] | None = None
    if tip is not None:
        known = [f"^{sha}" for sha in set(before.values())]
        listed = known if change.created else [f"^{change.before}"]
        found = await git.log(f"--max-count={COMMITS_TOLD}", tip, *listed)
        new = set((await git.text("rev-list", tip, *known)).split())
        wanted = [*reversed(found)] or [await git.commit(tip)]
        paths = await git.touched([commit.sha for commit in wanted])
        shapes = [
            content.pushed_commit(
                forge, repository, commit, paths[commit.sha], new=commit.sha in new
            )
            for commit in wanted
        ]
        commits = shapes if found else []
        head = shapes[-1]
    forced = (
        not change.created
        and tip is not None
        and not await git.is_ancestor(change.before, change.after)
    )
    return {
        "ref": change.name,
        "before": change.before,
        "after": change.after,
        "created": change.created,
        "deleted": change.deleted,
        "forced": forced,
        "base_ref": None,
        "compare": forge.at.html(owner.login, repository.name, "compare", span),
        "commits": commits,
        "head_commit": head,
        "pusher": {"name": actor.login, "email": actor.email},
    }


async def _peeled(git: Git, sha: str) -> str | None:
    """Return the commit behind a branch's or a tag's object; none for a tag of something else."""
    try:
        return await git.text("rev-parse", "--verify", "--quiet", f"{sha}^{{commit}}")
    except GitFailed:
        return None


# -- pull requests --------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    pull: Pull
    size: Size
    action: str
    more: dict[str, Any]


async def _outcomes(
    forge: Forge,
    repository: Repository,
    actor: Account,
    intent: Intent,
    changes: list[_Change],
) -> list[_Outcome]:
    by_branch = {change.branch: change for change in changes if change.branch is not None}
    outcomes = []
    open_pulls = forge.store.all(
        Pull,
        "SELECT * FROM pulls WHERE state = 'open' AND (repository_id = ? OR head_repository_id = ?)"
        " ORDER BY id",
        repository.id,
        repository.id,
    )
    for pull in open_pulls:
        head = by_branch.get(pull.head_ref) if pull.head_repository_id == repository.id else None
        base = by_branch.get(pull.base_ref) if pull.repository_id == repository.id else None
        if head is not None or base is not None:
            outcomes += await _followed(forge, actor, intent, pull, head, base)
    return outcomes


async def _followed(
    forge: Forge,
    actor: Account,
    intent: Intent,
    pull: Pull,
    head: _Change | None,
    base: _Change | None,
) -> list[_Outcome]:
    """Return what becomes of one open pull request whose head or base branch changed."""
    home = forge.directory.repository_by_id(pull.repository_id)
    assert home is not None, "a pull request belongs to a repository"
    git, now = forge.git(home), forge.store.now()
    outcomes = []
    if head is not None and not head.deleted and head.after != pull.head_sha:
        await hold(forge, home, pull.head_repository_id, pull.number, head.after)
        tip = await git.resolve(f"refs/heads/{pull.base_ref}") or pull.base_sha
        pull = replace(pull, head_sha=head.after, base_sha=tip, updated_at=now)
        outcomes.append(
            _Outcome(
                pull,
                await content.size(forge, home, pull.base_sha, pull.head_sha),
                "synchronize",
                {"before": head.before, "after": head.after},
            )
        )
    merge = await _merged_as(git, intent, pull, base)
    gone = (head is not None and head.deleted) or (base is not None and base.deleted)
    if merge is None and not gone:
        return outcomes
    closed = replace(pull, state="closed", closed_at=now, updated_at=now)
    if merge is not None and base is not None:
        closed = replace(
            closed,
            merged_at=now,
            merged_by=actor.id,
            merge_commit_sha=merge,
            base_sha=base.before,
        )
    size = await content.size(forge, home, closed.base_sha, closed.head_sha)
    return [*outcomes, _Outcome(closed, size, "closed", {})]


async def _merged_as(git: Git, intent: Intent, pull: Pull, base: _Change | None) -> str | None:
    """Return the commit by which the base branch took the pull request in, or none.

    Also a person who merges by hand and pushes has merged it, as on GitHub.
    """
    if base is None or base.deleted or base.created:
        return None
    if intent.pull_id == pull.id and intent.merge_sha is not None:
        return intent.merge_sha if await git.is_ancestor(intent.merge_sha, base.after) else None
    if await git.is_ancestor(pull.head_sha, base.after) and not await git.is_ancestor(
        pull.head_sha, base.before
    ):
        return base.after
    return None


async def hold(forge: Forge, home: Repository, source_id: int, number: int, sha: str) -> None:
    """Keep a pull request's head in its own repository as ``refs/pull/N/head``."""
    git = forge.git(home)
    if source_id != home.id:
        source = forge.directory.repository_by_id(source_id)
        assert source is not None, "a pull request's head is in a repository"
        await git.run("fetch", "--quiet", "--no-tags", str(forge.git(source).path), sha)
    await git.update_ref(f"refs/pull/{number}/head", sha, None)


def save(forge: Forge, pull: Pull) -> None:
    """Write a changed pull request."""
    columns = {key: value for key, value in vars(pull).items() if key != "id"}
    forge.store.update("pulls", pull.id, **columns)


def announce(
    forge: Forge, pull: Pull, how_large: Size, action: str, actor: Account, **more: Any
) -> None:
    """Record the ``pull_request`` event of an action."""
    home = forge.directory.repository_by_id(pull.repository_id)
    assert home is not None, "a pull request belongs to a repository"
    forge.webhooks.emit(
        "pull_request",
        action,
        {
            "number": pull.number,
            "pull_request": content.pull_request(forge, pull, how_large),
            **more,
        },
        owner=forge.directory.known(home.owner_id),
        sender=actor,
        repository=home,
    )
