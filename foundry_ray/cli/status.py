"""``foundry status``: what runs, where it listens, what was recorded."""

from __future__ import annotations

from typing import Literal

import typer
from pydantic import AwareDatetime, BaseModel, ConfigDict

from foundry_ray.cli import disks
from foundry_ray.cli.disks import Disk
from foundry_ray.cli.output import DataDir, Json, say, say_json, table
from foundry_ray.cli.parts import Part
from foundry_ray.cli.places import Places
from foundry_ray.cli.ports import Listener, Ours, listening
from foundry_ray.cli.processes import NodeFile, Recorded, carrying, members, recorded, since
from foundry_ray.cli.services import ask, edge_url
from foundry_ray.core import settings as settings_module
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.settings import Settings


class Port(BaseModel):
    """An open port as `status` shows it; *reason* only where it is not on loopback."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    address: str
    port: int
    reason: str | None = None


class Process(BaseModel):
    """A recorded process and whether exactly it still runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int
    started_at: AwareDatetime
    state: Literal["running", "gone"]


class Status(BaseModel):
    """The answer of ``foundry status --json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["up", "down", "degraded"]
    parts: list[Part] = []
    urls: dict[str, str]
    ports: list[Port]
    processes: list[Process]
    disks: list[Disk] = []


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""

    @app.command()
    def status(data_dir: DataDir = None, as_json: Json = False) -> None:
        """Show what runs on a data directory; after `down`, what became of it."""
        if settings_module.resolve_data_dir(data_dir).exists():
            found = look(settings_module.load(data_dir))
        else:
            found = Status(state="down", urls={}, ports=[], processes=[])
        if as_json:
            say_json(found.model_dump(mode="json", exclude_none=True))
        else:
            _print(found)


def look(settings: Settings) -> Status:
    """Look at processes and ports now; nothing is changed."""
    written = NodeFile.read(Places(settings.data_dir).node_file)
    if written is None:
        return Status(state="down", urls={}, ports=[], processes=[])
    if not written.of_this_boot:
        known = (written.supervisor, *written.services, *written.others)
        processes = [_process(one, running=False) for one in known]
        return Status(state="down", urls={}, ports=[], processes=processes)
    sandboxes = carrying(settings.instance_id)
    found = [("", one) for s in written.services for one in members(s.record, written.instance_id)]
    found += [("", one) for one in sandboxes]
    leaders = (written.supervisor, *written.services)
    others = recorded(found, besides=(*leaders, *written.others))
    processes = [_process(one) for one in (*leaders, *written.others, *others)]
    running = [one for one in processes if one.state == "running"]
    sessions = {service.session for service in written.services}
    sandboxed = {one.pid for one in sandboxes if one.session not in sessions}
    ports = listening(
        [Ours(one.pid, one.pid in sandboxed) for one in running],
        named=written.ports | {written.edge[1]: "edge"},
        edge=written.edge,
    )
    return Status(
        state=_state(settings, written, any_running=bool(running)),
        parts=list(written.parts) if written.supervisor.running else [],
        urls=written.urls if running else {},
        ports=[_port(one) for one in ports],
        processes=processes,
        disks=disks.look(settings),
    )


def _state(
    settings: Settings, written: NodeFile, *, any_running: bool
) -> Literal["up", "down", "degraded"]:
    if not any_running:
        return "down"
    whole = written.supervisor.running and all(one.running for one in written.services)
    edge = settings.model_copy(update={"host": written.edge[0], "port": written.edge[1]})
    if written.phase == "up" and whole and ask(edge_url(edge) + "/readyz") == 200:
        return "up"
    return "degraded"


def _process(one: Recorded, *, running: bool | None = None) -> Process:
    alive = one.running if running is None else running
    return Process(
        name=one.name,
        pid=one.pid,
        started_at=one.started_at,
        state="running" if alive else "gone",
    )


def _port(one: Listener) -> Port:
    return Port(name=one.name, address=one.address, port=one.port, reason=one.reason)


def _print(found: Status) -> None:
    say(found.state)
    for name, url in found.urls.items():
        say(f"  {name:<14} {url}")
    for disk in found.disks:
        say(f"  {'disk':<14} {disk.free_mib:,} MiB free at {disk.path}")
        if disk.hint:
            say(f"  {'':<14} -> {disk.hint}")
    now = SystemClock().now()
    if found.parts:
        say()
        table(
            [
                (one.name, one.state, since(one.since, now), str(one.restarts), one.trouble)
                for one in found.parts
            ],
            ("part", "state", "for", "restarts", "last trouble"),
        )
    if found.ports:
        say()
        rows = [(one.name, f"{one.address}:{one.port}", one.reason or "") for one in found.ports]
        table(rows, ("port", "address", "reason"))
    if found.processes:
        say()
        table(
            [
                (one.name, str(one.pid), str(one.state), since(one.started_at, now))
                for one in found.processes
            ],
            ("process", "pid", "state", "age"),
        )
