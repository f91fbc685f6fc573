"""REST: commits and what lies between two of them."""

from __future__ import annotations

from starlette.responses import Response

from foundry_ray.testing.forge import content
from foundry_ray.testing.forge.web import ApiError, Call, answer, not_found, page, route

FILES_TOLD = 300  # of one comparison or commit


async def list_commits(call: Call) -> Response:
    """GET the history of a branch, tag or commit, newest first."""
    repository = call.repository("contents")
    git = call.forge.git(repository)
    start = call.query("sha") or repository.default_branch
    sha = await git.resolve(start)
    if sha is None:
        not_found()
    path = call.query("path")
    found = (await git.text("rev-list", sha, *(["--", path] if path else []))).split()
    chosen, headers = page(call, found)
    commits = await git.log("--no-walk=unsorted", *chosen) if chosen else []
    return answer(
        [content.commit(call.forge, repository, commit) for commit in commits], headers=headers
    )


async def get_commit(call: Call) -> Response:
    """GET one commit by sha, branch or tag, with its files."""
    repository = call.repository("contents")
    git = call.forge.git(repository)
    wanted = call.part("ref")
    sha = await git.resolve(wanted)
    if sha is None:
        raise ApiError(422, f"No commit found for SHA: {wanted}")
    commit = await git.commit(sha)
    start = commit.parents[0] if commit.parents else content.EMPTY_TREE
    files = await git.diff(start, sha)
    added = sum(change.additions for change in files)
    removed = sum(change.deletions for change in files)
    return answer(
        content.commit(call.forge, repository, commit)
        | {
            "stats": {"total": added + removed, "additions": added, "deletions": removed},
            "files": [
                content.file_change(call.forge, repository, sha, change)
                for change in files[:FILES_TOLD]
            ],
        }
    )


async def compare(call: Call) -> Response:
    """GET what ``base...head`` adds since the two parted."""
    repository = call.repository("contents")
    forge, git = call.forge, call.forge.git(repository)
    names = call.part("basehead").split("...")
    if len(names) != 2:
        not_found()
    owner = forge.directory.known(repository.owner_id)
    base, head = [await git.resolve(name.removeprefix(f"{owner.login}:")) for name in names]
    if base is None or head is None:
        not_found()
    start = await git.merge_base(base, head)
    if start is None:
        raise ApiError(404, f"No common ancestor between {names[0]} and {names[1]}.")
    ahead, behind = await git.count(f"{base}..{head}"), await git.count(f"{head}..{base}")
    status = {(False, False): "identical", (True, False): "ahead", (False, True): "behind"}.get(
        (ahead > 0, behind > 0), "diverged"
    )
    found = (await git.text("rev-list", "--reverse", f"{base}..{head}")).split()
    chosen, headers = page(call, found)
    commits = await git.log("--no-walk=unsorted", *chosen) if chosen else []
    url = forge.at.rest("repos", owner.login, repository.name, "compare", f"{base}...{head}")
    html = forge.at.html(owner.login, repository.name, "compare", call.part("basehead"))
    body = {
        "url": url,
        "html_url": html,
        "permalink_url": forge.at.html(
            owner.login, repository.name, "compare", f"{base[:12]}...{head[:12]}"
        ),
        "diff_url": f"{html}.diff",
        "patch_url": f"{html}.patch",
        "base_commit": content.commit(forge, repository, await git.commit(base)),
        "merge_base_commit": content.commit(forge, repository, await git.commit(start)),
        "status": status,
        "ahead_by": ahead,
        "behind_by": behind,
        "total_commits": ahead,
        "commits": [content.commit(forge, repository, commit) for commit in commits],
        "files": [
            content.file_change(forge, repository, head, change)
            for change in (await git.diff(start, head))[:FILES_TOLD]
        ],
    }
    return answer(body, headers=headers)


ROUTES = []
for _base in ("/repos/{owner}/{repo}", "/repositories/{repository_id}"):
    ROUTES += [
        route("GET", _base + "/commits", list_commits),
        route("GET", _base + "/commits/{ref:path}", get_commit),
        route("GET", _base + "/compare/{basehead:path}", compare),
    ]
