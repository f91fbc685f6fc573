"""``foundry actors``: which entities live in a process now, and what waits for them.

All of it by the database alone: neither looking nor waking starts a process from here.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from foundry_ray.cli.output import DataDir, Json, say, say_json, table
from foundry_ray.cli.processes import since
from foundry_ray.core import settings as settings_module
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import NotFound

Key = Annotated[str, typer.Argument(metavar="KEY", help="As in `foundry actors ls --all`.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    group = typer.Typer(help="Live actors and what waits for them.", no_args_is_help=True)

    @group.callback()
    def actors() -> None:
        pass

    @group.command("ls")
    def ls(
        idle: Annotated[bool, typer.Option("--all", help="Idle entities too.")] = False,
        data_dir: DataDir = None,
        json_: Json = False,
    ) -> None:
        """List the entities that live in a process, or have something to do."""
        from foundry_ray.cli.mail import with_database

        now = SystemClock().now()
        found = with_database(settings_module.load(data_dir), lambda d: _entities(d, now, idle))
        if json_:
            say_json({"items": [_plain(entity) for entity in found]})
        elif not found:
            say("no actor lives")
        else:
            head = ("actor", "kind", "state", "process", "age", "epoch", "commits", "waiting")
            table([_row(entity, now) for entity in found], head)

    @group.command("show")
    def show(key: Key, data_dir: DataDir = None, json_: Json = False) -> None:
        """Show one actor: where it lives, what waits for it, and its runs."""
        from foundry_ray.cli.mail import with_database

        now = SystemClock().now()
        found = with_database(settings_module.load(data_dir), lambda d: _entity(d, key, now))
        if json_:
            say_json(_plain(found))
            return
        say(found["key"])
        for name, value in _facts(found, now):
            say(f"  {name:<10} {value}")
        if found["runs"]:
            head = ("run", "workflow", "step", "state", "attempt", "deadline", "last error")
            say()
            table([_run(run, now) for run in found["runs"]], head)

    @group.command("wake")
    def wake(key: Key, data_dir: DataDir = None) -> None:
        """Try at once what failed and waits for its next attempt.

        Messages and steps that are tried again later become due now; the supervisor rings
        whoever has something due within seconds. This starts no actor by itself, counts as
        an attempt as always, and lets timers keep their time. Parked messages are not
        touched: see `foundry mailbox retry`. With nothing to try again it says so.
        """
        from foundry_ray.cli.mail import with_database

        now = SystemClock().now()
        settings = settings_module.load(data_dir)
        hastened, seen = with_database(settings, lambda d: _hasten(d, key, now))
        if hastened:
            say(f"due now: {hastened} of {key} that waited for another attempt")
        elif seen["pending"]:
            say(f"{seen['pending']} due already: the supervisor rings {key} by itself")
        else:
            say(f"nothing to do: nothing of {key} waits for another attempt")
        if seen["timers"]:
            say(f"  {seen['timers']} timers keep their time")
        if seen["parked"]:
            say(f"  {seen['parked']} parked: foundry mailbox ls {key} --parked")

    app.add_typer(group, name="actors")


async def _entities(database: Any, now: datetime, idle: bool) -> list[dict[str, Any]]:
    from foundry_ray.runtime import supervision

    async with database.transaction() as transaction:
        return await supervision.entities(transaction, now, idle=idle)


async def _entity(database: Any, key: str, now: datetime) -> dict[str, Any]:
    from foundry_ray.runtime import supervision

    async with database.transaction(snapshot=True) as transaction:
        found = await supervision.entity(transaction, key, now)
    if found is None:
        raise NotFound(f"There is no actor {key!r}.", hint="foundry actors ls --all")
    return found


async def _hasten(database: Any, key: str, now: datetime) -> tuple[int, dict[str, Any]]:
    from foundry_ray.runtime import mailbox

    seen = await _entity(database, key, now)
    async with database.transaction() as transaction:
        return await mailbox.hasten(transaction, key, now), seen


def _plain(value: Any) -> Any:
    """Return *value* with instants as ISO text, as in the HTTP interface."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _facts(entity: dict[str, Any], now: datetime) -> list[tuple[str, str]]:
    lives = f"pid {entity['pid']} on {entity['node']}" if entity["pid"] else "in no process"
    activated = "never"
    if (then := entity["activated_at"]) is not None:
        activated = f"{then:%Y-%m-%d %H:%M:%S} UTC, {since(then, now)} ago"
    waiting = f"{entity['pending']} due"
    if entity["oldest_seconds"] is not None:
        waiting += f" (the oldest for {entity['oldest_seconds']:.0f} s)"
    waiting += f", {entity['delayed']} to be tried again, {entity['timers']} timers"
    return [
        ("kind", entity["kind"]),
        ("state", entity["state"]),
        ("lives", lives),
        ("activated", activated),
        ("epoch", str(entity["epoch"])),
        ("revision", str(entity["revision"])),
        ("parent", entity["parent"] or "none: it is a root"),
        ("mailbox", f"{waiting}, {entity['parked']} parked"),
        ("runs", "" if entity["runs"] else "none"),
    ]


def _run(run: dict[str, Any], now: datetime) -> list[str]:
    state, due, deadline, error = run["state"], run["due_at"], run["deadline"], run["error"]
    if state == "pending" and due is not None and due > now:
        state += f", again in {(due - now).total_seconds():.0f} s"
    return [
        run["id"], run["workflow"], run["step"], state, str(run["attempt"]),
        f"{deadline:%Y-%m-%d %H:%M:%S}" if deadline else "",
        f"{error['code']}: {error['message']}" if error else "",
    ]  # fmt: skip


def _row(entity: dict[str, Any], now: datetime) -> list[str]:
    waiting = str(entity["pending"])
    if entity["oldest_seconds"] is not None:
        waiting += f", for {entity['oldest_seconds']:.0f} s"
    if entity["parked"]:
        waiting += f", {entity['parked']} parked"
    live = entity["state"] == "live"
    age = since(entity["activated_at"], now) if live and entity["activated_at"] else ""
    pid = str(entity["pid"] or "")
    numbers = [str(entity["epoch"]), str(entity["revision"])]
    return [entity["key"], entity["kind"], entity["state"], pid, age, *numbers, waiting]
