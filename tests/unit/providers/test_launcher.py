"""The launcher, as the short-lived script that it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_ray.core.ids import new_id
from foundry_ray.providers import launcher
from foundry_ray.providers.launcher import start_ticks
from foundry_ray.providers.processes import Mark, end, is_alive, members
from tests.helpers import eventually


def launch(order: dict[str, Any]) -> dict[str, Any]:
    """Run the launcher and return its answer."""
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-B", launcher.__file__],
        input=json.dumps(order).encode(),
        capture_output=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(told.stdout)
    return answer


@pytest.fixture
def mark() -> Iterator[Mark]:
    """How the processes of a test are known; they are ended after it."""
    made = Mark(f"sb-{new_id()}", "test-launcher")
    yield made
    assert end(lambda: members(made)) == set()


def order(mark: Mark, folder: Path, script: str) -> dict[str, Any]:
    """Return the order to run a shell script that belongs to *mark*."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "FOUNDRY_SANDBOX_ID": mark.sandbox_id,
        "FOUNDRY_INSTANCE_ID": mark.instance_id,
    }
    return {
        "argv": ["/bin/sh", "-c", script],
        "environment": environment,
        "cwd": str(folder),
        "log": str(folder / "log"),
    }


async def test_the_program_is_nobodys_child_and_has_only_the_environment_given(
    mark: Mark, tmp_path: Path
) -> None:
    answer = launch(order(mark, tmp_path, "env; pwd; exec sleep 60"))
    pid = answer["pid"]
    await eventually(lambda: str(tmp_path) in (tmp_path / "log").read_text())

    assert is_alive(pid, answer["start"])
    assert os.getsid(pid) not in (os.getsid(0), pid)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 0
    assert f"FOUNDRY_SANDBOX_ID={mark.sandbox_id}" in (tmp_path / "log").read_text()
    assert "PYTEST" not in (tmp_path / "log").read_text()
    assert {member.pid for member in members(mark)} == {pid}


def test_a_program_that_cannot_be_started_is_told(mark: Mark, tmp_path: Path) -> None:
    answer = launch({**order(mark, tmp_path, ""), "argv": ["/nowhere/program"]})

    assert answer["error"]["errno"] == 2


async def test_everything_that_belongs_is_ended_and_nothing_else(
    mark: Mark, tmp_path: Path
) -> None:
    hidden = "env -i sleep 61 & "  # says nothing, but is in the session
    stubborn = "setsid sh -c \"trap '' TERM; while true; do sleep 1; done\" & "
    launch(order(mark, tmp_path, f"{hidden}{stubborn}sleep 62"))
    with subprocess.Popen(["sleep", "63"]) as stranger:
        await eventually(lambda: len(members(mark)) >= 5)

        assert end(lambda: members(mark)) == set()
        assert stranger.poll() is None
        stranger.kill()


def test_a_dead_process_and_a_zombie_are_not_alive() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        start = start_ticks(process.pid)
        assert is_alive(process.pid, start)
        assert not is_alive(process.pid, (start or 0) + 1)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(process.pid, start)
    assert not is_alive(process.pid, start)
    assert not is_alive(None, None)
