"""Processes are known by number and start time, found by session and instance, ended exactly."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_ray.cli.processes import (
    NodeFile,
    Recorded,
    boot_id,
    carrying,
    end,
    members,
    send,
    this_process,
    title,
    wait_gone,
)
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import Internal
from foundry_ray.core.ids import new_id
from foundry_ray.core.processes import ProcessRecord, look_at

# A leader with a child of its own; says when both are there.
_PROGRAM = """
import os, signal, sys
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
signal.pause()
"""


class Family:
    """A session of two processes that carries an instance id."""

    def __init__(self) -> None:
        self.instance_id = new_id()
        self.popen = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdout=subprocess.PIPE,
            env={"FOUNDRY_INSTANCE_ID": self.instance_id},
            start_new_session=True,
        )
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == b"ready\n"
        self.popen.stdout.close()
        leader = look_at(self.popen.pid)
        assert leader is not None
        self.leader = leader


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    try:
        yield made
    finally:
        end(members(made.leader, made.instance_id), grace=0, first=signal.SIGKILL)
        made.popen.wait()
        end(carrying(made.instance_id), grace=0, first=signal.SIGKILL)


def test_a_session_is_found_with_every_process_in_it(family: Family) -> None:
    found = members(family.leader, family.instance_id)
    assert len(found) == 2
    assert family.leader in found
    assert set(carrying(family.instance_id)) == set(found)
    assert this_process() not in found


def test_a_session_outlives_its_leader_only_where_the_instance_proves_it(family: Family) -> None:
    family.popen.kill()
    family.popen.wait()
    rest = members(family.leader, family.instance_id)
    assert len(rest) == 1
    assert members(family.leader, "another instance") == []


def test_the_number_of_another_process_is_never_taken_for_ours(family: Family) -> None:
    stranger = family.leader._replace(start_ticks=family.leader.start_ticks - 1)
    assert members(stranger, family.instance_id) == []
    assert not send(stranger, signal.SIGKILL)
    assert end([stranger], grace=0) == []
    assert family.popen.poll() is None


def test_a_zombie_is_gone(family: Family) -> None:
    recorded = Recorded.of("leader", family.leader)
    assert recorded.running
    send(family.leader, signal.SIGKILL)
    assert wait_gone([family.leader], 5.0) == []
    assert Path(f"/proc/{family.leader.pid}/stat").exists()  # not reaped yet
    assert not recorded.running


def test_who_does_not_end_when_asked_is_ended(family: Family) -> None:
    assert end(members(family.leader, family.instance_id), grace=0.2) == []
    assert members(family.leader, family.instance_id) == []


def test_the_node_file_is_replaced_as_a_whole_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "processes.json"
    assert NodeFile.read(path) is None
    written = NodeFile(
        instance_id="one",
        boot_id=boot_id(),
        phase="up",
        written_at=SystemClock().now(),
        supervisor=Recorded.of("supervisor", this_process()),
        edge=("127.0.0.1", 7741),
    )
    written.write(path)
    assert NodeFile.read(path) == written
    assert written.of_this_boot
    assert [one.name for one in path.parent.iterdir()] == ["processes.json"]
    path.write_text("{")
    with pytest.raises(Internal):
        NodeFile.read(path)


def test_a_process_has_a_name_for_people() -> None:
    assert title(os.getpid())
    assert title(2**22 + 1) == ""
    assert isinstance(this_process(), ProcessRecord)
