"""The node supervisor with real PostgreSQL, Ray and Serve: up, twice, a death, down, up."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_ray.cli.ports import choose_free, is_loopback
from foundry_ray.core import settings as settings_module
from foundry_ray.store.embedded import EmbeddedPostgres
from tests.helpers import eventually

PROGRAM = Path(__file__).with_name("node_program.py")


class RunningNode:
    """A node on a data directory of its own, run as a program and asked by the real CLI."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.port = choose_free(1)[0]
        self.output = data_dir.with_suffix(".out")
        self.supervisor: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.output.open("ab") as out:
            self.supervisor = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(self.data_dir)],
                env={**os.environ, "FOUNDRY_PORT": str(self.port)},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def cli(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "foundry_ray.cli", *words, "--data-dir", str(self.data_dir)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cli("status", "--json"))
        return found

    def pids(self, name: str | None = None) -> list[int]:
        return [
            one["pid"]
            for one in self.status()["processes"]
            if one["state"] == "running" and name in (None, one["name"])
        ]

    async def ready(self, times: int) -> None:
        def says_so() -> bool:
            text = self.output.read_text()
            assert self.supervisor is not None
            assert self.supervisor.poll() is None, text
            return len(re.findall(r"^  edge +ready", text, re.MULTILINE)) >= times

        await eventually(says_so, timeout=60, every=0.1)

    def answer(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/pid", timeout=5) as got:
            said: dict[str, int] = json.load(got)
            return said

    def dashboard(self) -> str:
        written = (self.data_dir / "run" / "ray.env").read_text()
        found = re.search(r"RAY_API_SERVER_ADDRESS=['\"]?([^'\"\s]+)", written)
        assert found is not None
        return found[1]

    def down(self) -> None:
        self.cli("down")
        assert self.supervisor is not None
        self.supervisor.wait(5)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    made = RunningNode(tmp_path / "data")
    try:
        yield made
    finally:
        if made.supervisor is not None:
            made.down()
        shutil.rmtree(settings_module.load(made.data_dir).run_dir)
        EmbeddedPostgres(made.data_dir).destroy()


async def test_a_node_starts_heals_listens_on_loopback_only_and_leaves_nothing(
    node: RunningNode,
) -> None:
    node.start()
    await node.ready(1)
    status = node.status()
    assert status["state"] == "up"
    names = {one["name"] for one in status["processes"]}
    assert {"supervisor", "PostgreSQL", "Ray", "raylet", "gcs_server"} <= names

    # -- every port is on loopback, and the list is the one that `ss` sees
    seen = _listeners_by_ss(set(node.pids()))
    assert {(one["address"], one["port"]) for one in status["ports"]} == seen
    assert all(is_loopback(address) for address, _ in seen), seen
    assert sum("ServeReplica" in one["name"] for one in status["ports"]) == 4

    # -- Ray's token guards Ray, not what Serve answers: that asks by itself who it is
    assert node.answer()["pid"] > 0
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{node.dashboard()}/api/cluster_status", timeout=5)
    assert refused.value.code == 401
    refused.value.close()

    # -- a second `up` changes nothing
    before = sorted(node.pids())
    assert "nothing was changed" in node.cli("up")
    assert sorted(node.pids()) == before

    # -- a raylet that ends in good order takes Ray down; all of Ray comes back
    [raylet] = node.pids("raylet")
    os.kill(raylet, signal.SIGTERM)
    await node.ready(2)
    assert node.answer()
    assert node.status()["state"] == "up"
    assert raylet not in node.pids()

    # -- the database comes back alone
    [postgres] = node.pids("PostgreSQL")
    os.kill(postgres, signal.SIGKILL)
    await eventually(lambda: node.pids("PostgreSQL") not in ([], [postgres]), timeout=15)

    # -- and the status says what came back
    def told() -> bool:
        parts = {one["name"]: one for one in node.status()["parts"]}
        assert {one["state"] for one in parts.values()} == {"running"}, parts
        assert parts["Ray"]["restarts"] == parts["PostgreSQL"]["restarts"] == 1, parts
        assert parts["edge"]["restarts"] >= 1 <= parts["Serve applications"]["restarts"], parts
        assert "raylet" in parts["Ray"]["trouble"]
        return True

    assert await eventually(told, timeout=30, every=0.5)

    # -- down ends every process that was ever seen, within ten seconds
    everything = node.pids()
    node.down()
    after = node.status()
    assert after["state"] == "down"
    assert {one["state"] for one in after["processes"]} == {"gone"}
    assert {one["pid"] for one in after["processes"]} >= set(everything)
    assert not [pid for pid in everything if _runs(pid)]
    assert "nothing runs" in node.cli("down")


async def test_what_a_killed_supervisor_left_is_ended_by_down(node: RunningNode) -> None:
    node.start()
    await node.ready(1)
    everything = node.pids()
    assert node.supervisor is not None
    node.supervisor.kill()
    node.supervisor.wait()
    assert node.status()["state"] == "degraded"
    node.down()
    assert node.status()["state"] == "down"
    assert not [pid for pid in everything if _runs(pid)]


def _runs(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _listeners_by_ss(pids: set[int]) -> set[tuple[str, int]]:
    """Return address and port of what `ss` shows for the processes, in plain notation."""
    listed = subprocess.run(["ss", "-Hltunp"], capture_output=True, text=True, check=True).stdout
    found = set()
    for line in listed.splitlines():
        if pids & {int(pid) for pid in re.findall(r"pid=(\d+)", line)}:
            address, _, port = line.split()[4].rpartition(":")
            plain = address.strip("[]").removeprefix("::ffff:").replace("*", "0.0.0.0")
            found.add((plain, int(port)))
    return found
