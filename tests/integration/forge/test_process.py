"""The forge as a process: its settings, its restarts, its crashes; needs forge processes."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from foundry_ray.core.errors import Unavailable
from foundry_ray.testing.forge.process import ForgeProcess, start_forge
from tests.helpers import eventually

from .world import World, receiving


async def test_settings_are_private_and_leave_others_alone(tmp_path: Path) -> None:
    file = tmp_path / "foundry.toml"
    file.write_text('port = 7000\ngithub_url = "old"\n\n[more]\ngithub_url = "kept"\n')
    forge = await start_forge(tmp_path / "data", settings_file=file)
    try:
        found = tomllib.loads(file.read_text())
        assert (found["port"], found["more"]) == (7000, {"github_url": "kept"})
        assert found["github_url"] == forge.url
        assert found["github_api_url"] == forge.api_url
        secret = tmp_path / "data/forge/admin.secret"
        for path in (file, secret, Path(found["github_app_key_file"])):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        assert await forge.stop() == 0


async def test_a_crash_loses_nothing_acknowledged(tmp_path: Path) -> None:
    data = tmp_path / "data"
    forge = await start_forge(data)
    world = World(forge)
    token, person = world.installation_token(), world.user_token("ben")
    made = world.repository()
    tree = world.checkout(made, world.personal_token("ben"), tmp_path / "tree")
    sha = await asyncio.to_thread(tree.push, "side", {"b.txt": "two\n"})
    body = {"title": "T", "head": "side", "base": "main"}
    world.rest(person, "POST", f"/repos/{made['full_name']}/pulls", json=body)
    before = world.app("GET", "/app/hook/deliveries").json()
    world.close()
    await forge.kill()

    again = await start_forge(data)
    try:
        assert again.url == forge.url
        world = World(again)
        assert world.rest(person, "GET", "/user").json()["login"] == "ben"
        pull = world.rest(token, "GET", f"/repos/{made['full_name']}/pulls/1").json()
        assert (pull["head"]["sha"], pull["state"], pull["user"]["login"]) == (sha, "open", "ben")
        after = world.app("GET", "/app/hook/deliveries").json()
        assert {one["guid"] for one in before} <= {one["guid"] for one in after}
        world.close()
    finally:
        assert await again.stop() == 0


async def test_what_was_recorded_is_sent_after_a_crash(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with receiving() as receiver:
        receiver.open.clear()
        forge = await start_forge(data, webhook_url=receiver.url)
        await forge.kill()
        receiver.open.set()
        receiver.arrivals.clear()
        again = await start_forge(data)
        try:
            await eventually(lambda: receiver.of("installation", "created"))
        finally:
            assert await again.stop() == 0


async def test_an_interrupted_change_is_told_at_the_next_start(tmp_path: Path) -> None:
    """The forge dies between git's change and its own record of it."""
    data = tmp_path / "data"
    forge = await start_forge(data)
    world = World(forge)
    made = world.repository()
    actor = world.rest(world.personal_token("ben"), "GET", "/user").json()["id"]
    world.close()
    assert await forge.stop() == 0
    subprocess.run(
        ["git", "update-ref", "refs/heads/late", "main"], cwd=made["git_dir"], check=True
    )
    database = sqlite3.connect(data / "forge/forge.sqlite3")
    database.execute(
        "INSERT INTO intents (repository_id, actor_id, at) VALUES (?, ?, '')", (made["id"], actor)
    )
    database.commit()
    database.close()
    with receiving() as receiver:
        forge = await start_forge(data, webhook_url=receiver.url)
        try:
            await eventually(lambda: receiver.of("push") and receiver.of("create"))
        finally:
            assert await forge.stop() == 0
    push = receiver.of("push")[0].payload
    assert (push["ref"], push["sender"]["login"]) == ("refs/heads/late", "ben")
    assert push["commits"] == []


async def test_two_forges_do_not_share_a_directory(own_forge: ForgeProcess) -> None:
    with pytest.raises(Unavailable, match="Another forge runs"):
        await start_forge(own_forge.data_dir)


async def test_a_taken_port_is_said_and_not_evaded(own_forge: ForgeProcess, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"Port {own_forge.port} .* is taken"):
        await start_forge(tmp_path / "other", port=own_forge.port)
