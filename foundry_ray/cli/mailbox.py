"""``foundry mailbox``: what waits for entities, and what becomes of parked messages.

A message that failed too often is parked: out of the way until somebody decides. These
verbs change rows and create no actor; the supervisor finds what is due within seconds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from foundry_ray.cli.output import DataDir, Json, say, say_json, table
from foundry_ray.cli.processes import since
from foundry_ray.core import settings as settings_module
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import FoundryError, InvalidInput, NotFound, WrongState

SHOWN = 200
LIST_PARKED = "foundry mailbox ls --parked"


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    group = typer.Typer(help="What waits for actors; parked messages.", no_args_is_help=True)

    @group.command("ls")
    def ls(
        key: Annotated[str | None, typer.Argument(help="One actor; else all.")] = None,
        parked: Annotated[bool, typer.Option("--parked", help="Only what is parked.")] = False,
        limit: Annotated[int, typer.Option(min=1, help="Lines at most.")] = SHOWN,
        data_dir: DataDir = None,
        json_: Json = False,
    ) -> None:
        """List messages, timers and steps that are not done, oldest first.

        due: a supervisor rings the actor within seconds. delayed: failed, and tried again
        later. timer: its time has not come. parked: failed too often, see `retry` and `drop`.
        """
        from foundry_ray.cli.mail import with_database

        now = SystemClock().now()
        found = with_database(
            settings_module.load(data_dir), lambda d: _letters(d, now, key, parked, limit + 1)
        )
        shown, more = found[:limit], len(found) > limit
        if json_:
            say_json({"items": [_plain(letter) for letter in shown], "more": more})
        elif not shown:
            say("nothing is parked" if parked else "nothing waits")
        else:
            head = ("id", "actor", "what", "sender", "state", "age", "attempts", "last error")
            table([_row(letter, now) for letter in shown], head)
            if more:
                say(f"  and more: --limit {limit * 10}")

    @group.command("retry")
    def retry(
        letter_id: Annotated[int | None, typer.Argument(metavar="ID", help="One.")] = None,
        every: Annotated[bool, typer.Option("--all", help="Every parked message.")] = False,
        data_dir: DataDir = None,
    ) -> None:
        """Make a parked message due again, with fresh attempts.

        It is handled out of order: what its sender sent later was handled before it. A
        command's answer is taken back until the new attempts give the next one.
        """
        from foundry_ray.cli.mail import with_database

        if (letter_id is None) != every:
            raise typer.BadParameter("say one ID, or --all")
        again = with_database(settings_module.load(data_dir), lambda d: _retry(d, letter_id))
        for letter in again:
            say(f"due again: message {letter['id']}, {_from_to(letter)}")
        if again:
            say("handled out of order: later messages of the same sender were handled before")
        else:
            say("nothing is parked")

    @group.command("drop")
    def drop(
        letter_id: Annotated[int, typer.Argument(metavar="ID")],
        yes: Annotated[bool, typer.Option("--yes", help="Do it: it cannot be undone.")] = False,
        data_dir: DataDir = None,
    ) -> None:
        """Delete a parked message for good; who sent it as a command gets the error `dropped`.

        Only parked messages: a step is never parked, its run is, and that belongs to its
        task. The audit log keeps what was dropped, but not the message itself.
        """
        from foundry_ray.cli.mail import with_database

        gone = with_database(settings_module.load(data_dir), lambda d: _drop(d, letter_id, yes))
        error = gone["error"] or {}
        say(
            f"{SystemClock().now():%Y-%m-%dT%H:%M:%SZ} dropped message {gone['id']},"
            f" {_from_to(gone)}, after {gone['attempts']} attempts"
            f" ({error.get('code', 'no error')}: {error.get('message', '')})"
        )

    app.add_typer(group, name="mailbox")


async def _letters(
    database: Any, now: datetime, key: str | None, parked: bool, limit: int
) -> list[dict[str, Any]]:
    from foundry_ray.runtime import mailbox

    async with database.transaction() as transaction:
        return await mailbox.listed(transaction, now, target=key, parked=parked, limit=limit)


async def _retry(database: Any, letter_id: int | None) -> list[dict[str, Any]]:
    from foundry_ray.runtime import mailbox

    async with database.transaction() as transaction:
        again = await mailbox.retry(transaction, letter_id, SystemClock().now())
        if letter_id is not None and not again:
            raise await _why_not(transaction, letter_id)
    return again


async def _drop(database: Any, letter_id: int, yes: bool) -> dict[str, Any]:
    from foundry_ray.runtime import mailbox

    async with database.transaction() as transaction:
        if not yes:
            raise await _why_not(transaction, letter_id)
        gone = await mailbox.drop(transaction, letter_id, SystemClock().now())
        if gone is None:
            raise await _why_not(transaction, letter_id)
    return gone


async def _why_not(transaction: Any, letter_id: int) -> FoundryError:
    """Return why a message was neither retried nor dropped."""
    row = await transaction.one(
        "SELECT target, sender, kind, run_id, body ->> 'step' AS step, parked_at"
        " FROM rt_mailbox WHERE id = %s",
        (letter_id,),
    )
    if row is None:
        return NotFound(f"There is no message {letter_id}, or no more.", hint=LIST_PARKED)
    if row["run_id"] is not None:
        return WrongState(
            f"{letter_id} is the step {row['step']} of a run that is not over.",
            hint=f"foundry actors show {row['target']}",
        )
    if row["parked_at"] is None:
        return WrongState(
            f"Message {letter_id} is not parked: it is handled in its turn.",
            hint=f"foundry actors wake {row['target']} tries at once what failed",
        )
    return InvalidInput(
        f"This would delete message {letter_id}, {_from_to(row)}, for good.",
        hint=f"foundry mailbox drop {letter_id} --yes",
    )


def _from_to(letter: dict[str, Any]) -> str:
    return f"{letter['kind']} from {letter['sender']} to {letter['target']}"


def _plain(letter: dict[str, Any]) -> dict[str, Any]:
    times = ("due_at", "created_at", "parked_at")
    return {k: v.isoformat() if k in times and v else v for k, v in letter.items()}


def _row(letter: dict[str, Any], now: datetime) -> list[str]:
    what = f"step {letter['step']}" if letter["run_id"] else letter["kind"]
    error = letter["error"]
    return [
        str(letter["id"]), letter["target"], what, letter["sender"], letter["state"],
        since(letter["created_at"], now), str(letter["attempts"]),
        f"{error['code']}: {error['message']}" if error else "",
    ]  # fmt: skip
