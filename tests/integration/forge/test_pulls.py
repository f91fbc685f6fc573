"""Pull requests and real merges; needs a forge process and git."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from github import GithubException
from github.Repository import Repository

from .world import WorkTree, World


@pytest.fixture
def made(world: World) -> dict[str, Any]:
    return world.repository(files={"a.txt": "one\n", "b.txt": "one\n"})


@pytest.fixture
def tree(world: World, made: dict[str, Any], tmp_path: Path) -> WorkTree:
    return world.checkout(made, world.personal_token("ada"), tmp_path / "tree")


@pytest.fixture
def repo(world: World, made: dict[str, Any]) -> Repository:
    return world.github(world.personal_token("ben")).get_repo(made["full_name"])


def test_a_pull_request_shows_who_what_and_how_much(
    world: World, made: dict[str, Any], tree: WorkTree, repo: Repository
) -> None:
    sha = tree.push("task/one", {"c.txt": "1\n2\n", "a.txt": "uno\n"})
    pull = repo.create_pull(base="main", head="task/one", title="One", body="")
    assert (pull.number, pull.state, pull.merged, pull.mergeable) == (1, "open", False, True)
    assert (pull.user.login, pull.head.sha, pull.head.repo.id) == ("ben", sha, made["id"])
    assert (pull.commits, pull.additions, pull.deletions, pull.changed_files) == (1, 3, 1, 2)
    assert {file.filename for file in pull.get_files()} == {"a.txt", "c.txt"}
    by_app = world.github(world.installation_token()).get_repo(made["full_name"])
    tree.push("task/two", {"d.txt": "1\n"})
    second = by_app.create_pull(base="main", head="acme:task/two", title="Two", body="")
    assert second.user.login == "foundry-demo[bot]"
    assert [one.number for one in repo.get_pulls(head="acme:task/two")] == [2]
    assert [one.number for one in repo.get_pulls(sort="created", direction="asc")] == [1, 2]
    assert repo.get_pulls(state="closed").totalCount == 0


def test_what_cannot_become_a_pull_request_is_refused_with_errors(
    tree: WorkTree, repo: Repository
) -> None:
    tree.push("side", {"c.txt": "1\n"})
    repo.create_git_ref("refs/heads/same", repo.get_branch("main").commit.sha)
    repo.create_pull(base="main", head="side", title="T", body="")
    for base, head, word in (
        ("main", "side", "A pull request already exists for acme:side."),
        ("main", "same", "No commits between main and same"),
        ("main", "gone", "head"),
        ("gone", "side", "base"),
    ):
        with pytest.raises(GithubException) as refused:
            repo.create_pull(base=base, head=head, title="T", body="")
        assert refused.value.status == 422
        error = refused.value.data["errors"][0]
        assert word in (error.get("message"), error.get("field"))


@pytest.mark.parametrize(("method", "parents"), [("merge", 2), ("squash", 1), ("rebase", 1)])
def test_a_merge_is_a_real_one(tree: WorkTree, repo: Repository, method: str, parents: int) -> None:
    tree.push("side", {"c.txt": "1\n"})
    tree.push("side", {"c.txt": "2\n"}, start=None)
    tree.git("checkout", "-q", "main")
    tree.push("main", {"b.txt": "two\n"}, start=None)
    pull = repo.create_pull(base="main", head="side", title="Side", body="")
    done = pull.merge(merge_method=method)
    tree.git("fetch", "-q")
    assert tree.git("rev-parse", "origin/main") == done.sha
    assert tree.git("show", "origin/main:c.txt") == "2"
    assert tree.git("show", "origin/main:b.txt") == "two"
    assert len(tree.git("log", "-1", "--format=%P", "origin/main").split()) == parents
    assert pull.is_merged()
    pull = repo.get_pull(pull.number)
    assert (pull.state, pull.merged, pull.merge_commit_sha) == ("closed", True, done.sha)
    assert (pull.merged_by.login, pull.commits) == ("ben", 2)
    with pytest.raises(GithubException) as again:
        pull.merge()
    assert again.value.status == 405


@pytest.mark.parametrize("method", ["merge", "rebase"])
def test_a_conflict_is_not_merged(tree: WorkTree, repo: Repository, method: str) -> None:
    tree.push("side", {"a.txt": "left\n"})
    tree.git("checkout", "-q", "main")
    before = tree.push("main", {"a.txt": "right\n"}, start=None)
    pull = repo.create_pull(base="main", head="side", title="Side", body="")
    assert (pull.mergeable, pull.mergeable_state) == (False, "dirty")
    with pytest.raises(GithubException) as refused:
        pull.merge(merge_method=method)
    assert refused.value.status == 405
    assert repo.get_branch("main").commit.sha == before
    assert repo.get_pull(pull.number).state == "open"


def test_a_merge_of_another_head_than_expected_is_refused(tree: WorkTree, repo: Repository) -> None:
    old = tree.push("side", {"c.txt": "1\n"})
    pull = repo.create_pull(base="main", head="side", title="Side", body="")
    tree.push("side", {"c.txt": "2\n"}, start=None)
    with pytest.raises(GithubException) as refused:
        pull.merge(sha=old)
    assert refused.value.status == 409


def test_a_pull_request_follows_its_branch(tree: WorkTree, repo: Repository) -> None:
    tree.push("side", {"c.txt": "1\n"})
    number = repo.create_pull(base="main", head="side", title="Side", body="").number
    newer = tree.push("side", {"c.txt": "2\n"}, start=None)
    assert repo.get_pull(number).head.sha == newer
    tree.git("push", "-q", "origin", ":side")
    closed = repo.get_pull(number)
    assert (closed.state, closed.merged, closed.head.sha) == ("closed", False, newer)
    with pytest.raises(GithubException) as refused:
        closed.edit(state="open")
    assert refused.value.status == 422
    tree.git("push", "-q", "origin", "side")
    closed.edit(state="open", title="Again")
    assert (repo.get_pull(number).state, repo.get_pull(number).title) == ("open", "Again")


def test_a_merge_by_hand_counts_as_merged(tree: WorkTree, repo: Repository) -> None:
    tree.push("side", {"c.txt": "1\n"})
    number = repo.create_pull(base="main", head="side", title="Side", body="").number
    tree.git("checkout", "-q", "main")
    tree.git("merge", "-q", "--no-ff", "-m", "By hand", "side")
    tree.git("push", "-q", "origin", "main")
    pull = repo.get_pull(number)
    assert (pull.merged, pull.merged_by.login) == (True, "ada")
    assert pull.merge_commit_sha == tree.git("rev-parse", "HEAD")


def test_a_fork_has_a_branch_of_the_same_name_and_another_id(
    world: World, made: dict[str, Any], tree: WorkTree, repo: Repository, tmp_path: Path
) -> None:
    fork = repo.create_fork()
    tree.push("side", {"c.txt": "ours\n"})
    theirs = WorkTree(tmp_path / "theirs", world.personal_token("ben"))
    theirs.git("clone", "-q", fork.clone_url, str(theirs.folder), cwd=tmp_path)
    theirs.git("config", "user.name", "Ben")
    theirs.git("config", "user.email", "ben@acme.example")
    theirs.push("side", {"c.txt": "theirs\n"})
    ours = repo.create_pull(base="main", head="side", title="Ours", body="")
    pull = repo.create_pull(base="main", head="ben:side", title="Theirs", body="")
    assert (ours.head.ref, ours.head.repo.id) == ("side", made["id"])
    assert (pull.head.ref, pull.head.repo.id) == ("side", fork.id)
    assert [one.number for one in repo.get_pulls(head="ben:side")] == [pull.number]
    newer = theirs.push("side", {"c.txt": "theirs again\n"}, start=None)
    assert repo.get_pull(pull.number).head.sha == newer
    assert repo.get_pull(ours.number).head.sha == ours.head.sha
    assert pull.merge().merged
    tree.git("fetch", "-q")
    assert tree.git("show", "origin/main:c.txt") == "theirs again"


def test_who_may_not_write_may_not_merge(
    world: World, made: dict[str, Any], tree: WorkTree, repo: Repository
) -> None:
    tree.push("side", {"c.txt": "1\n"})
    repo.create_pull(base="main", head="side", title="Side", body="")
    path = f"/repos/{made['full_name']}/pulls/1/merge"
    reader = world.installation_token(permissions={"contents": "read", "pull_requests": "write"})
    assert world.rest(reader, "PUT", path, json={}).status_code == 403
    assert world.rest(world.personal_token("eve"), "PUT", path, json={}).status_code == 404
    assert world.rest("", "PUT", path, json={}).status_code == 404
