"""Repositories, branches, refs and comparisons; needs a forge process."""

from __future__ import annotations

from pathlib import Path

import pytest
from github import GithubException

from .world import World


def test_a_github_client_reads_a_repository_by_name_and_id(world: World) -> None:
    github = world.github(world.installation_token())
    demo = github.get_repo("Acme/Demo")
    assert (demo.full_name, demo.private, demo.default_branch) == ("acme/demo", True, "main")
    assert github.get_repo(demo.id).url == demo.url
    assert demo.get_branch("main").commit.sha == demo.get_commit("main").sha
    assert {file.filename for file in demo.get_commit("main").files} == {"tests/test_app.py"}
    assert next(repo.name for repo in github.get_organization("acme").get_repos()) == "demo"


def test_who_may_do_what_in_a_repository(world: World) -> None:
    demo = world.github(world.installation_token()).get_repo("acme/demo")
    assert demo.get_collaborator_permission("ada") == "admin"
    assert demo.get_collaborator_permission("ben") == "write"
    with pytest.raises(GithubException) as refused:
        demo.get_collaborator_permission("eve")
    assert refused.value.status == 404


def test_private_things_are_hidden_from_strangers(world: World) -> None:
    stranger = world.personal_token("eve")
    demo = world.rest(world.personal_token("ada"), "GET", "/repos/acme/demo").json()
    for path in ("/repos/acme/demo", f"/repositories/{demo['id']}", "/repos/acme/demo/branches"):
        assert world.rest(stranger, "GET", path).status_code == 404
        assert world.rest("", "GET", path).status_code == 404
    assert world.rest(stranger, "GET", "/orgs/acme/repos").json() == []


def test_refs_are_made_moved_forward_and_removed(world: World) -> None:
    made = world.repository()
    repo = world.github(world.installation_token()).get_repo(made["full_name"])
    first = repo.get_branch("main").commit.sha
    ref = repo.create_git_ref("refs/heads/feature/one", first)
    assert [one.ref for one in repo.get_git_matching_refs("heads/feature")] == [ref.ref]
    for name in ("refs/heads/feature/one", "refs/heads/bad..name", "heads/no"):
        with pytest.raises(GithubException) as refused:
            repo.create_git_ref(name, first)
        assert refused.value.status == 422
    repo.get_git_ref("heads/feature/one").delete()
    assert [branch.name for branch in repo.get_branches()] == ["main"]


def test_a_branch_moves_backward_only_by_force(world: World, tmp_path: Path) -> None:
    made = world.repository()
    tree = world.checkout(made, world.personal_token("ben"), tmp_path / "tree")
    first = tree.git("rev-parse", "HEAD")
    second = tree.push("side", {"b.txt": "two\n"})
    ref = (
        world.github(world.installation_token())
        .get_repo(made["full_name"])
        .get_git_ref("heads/side")
    )
    with pytest.raises(GithubException) as refused:
        ref.edit(first)
    assert refused.value.status == 422
    ref.edit(first, force=True)
    ref.edit(second)
    assert ref.object.sha == second


def test_a_comparison_says_how_far_two_branches_parted(world: World, tmp_path: Path) -> None:
    made = world.repository()
    tree = world.checkout(made, world.personal_token("ben"), tmp_path / "tree")
    tree.push("side", {"b.txt": "one\ntwo\n"})
    tree.push("other", {"c.txt": "three\n"})
    repo = world.github(world.installation_token()).get_repo(made["full_name"])
    found = repo.compare("other", "side")
    assert (found.status, found.ahead_by, found.behind_by) == ("diverged", 1, 1)
    assert [(file.filename, file.additions) for file in found.files] == [("b.txt", 2)]
    assert repo.compare("main", "main").status == "identical"


def test_lists_come_in_pages(world: World) -> None:
    made = world.repository()
    repo = world.github(world.installation_token()).get_repo(made["full_name"])
    sha = repo.get_branch("main").commit.sha
    names = {f"b{number}" for number in range(4)}
    for name in names:
        repo.create_git_ref(f"refs/heads/{name}", sha)
    path = f"/repos/{made['full_name']}/branches"
    first = world.rest(world.personal_token("ben"), "GET", path, params={"per_page": 2})
    assert len(first.json()) == 2
    assert {link["rel"] for link in first.links.values()} == {"next", "last"}
    last = world.rest(world.personal_token("ben"), "GET", first.links["last"]["url"].split("v3")[1])
    assert [branch["name"] for branch in last.json()] == ["main"]
    assert "next" not in last.links


def test_a_renamed_branch_keeps_its_pull_request(world: World, tmp_path: Path) -> None:
    made = world.repository()
    tree = world.checkout(made, world.personal_token("ben"), tmp_path / "tree")
    tree.push("old", {"b.txt": "two\n"})
    repo = world.github(world.personal_token("ben")).get_repo(made["full_name"])
    pull = repo.create_pull(base="main", head="old", title="T", body="")
    assert repo.rename_branch("old", "new")
    pull = repo.get_pull(pull.number)
    assert (pull.state, pull.head.ref) == ("open", "new")
