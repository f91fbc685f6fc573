"""The one commit of a turn: fence, consume, state, the rest; then nothing or all of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from psycopg.types.json import Jsonb

from foundry_ray.core.errors import FoundryError
from foundry_ray.runtime import mailbox
from foundry_ray.runtime.effects import Effects, FeedItem, Reply, RunChange
from foundry_ray.runtime.workflow import Done, Go
from foundry_ray.store.engine import Transaction


class Fenced(FoundryError):
    """A newer activation of this entity exists; this one must stop."""

    code = "fenced"


class AlreadyApplied(FoundryError):
    """The message was consumed before."""

    code = "already_applied"


async def fence(transaction: Transaction, key: str, epoch: int) -> None:
    """Lock the entity's row for this commit.

    Raises:
        Fenced: The epoch is not the present one; drop the activation.
    """
    touched = await transaction.execute(
        "UPDATE rt_entity SET revision = revision + 1, moved_at = now()"
        " WHERE key = %s AND epoch = %s",
        (key, epoch),
    )
    if touched != 1:
        raise Fenced(key=key, epoch=epoch)


async def consume(transaction: Transaction, letter_id: int) -> None:
    """Take the message out of the mailbox; AlreadyApplied when it is not there."""
    if not await mailbox.consume(transaction, letter_id):
        raise AlreadyApplied(letter=letter_id)


async def write(transaction: Transaction, key: str, effects: Effects, now: datetime) -> None:
    """Write what a turn collected; targets in the order of their keys, against deadlocks."""
    await _rows(transaction, effects)
    for name in effects.forget:
        await transaction.execute(
            "DELETE FROM rt_mailbox WHERE target = %s AND timer = %s", (key, name)
        )
    for run_id in effects.cancelled:
        await transaction.execute("DELETE FROM rt_mailbox WHERE run_id = %s", (run_id,))
        await transaction.execute("DELETE FROM rt_run WHERE id = %s", (run_id,))
    for change in effects.runs:
        if change.run.id not in effects.cancelled:
            await _run(transaction, key, change, now)
    for mail in sorted(effects.mail, key=lambda m: m.target):
        await mailbox.put(
            transaction,
            mail.target,
            mail.message,
            sender=mail.sender,
            now=now,
            due_at=mail.due_at,
            timer=mail.timer,
        )
    await _feed(transaction, effects.feed, now)
    for reply in effects.replies:
        await _reply(transaction, reply, now)


async def _rows(transaction: Transaction, effects: Effects) -> None:
    for (kind, _), group in groupby(effects.rows, key=lambda e: (e[0], type(e[1]))):
        rows = [row for _, row in group]
        if kind == "insert":
            await transaction.insert(rows)
            continue
        for row in rows:
            await (transaction.put(row) if kind == "put" else transaction.delete(row))
    for row_type, named in effects.drops:
        await transaction.drop(row_type, named)


async def _run(transaction: Transaction, key: str, change: RunChange, now: datetime) -> None:
    run, following = change.run, change.next
    # A run has one step at a time: one that was still due is not wanted any more.
    await transaction.execute("DELETE FROM rt_mailbox WHERE run_id = %s", (run.id,))
    if isinstance(following, Done):
        await transaction.execute("DELETE FROM rt_run WHERE id = %s", (run.id,))
        return
    given = run.step_input
    values = {
        "id": run.id,
        "entity_key": key,
        "kind": run.kind,
        "version": change.workflow.version,
        "input": Jsonb(run.input.model_dump(mode="json")),
        "step": run.step,
        "step_input": Jsonb(given),
        "state": _state(change),
        "reported": run.reported,
        "undo": Jsonb(run.undo),
        "undoing": run.undoing,
        "let_end": change.let_end,
        "now": now,
    }
    await transaction.execute(
        "INSERT INTO rt_run (id, entity_key, kind, version, input, step, step_input, state,"
        " attempt, reported, undo, undoing, created_at, updated_at)"
        " VALUES (%(id)s, %(entity_key)s, %(kind)s, %(version)s, %(input)s, %(step)s,"
        " %(step_input)s, %(state)s, 0, %(reported)s, %(undo)s, %(undoing)s, %(now)s, %(now)s)"
        " ON CONFLICT (id) DO UPDATE SET step = excluded.step, step_input = excluded.step_input,"
        " state = excluded.state, attempt = 0, reported = excluded.reported,"
        " undo = excluded.undo, undoing = excluded.undoing,"
        # A step that is let end keeps its claim: nobody begins the next one meanwhile.
        " claimed_epoch = CASE WHEN %(let_end)s THEN rt_run.claimed_epoch END,"
        " deadline = CASE WHEN %(let_end)s THEN rt_run.deadline END,"
        " error = NULL, updated_at = excluded.updated_at",
        values,
    )
    if isinstance(following, Go):
        await mailbox.put_step(transaction, key, run.id, run.step, now)


def _state(change: RunChange) -> str:
    if change.run.parked:
        return "parked"
    return "pending" if isinstance(change.next, Go) else "waiting"


async def _feed(transaction: Transaction, items: Sequence[FeedItem], now: datetime) -> None:
    for item in items:
        await transaction.execute(
            "INSERT INTO rt_feed (topic, kind, item_id, item_revision, data, at)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (
                item.topic,
                item.kind,
                item.item_id,
                item.revision,
                None if item.data is None else Jsonb(item.data),
                now,
            ),
        )


async def _reply(transaction: Transaction, reply: Reply, now: datetime) -> None:
    stored: dict[str, Any] = {"status": reply.status, "body": reply.body}
    await transaction.execute(
        "UPDATE rt_inbox_seen SET reply = %s, replied_at = %s"
        " WHERE command_id = %s AND replied_at IS NULL",
        (Jsonb(stored), now, reply.command_id),
    )
