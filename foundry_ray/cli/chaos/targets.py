"""Who can be killed: processes known by id and start time, found by what Foundry wrote down."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry_ray.cli.chaos.outside import Outside
from foundry_ray.cli.processes import NodeFile, members, send, title
from foundry_ray.core.errors import SandboxGone, Unavailable
from foundry_ray.core.processes import ProcessRecord, look_at
from foundry_ray.providers import processes as sandbox_processes
from foundry_ray.providers.local_files import read_record

REPLICA = "ray::ServeReplica"


@dataclass(frozen=True)
class Target:
    """Processes that die together, the one that is meant first."""

    what: str
    records: tuple[ProcessRecord, ...]

    @property
    def first(self) -> ProcessRecord:
        """The process that is meant."""
        return self.records[0]

    def kill(self) -> bool:
        """Send SIGKILL; return whether the one that is meant was there to take it."""
        hit = [send(record, signal.SIGKILL) for record in self.records]
        return hit[0]


def _node(outside: Outside) -> NodeFile:
    written = NodeFile.read(outside.places.node_file)
    if written is None:
        raise Unavailable("Nothing says what runs.")
    return written


def _service(outside: Outside, name: str) -> list[ProcessRecord]:
    written = _node(outside)
    for one in written.services:
        if one.name == name and one.running:
            return members(one.record, written.instance_id)
    return []


def actor(outside: Outside, key: str) -> Target | None:
    """Return the process that holds an entity's activation, if there is one."""
    rows = outside.query("SELECT host FROM rt_entity WHERE key = %s", key)
    return of_host(rows[0]["host"] if rows else None)


def of_host(host: dict[str, Any] | None) -> Target | None:
    """Return the process that a stored host names, if it lives."""
    record = look_at(int(host["pid"])) if host else None
    if record is None or host is None or record.start_ticks != host["started"]:
        return None
    return Target(title(record.pid), (record,))


def of_pid(pid: int) -> Target | None:
    """Return the process with this id, if it lives."""
    record = look_at(pid)
    return Target(title(pid), (record,)) if record else None


def replicas(outside: Outside) -> list[Target]:
    """Return the processes of the Serve applications: Ray's workers that say so."""
    # A worker that works on a call says so behind a dot.
    found = [Target(title(one.pid).partition(".")[0], (one,)) for one in _service(outside, "Ray")]
    return sorted((one for one in found if one.what.startswith(REPLICA)), key=lambda one: one.what)


def postgres(outside: Outside) -> Target | None:
    """Return PostgreSQL: its main process and every other one."""
    found = _service(outside, "PostgreSQL")
    # The main process leads the session.
    found.sort(key=lambda one: one.pid != one.session)
    return Target("postgres", tuple(found)) if found else None


def sandbox_agent(outside: Outside, sandbox: str, *, whole: bool) -> Target | None:
    """Return a sandbox's sandbox-agent, if it lives; *whole*: with shim, agent and all the rest."""
    directory: Path = outside.places.sandboxes / sandbox
    try:
        record = read_record(directory)
    except SandboxGone:
        return None
    if not record.is_serving or record.pid is None:
        return None
    first = look_at(record.pid)
    if first is None:
        return None
    if not whole:
        return Target("sandbox-agent", (first,))
    others = (look_at(one.pid) for one in sandbox_processes.members(record.mark))
    rest = tuple(one for one in others if one is not None and one.pid != first.pid)
    return Target("sandbox-agent, shim and agent", (first, *rest))
