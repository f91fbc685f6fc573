"""How commits, refs and pull requests look in JSON."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from foundry_ray.testing.forge import shapes
from foundry_ray.testing.forge.context import Forge, Size
from foundry_ray.testing.forge.git import Commit, Conflict, FileChange, Git, Person
from foundry_ray.testing.forge.records import Account, Pull, Repository
from foundry_ray.testing.forge.shapes import Json, node_id

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # git knows it in every repository


def _links(forge: Forge, repository: Repository) -> tuple[str, str]:
    owner = forge.directory.known(repository.owner_id)
    return (
        forge.at.rest("repos", owner.login, repository.name),
        forge.at.html(owner.login, repository.name),
    )


def commit(forge: Forge, repository: Repository, what: Commit) -> Json:
    """Return a commit as REST tells it."""
    url, page = _links(forge, repository)
    return {
        "url": f"{url}/commits/{what.sha}",
        "sha": what.sha,
        "node_id": node_id("Commit", what.sha),
        "html_url": f"{page}/commit/{what.sha}",
        "comments_url": f"{url}/commits/{what.sha}/comments",
        "commit": {
            "url": f"{url}/git/commits/{what.sha}",
            "author": _signature(what.author),
            "committer": _signature(what.committer),
            "message": what.message,
            "comment_count": 0,
            "tree": {"sha": what.tree, "url": f"{url}/git/trees/{what.tree}"},
            "verification": {
                "verified": False,
                "reason": "unsigned",
                "signature": None,
                "payload": None,
                "verified_at": None,
            },
        },
        "author": _person(forge, what.author),
        "committer": _person(forge, what.committer),
        "parents": [
            {"sha": sha, "url": f"{url}/commits/{sha}", "html_url": f"{page}/commit/{sha}"}
            for sha in what.parents
        ],
    }


def file_change(forge: Forge, repository: Repository, sha: str, what: FileChange) -> Json:
    """Return one file of a difference that ends in commit *sha*."""
    url, page = _links(forge, repository)
    path = quote(what.path)
    return {
        "sha": what.sha,
        "filename": what.path,
        "status": what.status,
        "additions": what.additions,
        "deletions": what.deletions,
        "changes": what.additions + what.deletions,
        "blob_url": f"{page}/blob/{sha}/{path}",
        "raw_url": f"{page}/raw/{sha}/{path}",
        "contents_url": f"{url}/contents/{path}?ref={sha}",
    }


def pushed_commit(
    forge: Forge, repository: Repository, what: Commit, paths: dict[str, list[str]], *, new: bool
) -> Json:
    """Return a commit as ``push`` events carry it."""
    _, page = _links(forge, repository)
    return {
        "id": what.sha,
        "tree_id": what.tree,
        "distinct": new,
        "message": what.message,
        "timestamp": what.committer.at,
        "url": f"{page}/commit/{what.sha}",
        "author": _pusher(forge, what.author),
        "committer": _pusher(forge, what.committer),
        **paths,
    }


def reference(forge: Forge, repository: Repository, name: str, sha: str, kind: str) -> Json:
    """Return a git ref; *kind* is what it names: commit or tag."""
    url, _ = _links(forge, repository)
    return {
        "ref": name,
        "node_id": node_id("Ref", f"{repository.id}:{name}"),
        "url": f"{url}/git/{quote(name)}",
        "object": {"type": kind, "sha": sha, "url": f"{url}/git/{kind}s/{sha}"},
    }


def branch(forge: Forge, repository: Repository, name: str, sha: str) -> Json:
    """Return a branch as lists carry it."""
    url, _ = _links(forge, repository)
    return {
        "name": name,
        "commit": {"sha": sha, "url": f"{url}/commits/{sha}"},
        "protected": False,
        "protection": {
            "enabled": False,
            "required_status_checks": {
                "enforcement_level": "off",
                "contexts": [],
                "checks": [],
            },
        },
        "protection_url": f"{url}/branches/{quote(name)}/protection",
    }


# -- pull requests --------------------------------------------------------------


async def size(forge: Forge, repository: Repository, base: str, head: str) -> Size:
    """Return how much *head* changes since it left *base*."""
    found = forge.sizes.get((base, head))
    if found is None:
        git = forge.git(repository)
        start = await git.merge_base(base, head) or EMPTY_TREE
        files = await git.diff(start, head)
        found = forge.sizes[base, head] = Size(
            commits=await git.count(f"{base}..{head}"),
            additions=sum(change.additions for change in files),
            deletions=sum(change.deletions for change in files),
            changed_files=len(files),
        )
    return found


async def can_merge(forge: Forge, repository: Repository, pull: Pull) -> bool:
    """Tell whether an open pull request merges cleanly into its base as it is now."""
    git: Git = forge.git(repository)
    base = await git.resolve(f"refs/heads/{pull.base_ref}")
    if base is None:
        return False
    found = forge.mergeable.get((base, pull.head_sha))
    if found is None:
        try:
            await git.merge_tree(base, pull.head_sha)
            found = True
        except Conflict:
            found = False
        forge.mergeable[base, pull.head_sha] = found
    return found


def _side(
    forge: Forge, repository: Repository | None, ref: str, sha: str, *, full: bool
) -> dict[str, Any]:
    if repository is None:
        return {"label": f"unknown:{ref}", "ref": ref, "sha": sha, "user": None, "repo": None}
    owner = forge.directory.known(repository.owner_id)
    count = forge.directory.open_pulls(repository.id) if full else 0
    return {
        "label": f"{owner.login}:{ref}",
        "ref": ref,
        "sha": sha,
        "user": shapes.account(forge.at, owner),
        "repo": shapes.repository(forge.at, repository, owner, open_pulls=count),
    }


def _association(forge: Forge, repository: Repository, user: Account) -> str:
    if repository.owner_id == user.id:
        return "OWNER"
    role = forge.directory.role(repository.owner_id, user.id)
    return "NONE" if role is None else "MEMBER"


def pull_summary(forge: Forge, pull: Pull) -> Json:
    """Return a pull request as lists carry it."""
    directory = forge.directory
    base = directory.repository_by_id(pull.repository_id)
    assert base is not None, "a pull request belongs to a repository"
    url, page = _links(forge, base)
    here, issue = f"{url}/pulls/{pull.number}", f"{url}/issues/{pull.number}"
    user = directory.known(pull.user_id)
    statuses = f"{url}/statuses/{pull.head_sha}"
    review_comment = f"{url}/pulls/comments" + "{/number}"
    return {
        "url": here,
        "id": pull.id,
        "node_id": node_id("PullRequest", pull.id),
        "html_url": f"{page}/pull/{pull.number}",
        "diff_url": f"{page}/pull/{pull.number}.diff",
        "patch_url": f"{page}/pull/{pull.number}.patch",
        "issue_url": issue,
        "number": pull.number,
        "state": pull.state,
        "locked": False,
        "title": pull.title,
        "user": shapes.account(forge.at, user),
        "body": pull.body,
        "created_at": pull.created_at,
        "updated_at": pull.updated_at,
        "closed_at": pull.closed_at,
        "merged_at": pull.merged_at,
        "merge_commit_sha": pull.merge_commit_sha,
        "assignee": None,
        "assignees": [],
        "requested_reviewers": [],
        "requested_teams": [],
        "labels": [],
        "milestone": None,
        "draft": bool(pull.draft),
        "commits_url": f"{here}/commits",
        "review_comments_url": f"{here}/comments",
        "review_comment_url": review_comment,
        "comments_url": f"{issue}/comments",
        "statuses_url": statuses,
        "head": _side(
            forge,
            directory.repository_by_id(pull.head_repository_id),
            pull.head_ref,
            pull.head_sha,
            full=True,
        ),
        "base": _side(forge, base, pull.base_ref, pull.base_sha, full=True),
        "_links": {
            "self": {"href": here},
            "html": {"href": f"{page}/pull/{pull.number}"},
            "issue": {"href": issue},
            "comments": {"href": f"{issue}/comments"},
            "review_comments": {"href": f"{here}/comments"},
            "review_comment": {"href": review_comment},
            "commits": {"href": f"{here}/commits"},
            "statuses": {"href": statuses},
        },
        "author_association": _association(forge, base, user),
        "auto_merge": None,
        "active_lock_reason": None,
    }


def pull_request(
    forge: Forge, pull: Pull, how_large: Size, *, mergeable: bool | None = None
) -> Json:
    """Return a pull request in full.

    Args:
        mergeable: None while it is not known, as in webhooks, and once it is closed.
    """
    merged_by = None if pull.merged_by is None else forge.directory.known(pull.merged_by)
    state = {None: "unknown", True: "clean", False: "dirty"}[mergeable]
    if pull.draft and mergeable:
        state = "draft"
    return pull_summary(forge, pull) | {
        "merged": pull.merged_at is not None,
        "mergeable": mergeable,
        "rebaseable": mergeable,
        "mergeable_state": state,
        "merged_by": None if merged_by is None else shapes.account(forge.at, merged_by),
        "comments": 0,
        "review_comments": 0,
        "maintainer_can_modify": False,
        "commits": how_large.commits,
        "additions": how_large.additions,
        "deletions": how_large.deletions,
        "changed_files": how_large.changed_files,
    }


# -- people ---------------------------------------------------------------------


def _signature(who: Person) -> dict[str, str]:
    return {"name": who.name, "email": who.email, "date": who.at}


def _person(forge: Forge, who: Person) -> Json | None:
    found = forge.directory.by_email(who.email)
    return None if found is None else shapes.account(forge.at, found)


def _pusher(forge: Forge, who: Person) -> dict[str, str]:
    found = forge.directory.by_email(who.email)
    shape = {"name": who.name, "email": who.email}
    return shape if found is None else shape | {"username": found.login}
