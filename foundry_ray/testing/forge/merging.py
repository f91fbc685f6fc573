"""REST: merging a pull request by git itself."""

from __future__ import annotations

from starlette.responses import Response

from foundry_ray.testing.forge import pushes
from foundry_ray.testing.forge.git import Conflict, GitFailed, Person
from foundry_ray.testing.forge.pulls import the_pull
from foundry_ray.testing.forge.records import Account, Pull, Repository
from foundry_ray.testing.forge.web import (
    ApiError,
    Call,
    answer,
    invalid,
    not_found,
    nothing,
    route,
)

COMMITTER = Person("Local Forge", "noreply@forge.invalid")  # of merges, as GitHub is of its own


async def is_merged(call: Call) -> Response:
    """GET 204 if it is merged, else 404."""
    pull = the_pull(call, call.repository("pull_requests"))
    if pull.merged_at is None:
        not_found()
    return nothing()


async def merge(call: Call) -> Response:
    """PUT the merge: 405 if it cannot be merged, 409 if the head is not the one expected."""
    repository = call.repository("contents", "write")
    actor = call.actor()
    method = call.text("merge_method") or "merge"
    if method not in ("merge", "squash", "rebase"):
        invalid({"resource": "PullRequest", "field": "merge_method", "code": "invalid"})
    async with pushes.changing(call.forge, repository, actor) as intent:
        pull = the_pull(call, repository)
        if pull.state != "open":
            raise ApiError(405, "Pull Request is not mergeable")
        if pull.draft:
            raise ApiError(405, "Pull Request is still a draft")
        if (call.text("sha") or pull.head_sha) != pull.head_sha:
            raise ApiError(409, "Head branch was modified. Review and try the merge again.")
        git = call.forge.git(repository)
        base = (await git.refs()).get(f"refs/heads/{pull.base_ref}")
        if base is None:
            raise ApiError(405, "Pull Request is not mergeable")
        try:
            sha = await _merge_commit(call, repository, pull, base, method, actor)
        except Conflict as trouble:
            raise ApiError(405, "Pull Request is not mergeable") from trouble
        pushes.intend_merge(call.forge, intent, pull, sha)
        try:
            await git.update_ref(f"refs/heads/{pull.base_ref}", sha, base)
        except GitFailed as trouble:
            raise ApiError(409, "Base branch was modified. Review and try the merge again.") from (
                trouble
            )
    return answer({"sha": sha, "merged": True, "message": "Pull Request successfully merged"})


async def _merge_commit(
    call: Call, repository: Repository, pull: Pull, base: str, method: str, actor: Account
) -> str:
    """Write the commits that take the pull request in and return the new tip of its base.

    Raises:
        Conflict: A person must resolve it first.
    """
    git, directory = call.forge.git(repository), call.forge.directory
    if method == "rebase":
        return await git.replay(base, pull.head_sha, COMMITTER, call.forge.workroom)
    tree = await git.merge_tree(base, pull.head_sha)
    title, text = call.text("commit_title"), call.text("commit_message")
    if method == "squash":
        author = directory.known(pull.user_id)
        title = title or f"{pull.title} (#{pull.number})"
        text = pull.body if text is None else text
        parents = [base]
    else:
        source = directory.repository_by_id(pull.head_repository_id)
        owner = directory.known((source or repository).owner_id)
        author = actor
        title = title or f"Merge pull request #{pull.number} from {owner.login}/{pull.head_ref}"
        text = pull.title if text is None else text
        parents = [base, pull.head_sha]
    message = f"{title}\n\n{text}" if text else title
    who = Person(author.name or author.login, author.email or COMMITTER.email)
    return await git.commit_tree(tree, parents, message + "\n", who, COMMITTER)


ROUTES = []
for _base in ("/repos/{owner}/{repo}/pulls", "/repositories/{repository_id}/pulls"):
    ROUTES += [
        route("GET", _base + "/{number}/merge", is_merged),
        route("PUT", _base + "/{number}/merge", merge),
    ]
