"""``foundry actors``: which entities live in a process now, and what waits for them.

Read from the database alone: looking must not start anything.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from foundry_ray.cli.output import DataDir, Json, say, say_json, table
from foundry_ray.cli.processes import since
from foundry_ray.core import settings as settings_module
from foundry_ray.core.clock import SystemClock


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

    app.add_typer(group, name="actors")


async def _entities(database: Any, now: datetime, idle: bool) -> list[dict[str, Any]]:
    from foundry_ray.runtime import supervision

    async with database.transaction() as transaction:
        return await supervision.entities(transaction, now, idle=idle)


def _plain(entity: dict[str, Any]) -> dict[str, Any]:
    since_then = entity["activated_at"]
    return {**entity, "activated_at": since_then.isoformat() if since_then else None}


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
