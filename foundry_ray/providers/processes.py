"""Finds and ends the processes that belong to a local sandbox.

A process belongs to a sandbox if its environment says so, if it is in the session of the
sandbox's sandbox-agent, or if it descends from one that belongs. Nothing is ever ended by
its name.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from foundry_ray.providers.launcher import start_ticks

ID_VARIABLE = "FOUNDRY_SANDBOX_ID"
INSTANCE_VARIABLE = "FOUNDRY_INSTANCE_ID"

_PROC = Path("/proc")
_POLL = 0.02  # seconds between two looks at processes that were told to end
_PATIENCE = 1.0  # seconds that a process has to end by itself
_KILL_PATIENCE = 1.5  # seconds; a killed process that is still there hangs in the kernel


@dataclass(frozen=True)
class Member:
    """One process; *start* (ticks since boot) tells it from a later one with its *pid*."""

    pid: int
    start: int


@dataclass(frozen=True)
class Mark:
    """How the processes of one sandbox are known; *session* is that of its sandbox-agent."""

    sandbox_id: str
    instance_id: str
    session: int | None = None

    def is_in(self, environ: bytes) -> bool:
        """Return whether a process with this environment says that it belongs."""
        lines = environ.split(b"\0")
        return (
            f"{ID_VARIABLE}={self.sandbox_id}".encode() in lines
            and f"{INSTANCE_VARIABLE}={self.instance_id}".encode() in lines
        )


def is_alive(pid: int | None, start: int | None) -> bool:
    """Return whether the process that began at *start* still runs (a zombie does not)."""
    return pid is not None and start is not None and start_ticks(pid) == start


def session_of(pid: int) -> int | None:
    """Return the session that a process is in, or None if it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def members(*marks: Mark) -> set[Member]:
    """Return the live processes that belong to these sandboxes, never this one itself."""
    found: dict[int, Member] = {}
    parents: dict[int, tuple[int, Member]] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            environ = (entry / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended meanwhile, or it is somebody else's
        if fields[0] in (b"Z", b"X"):
            continue
        member = Member(int(entry.name), int(fields[19]))
        parents[member.pid] = (int(fields[1]), member)
        session = int(fields[3])
        if any(session == mark.session or mark.is_in(environ) for mark in marks):
            found[member.pid] = member
    grew = True
    while grew:
        children = {
            pid: member
            for pid, (parent, member) in parents.items()
            if parent in found and pid not in found
        }
        found.update(children)
        grew = bool(children)
    return set(found.values())


def end(find: Callable[[], set[Member]]) -> set[Member]:
    """End every process that *find* returns, and those that appear while it works.

    Takes at most about two and a half seconds. Returns what would not end.
    """
    _signal_until_gone(find, signal.SIGTERM, _PATIENCE)
    return _signal_until_gone(find, signal.SIGKILL, _KILL_PATIENCE)


def _signal_until_gone(
    find: Callable[[], set[Member]], number: signal.Signals, patience: float
) -> set[Member]:
    told: set[Member] = set()
    until = time.monotonic() + patience
    while (present := find()) and time.monotonic() < until:
        for member in present - told:
            if is_alive(member.pid, member.start):
                _tell(member.pid, number)
        told |= present
        time.sleep(_POLL)
    return present


def _tell(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it ended between the look and the signal, which is what was wanted
