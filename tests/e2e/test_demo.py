"""`foundry demo` does the main job, and fails at the line whose part is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_ray.core import settings as settings_module
from foundry_ray.store.embedded import EmbeddedPostgres

SEEN = [
    "everything started",
    "signed in through the OAuth page",
    "organization synced, seen on the stream",
    "task created, answered at once",
    "provisioning, phase by phase, seen on the stream",
    "the agent's output, seen on the stream; its question answered",
    "changed files, compared with the merge base",
    "pushed, seen by git rev-parse in the bare repository",
    "pull request, seen by GitHub's REST as ben",
    "merged by ben on GitHub, seen by its REST",
    "the webhook, in GitHub's delivery log and in Foundry's history",
    "pull request merged, seen by the API",
    "everything ended",
]


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="foundry-demo-"))
    made.chmod(0o711)
    data_dir = made / "data"
    data_dir.mkdir(mode=0o700)
    yield data_dir
    run_dir = settings_module.load(data_dir).run_dir
    EmbeddedPostgres(data_dir).destroy()
    shutil.rmtree(run_dir)
    shutil.rmtree(made)


def demo(data_dir: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "foundry_ray.cli", "demo", "--json"),
            *("--data-dir", str(data_dir), *more),
        ],
        env={name: value for name, value in os.environ.items() if name != "KEEP"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_the_demo_sees_every_step_and_leaves_nothing_running(folder: Path) -> None:
    code, protocol, said = demo(folder)

    assert code == 0, said
    assert protocol["ok"]
    assert [step["name"] for step in protocol["steps"]] == SEEN
    assert all(step["ok"] and step["evidence"] for step in protocol["steps"])
    evidence = {step["name"]: step["evidence"] for step in protocol["steps"]}
    assert evidence[SEEN[7]]["sha"] == evidence[SEEN[8]]["head"]
    assert "foundry_ray.cli up --demo --data-dir" in said


@pytest.mark.parametrize(("part", "line"), [("push", SEEN[7]), ("webhook", SEEN[10])])
def test_without_one_part_the_demo_fails_at_its_line(folder: Path, part: str, line: str) -> None:
    code, protocol, said = demo(folder, "--without", part)

    assert code == 1, said
    assert not protocol["ok"]
    failed = [step["name"] for step in protocol["steps"] if not step["ok"]]
    assert failed == [line]
    assert protocol["steps"][-1]["name"] == "everything ended"
