"""The processes of one node: what is written about them, how they are found and ended.

A process is known by its id *and* its start time, since numbers come back. Three things lead to
a process of ours: it was recorded, it belongs to a recorded session, or it carries our
``FOUNDRY_INSTANCE_ID``. Nothing is ever found by its name.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from foundry_ray.cli.parts import Part
from foundry_ray.core.errors import Internal
from foundry_ray.core.processes import ProcessRecord, is_still, look_at

INSTANCE_VARIABLE = "FOUNDRY_INSTANCE_ID"
Phase = Literal["starting", "up", "draining", "down", "failed"]


class Recorded(BaseModel):
    """One process as it is written down; fields as in `ProcessRecord`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int
    start_ticks: int
    started_at: AwareDatetime
    session: int

    @classmethod
    def of(cls, name: str, record: ProcessRecord) -> Self:
        """Write down *record* under *name*."""
        return cls(name=name, **record._asdict())

    @property
    def record(self) -> ProcessRecord:
        """The same as the kernel's words."""
        return ProcessRecord(self.pid, self.start_ticks, self.started_at, self.session)

    @property
    def running(self) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        return is_still(self.record)


class NodeFile(BaseModel):
    """What the node supervisor writes about itself, in ``<data-dir>/run/processes.json``.

    Attributes:
        boot_id: The kernel's; start times of another boot mean nothing.
        services: Leaders of the sessions that the supervisor started.
        others: Every other process seen, last completed before a drain.
        urls: What a person may open, by name.
        ports: What the fixed ports are for, by number.
        edge: Host and port where the edge was told to listen.
        ray_environment: What Ray's own tools need in their environment to reach our Ray.
        parts: What the supervisor last saw of each part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_id: str
    boot_id: str
    phase: Phase
    written_at: AwareDatetime
    supervisor: Recorded
    services: tuple[Recorded, ...] = ()
    others: tuple[Recorded, ...] = ()
    urls: dict[str, str] = {}
    ports: dict[int, str] = {}
    edge: tuple[str, int]
    ray_environment: dict[str, str] = {}
    parts: tuple[Part, ...] = ()

    def write(self, path: Path) -> None:
        """Replace the file as a whole: a reader sees the old one or this one."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(self.model_dump_json(indent=1) + "\n", "utf-8")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> NodeFile | None:
        """Return what was written; None if nothing was, or if it was before the last boot.

        Raises:
            Internal: The file is there and makes no sense.
        """
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise Internal(
                f"{path} cannot be read", hint="end what runs by hand and remove the file"
            ) from error
        return found

    @property
    def of_this_boot(self) -> bool:
        """Whether the machine has not started anew since."""
        return self.boot_id == boot_id()


def boot_id() -> str:
    """Return the kernel's name for the time since the machine started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def this_process() -> ProcessRecord:
    """Return the record of the process that asks."""
    record = look_at(os.getpid())
    assert record is not None, "a process that asks runs"
    return record


def members(leader: ProcessRecord, instance_id: str) -> list[ProcessRecord]:
    """Return the running processes of the session that *leader* leads or led, itself included.

    Its number names another session once another process has it: then there is nobody left.
    With the leader gone, the number alone proves nothing, and only what carries *instance_id*
    counts.
    """
    holder = _stat(leader.pid)
    if holder is not None and holder[1] != leader.start_ticks:
        return []
    found = []
    for pid in _pids():
        seen = _stat(pid)
        if seen is None or seen[0] != leader.session or seen[1] < leader.start_ticks:
            continue
        if holder is None and not _carries(pid, instance_id):
            continue
        if (record := look_at(pid)) is not None:
            found.append(record)
    return found


def carrying(instance_id: str) -> list[ProcessRecord]:
    """Return the running processes that carry *instance_id*, without us and our ancestors.

    A process that rewrites its own title may lose its environment; such ones (Ray's agents)
    are found by their session.
    """
    spared = ancestors()
    found = []
    for pid in _pids():
        if pid not in spared and _carries(pid, instance_id):
            record = look_at(pid)
            if record is not None:
                found.append(record)
    return found


def ancestors() -> set[int]:
    """Return our own process id and those of every process above."""
    found: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        pid = int(text.rpartition(")")[2].split()[1])
    return found


def title(pid: int) -> str:
    """Return a short name for a process, for people; empty if it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
    first = words[0].decode(errors="replace")
    if "::" in first or not first:  # a worker of Ray says itself what it is
        return first or name
    if "python" in Path(first).name:
        for flag, word in itertools.pairwise(words):
            if flag == b"-m":
                return word.decode(errors="replace")
        scripts = [w.decode(errors="replace") for w in words[1:] if w.endswith((b".py", b"/ray"))]
        return Path(scripts[0]).name if scripts else Path(first).name
    return Path(first.split(" ")[0]).name


def send(record: ProcessRecord, number: signal.Signals) -> bool:
    """Signal exactly that process, never one that got its number; False if it is gone."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_still(record):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_gone(records: Iterable[ProcessRecord], seconds: float) -> list[ProcessRecord]:
    """Wait until the processes have ended; return those that have not after *seconds*."""
    left = [record for record in records if is_still(record)]
    deadline = time.monotonic() + seconds
    while left and (rest := deadline - time.monotonic()) > 0:
        try:
            descriptor = os.pidfd_open(left[0].pid)
        except ProcessLookupError:
            pass
        else:
            poll = select.poll()  # a process descriptor becomes readable when it ends
            poll.register(descriptor, select.POLLIN)
            poll.poll(min(rest, 0.5) * 1000)
            os.close(descriptor)
        left = [record for record in left if is_still(record)]
    return left


def end(
    records: Iterable[ProcessRecord],
    *,
    grace: float,
    first: signal.Signals = signal.SIGTERM,
) -> list[ProcessRecord]:
    """Ask the processes to end, and after *grace* seconds end them; return who is left."""
    asked = [record for record in records if send(record, first)]
    left = wait_gone(asked, grace)
    for record in left:
        send(record, signal.SIGKILL)
    return wait_gone(left, 3.0)


def recorded(
    named: Iterable[tuple[str, ProcessRecord]], besides: Iterable[Recorded] = ()
) -> tuple[Recorded, ...]:
    """Write down processes once each, those in *besides* not again."""
    seen = {(one.pid, one.start_ticks) for one in besides}
    found = []
    for name, record in named:
        if (record.pid, record.start_ticks) not in seen:
            seen.add((record.pid, record.start_ticks))
            found.append(Recorded.of(name or title(record.pid) or "process", record))
    return tuple(found)


def since(instant: datetime, now: datetime) -> str:
    """Return how long ago *instant* was, for people."""
    seconds = int((now - instant).total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h"


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> tuple[int, int] | None:
    """Return session and start ticks of a process, zombies included; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[3]), int(fields[19])


def _carries(pid: int, instance_id: str) -> bool:
    """Tell whether a process has our instance id in its environment; no if it is not ours."""
    wanted = f"{INSTANCE_VARIABLE}={instance_id}".encode()
    try:
        return wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False  # gone, or another user's
