"""What a chaos run reads from outside: journals, witness, git, and processes by start time."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_ray.cli.chaos import targets
from foundry_ray.cli.chaos.outside import Outside, count_journal, read_journal
from foundry_ray.core.processes import look_at
from foundry_ray.core.settings import load
from foundry_ray.runtime import host


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(load(tmp_path / "data", {}))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", "import signal; signal.pause()"]
    with subprocess.Popen(argv) as running:
        yield running
        running.kill()


def test_a_record_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / ".foundry" / "journal" / "s1"
    folder.mkdir(parents=True)
    (folder / "00000001.jsonl").write_text('{"seq": 1}\n{"seq": 2}\n')
    (folder / "00000003.jsonl").write_text('{"seq": 3}\n{"se')

    assert [record["seq"] for record in read_journal(tmp_path, "s1")] == [1, 2, 3]
    assert count_journal(tmp_path, "s1") == 3
    assert count_journal(tmp_path, "another") == 0


def test_the_witness_is_read_up_to_its_last_whole_line(outside: Outside) -> None:
    assert outside.witness("b1") == []
    folder = outside.home("b1") / ".foundry"
    folder.mkdir(parents=True)
    (folder / "witness.jsonl").write_text('{"message_id": "p1"}\n{"message_id": "p2"}\n{"mess')

    assert outside.witness("b1") == ["p1", "p2"]


def test_a_branch_is_found_loose_packed_and_not_at_all(outside: Outside) -> None:
    git = outside.settings.data_dir / "forge" / "repositories" / "acme" / "demo.git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "loose").write_text("aaa\n")
    (git / "packed-refs").write_text("# pack-refs\nbbb refs/heads/packed\nccc refs/heads/loose\n")

    assert outside.pushed("loose") == "aaa"
    assert outside.pushed("packed") == "bbb"
    assert outside.pushed("missing") == ""


def test_the_head_of_a_work_tree_is_that_of_its_branch(outside: Outside) -> None:
    assert outside.head("b1") == ""
    git = outside.home("b1") / "work" / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/mine\n")
    (git / "refs" / "heads" / "mine").write_text("aaa\n")

    assert outside.head("b1") == "aaa"


def test_a_process_with_a_used_number_is_nobodys_host(process: subprocess.Popen[bytes]) -> None:
    stored = {"node": host.node(), "pid": process.pid, "started": host.started(process.pid)}
    found = targets.of_host(stored)

    assert found is not None
    assert found.first.pid == process.pid
    assert targets.of_host({**stored, "started": int(stored["started"] or 0) + 1}) is None
    assert targets.of_host(None) is None


def test_a_kill_is_sigkill_and_says_whether_it_hit(process: subprocess.Popen[bytes]) -> None:
    record = look_at(process.pid)
    assert record is not None
    target = targets.Target("a process", (record,))

    assert target.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert not target.kill()


def test_a_sandbox_that_is_not_there_cannot_be_killed(outside: Outside) -> None:
    assert targets.sandbox_agent(outside, "b1", whole=True) is None
