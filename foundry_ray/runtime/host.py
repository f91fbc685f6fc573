"""Where an activation lives, and how to prove that it lives there no more."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class HostIdentity:
    """A process on a machine; ``started`` tells a reused pid apart."""

    node: str
    pid: int
    started: int

    def as_json(self) -> dict[str, Any]:
        """Return the identity as it is stored."""
        return asdict(self)


def started(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot; None if gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


@cache
def node() -> str:
    """Return the name of this machine since its last boot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text().strip() if boot.exists() else ''}"


def here() -> HostIdentity:
    """Return this process's identity."""
    pid = os.getpid()
    return HostIdentity(node(), pid, started(pid) or 0)


def proven_gone(stored: dict[str, Any] | None) -> bool:
    """Return whether the stored host certainly runs nothing any more.

    An activation of another machine is never proven gone; its deadlines decide. One of
    this very process is: a process starts a second activation only after the first ended.
    """
    if stored is None:
        return True
    if stored["node"] != node():
        return False
    if stored["pid"] == os.getpid():
        return True
    return started(int(stored["pid"])) != int(stored["started"])
