"""Clone, fetch and push by real git; needs a forge process and git."""

from __future__ import annotations

import os
from pathlib import Path

from .world import WorkTree, World


def test_an_installation_token_clones_and_pushes(world: World, tmp_path: Path) -> None:
    made = world.repository()
    token = world.installation_token(repositories=[made["name"]], permissions={"contents": "write"})
    tree = world.checkout(made, token, tmp_path / "tree")
    sha = tree.push("task/one", {"b.txt": "two\n"})
    assert (Path(made["git_dir"]) / "refs/heads/task/one").read_text().strip() == sha
    assert token not in (tmp_path / "tree/.git/config").read_text()


def test_a_large_push_and_a_large_clone_arrive_whole(world: World, tmp_path: Path) -> None:
    made = world.repository()
    tree = world.checkout(made, world.personal_token("ben"), tmp_path / "tree")
    noise = os.urandom(3 << 20)  # does not compress: more than git sends without chunks
    (tmp_path / "tree/noise").write_bytes(noise)
    tree.push("main", {}, start=None)
    other = world.checkout(made, world.personal_token("ada"), tmp_path / "other")
    assert (other.folder / "noise").read_bytes() == noise


def test_a_fetch_with_much_to_tell_is_understood(world: World, tmp_path: Path) -> None:
    made = world.repository()
    tree = world.checkout(made, world.personal_token("ben"), tmp_path / "tree")
    other = world.checkout(made, world.personal_token("ada"), tmp_path / "other")
    for number in range(40):  # git packs a request of this size with gzip
        tree.git("commit", "-q", "--allow-empty", "-m", f"here {number}")
        other.git("commit", "-q", "--allow-empty", "-m", f"there {number}")
    tree.git("push", "-q", "origin", "HEAD:refs/heads/here")
    other.git("fetch", "-q", "origin")
    assert other.git("rev-parse", "origin/here") == tree.git("rev-parse", "HEAD")
    other.git("-c", "protocol.version=0", "fetch", "-q", "origin", "here")


def test_reading_is_not_writing(world: World, tmp_path: Path) -> None:
    made = world.repository()
    token = world.installation_token(permissions={"contents": "read"})
    tree = world.checkout(made, token, tmp_path / "tree")
    tree.git("commit", "-q", "--allow-empty", "-m", "Try")
    assert "403" in tree.git("push", "-q", "origin", "HEAD:refs/heads/x", ok=False)


def test_strangers_and_nobody_get_nothing(world: World, tmp_path: Path) -> None:
    made = world.repository()
    tree = WorkTree(tmp_path / "tree", world.personal_token("eve"))
    clone = ("clone", "-q", made["clone_url"], str(tree.folder))
    assert "not found" in tree.git(*clone, cwd=tmp_path, ok=False)
    bare = world.http.get(f"{made['clone_url']}/info/refs?service=git-upload-pack")
    assert bare.status_code == 401
    assert bare.headers["WWW-Authenticate"].startswith("Basic ")
    tree.token = "ghs_unknown"
    assert "Authentication failed" in tree.git(*clone, cwd=tmp_path, ok=False)


def test_refs_of_pull_requests_are_not_for_pushing(world: World, tmp_path: Path) -> None:
    made = world.repository()
    tree = world.checkout(made, world.personal_token("ben"), tmp_path / "tree")
    assert "hidden ref" in tree.git("push", "origin", "HEAD:refs/pull/1/head", ok=False)
