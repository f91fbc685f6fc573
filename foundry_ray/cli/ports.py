"""Which network ports our processes listen on, and why any of them is not loopback.

The kernel's own tables are read (what ``ss`` reads), for our processes only.
"""

from __future__ import annotations

import ipaddress
import os
import random
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from foundry_ray.cli.processes import title
from foundry_ray.core.errors import Unavailable

# Every listener of Foundry in local mode is on loopback. What may stand elsewhere, and why;
# docs/adr/0010-loopback-only.md tells how each of Ray's ports was closed.
EDGE_ELSEWHERE = "FOUNDRY_HOST says that the edge listens there"
SANDBOX_ELSEWHERE = "a program that an agent started in its sandbox; sandboxes share this machine"

_LISTEN, _UNCONNECTED = "0A", "07"


class Listener(BaseModel):
    """One open port.

    Attributes:
        name: What the process is, or what the port is for if we chose it.
        protocol: ``tcp`` or ``udp``.
        reason: Why it is not on loopback; None for a loopback address.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int
    protocol: str
    address: str
    port: int
    reason: str | None = None

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.address)


class Ours(NamedTuple):
    """A process whose ports are asked for; *sandboxed* if an agent's sandbox started it."""

    pid: int
    sandboxed: bool


def is_loopback(address: str) -> bool:
    """Tell whether an address, as a number, is reachable from this machine only."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed.is_loopback


def listening(
    processes: Iterable[Ours], *, named: dict[int, str] | None = None, edge: tuple[str, int] | None
) -> list[Listener]:
    """Return the open ports of the given processes, each once, sorted by port.

    Args:
        named: What a port is for, by its number, where we chose it.
        edge: Host and port on which the operator wants the edge.
    """
    sockets = _sockets()
    found: dict[tuple[str, str, int], Listener] = {}
    for process in processes:
        for inode in _inodes(process.pid):
            if inode not in sockets:
                continue
            protocol, address, port = sockets[inode]
            reason = None
            if not is_loopback(address):
                if edge is not None and port == edge[1] and not _is_loopback_name(edge[0]):
                    reason = EDGE_ELSEWHERE
                elif process.sandboxed:
                    reason = SANDBOX_ELSEWHERE
            name = (named or {}).get(port) or title(process.pid) or "process"
            found[protocol, address, port] = Listener(
                name=name,
                pid=process.pid,
                protocol=protocol,
                address=address,
                port=port,
                reason=reason,
            )
    return sorted(found.values(), key=lambda one: (one.port, one.address))


def is_free(host: str, port: int) -> bool:
    """Tell whether *port* can be listened on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections that are closing are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose_free(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return *count* different free ports below the range that the kernel hands out by itself.

    They are not held: a caller whose program cannot bind chooses anew.

    Raises:
        Unavailable: There are not that many.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    pool = list(range(max(10_000, lowest - 12_000), lowest)) or list(range(20_000, 60_000))
    random.SystemRandom().shuffle(pool)
    free: list[int] = []
    for port in pool:
        if len(free) == count:
            break
        if is_free(host, port):
            free.append(port)
    if len(free) < count:
        raise Unavailable("There are not enough free ports on this machine.")
    return free


def _is_loopback_name(host: str) -> bool:
    try:
        return is_loopback(host)
    except ValueError:
        return host == "localhost"


def _inodes(pid: int) -> set[str]:
    """Return the socket numbers that a process holds; none if it is gone."""
    found: set[str] = set()
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for descriptor in descriptors:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def _sockets() -> dict[str, tuple[str, str, int]]:
    """Return protocol, address and port of every listening socket by its number."""
    found = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        for line in lines:
            fields = line.split()
            protocol = table.removesuffix("6")
            if fields[3] == (_LISTEN if protocol == "tcp" else _UNCONNECTED):
                address, port = _decoded(fields[1])
                found[fields[9]] = (protocol, address, port)
    return found


def _decoded(text: str) -> tuple[str, int]:
    """Decode the kernel's ``address:port``: hexadecimal, each word in the machine's order."""
    words, _, port = text.partition(":")
    raw = b"".join(int(words[i : i + 8], 16).to_bytes(4, "little") for i in range(0, len(words), 8))
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), int(port, 16)
