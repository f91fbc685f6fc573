"""The ordered durable mailbox: put, choose, consume, delay, park; and what operators do to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg.types.json import Jsonb

from foundry_ray.core import keys
from foundry_ray.core.errors import Dropped
from foundry_ray.core.logging import request_id
from foundry_ray.core.messages import IssueResolved, Lane, Message
from foundry_ray.core.retry import RetryPolicy
from foundry_ray.runtime.audit import OPERATOR, entry
from foundry_ray.runtime.turn import problem
from foundry_ray.store.engine import Transaction

# A message is tried this often, also when it kills its process; then it is parked.
PATIENCE = RetryPolicy(
    max_attempts=5, first_delay=timedelta(seconds=0.2), max_delay=timedelta(seconds=10)
)
# Pending rows are read in batches of this size; the order among them is kept.
BATCH = 64


@dataclass(frozen=True)
class Letter:
    """One row of a mailbox."""

    id: int
    target: str
    sender: str
    lane: int
    kind: str
    body: dict[str, Any]
    reply_to: str | None
    timer: str | None
    run_id: str | None
    attempts: int
    due_at: datetime
    request_id: str | None = None


async def put(
    transaction: Transaction,
    target: str,
    message: Message,
    *,
    sender: str,
    now: datetime,
    due_at: datetime | None = None,
    reply_to: str | None = None,
    timer: str | None = None,
) -> None:
    """Insert a message; one with the same timer name is replaced.

    It carries the request id that is bound here, so that logs tell what came of a request.
    """
    keys.kind_of(target)
    await transaction.execute(
        "INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, reply_to, timer,"
        " attempts, due_at, created_at, request_id)"
        " VALUES (%(target)s, %(root)s, %(sender)s, %(lane)s, %(kind)s, %(body)s, %(reply_to)s,"
        " %(timer)s, 0, %(due_at)s, %(now)s, %(request_id)s)"
        " ON CONFLICT (target, timer) WHERE timer IS NOT NULL DO UPDATE SET"
        " kind = excluded.kind, body = excluded.body, due_at = excluded.due_at, attempts = 0,"
        " request_id = excluded.request_id",
        {
            "target": target,
            "root": keys.root_of(target),
            "sender": sender,
            "lane": int(message.lane),
            "kind": message.kind,
            "body": Jsonb(message.model_dump(mode="json")),
            "reply_to": reply_to,
            "timer": timer,
            "due_at": due_at or now,
            "now": now,
            "request_id": request_id(),
        },
    )


async def put_step(
    transaction: Transaction, entity: str, run_id: str, name: str, now: datetime
) -> None:
    """Insert the row that says: this run's step is due."""
    await transaction.execute(
        "INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, run_id, attempts,"
        " due_at, created_at, request_id)"
        " VALUES (%s, %s, %s, %s, 'rt.step', %s, %s, 0, %s, %s, %s)",
        (
            entity,
            keys.root_of(entity),
            entity,
            Lane.STEP,
            Jsonb({"step": name}),
            run_id,
            now,
            now,
            request_id(),
        ),
    )


async def pending(transaction: Transaction, target: str, limit: int = BATCH) -> list[Letter]:
    """Return what waits for an entity, in the order in which it may be handled.

    At most *limit* messages and as many steps, so that a long queue hides no step.
    """
    columns = "id, target, sender, lane, kind, body, reply_to, timer, run_id, attempts, due_at,"
    columns += " request_id"
    which = "FROM rt_mailbox WHERE target = %(target)s AND parked_at IS NULL AND run_id"
    rows = await transaction.fetch(
        f"(SELECT {columns} {which} IS NULL ORDER BY lane, id LIMIT %(limit)s)"
        f" UNION ALL (SELECT {columns} {which} IS NOT NULL ORDER BY id LIMIT %(limit)s)",
        {"target": target, "limit": limit},
    )
    return [Letter(**row) for row in rows]


async def waiting(transaction: Transaction, target: str, number: int) -> bool:
    """Return whether at least *number* messages and steps wait for an entity; timers do not."""
    row = await transaction.one(
        "SELECT 1 FROM rt_mailbox WHERE target = %s AND parked_at IS NULL AND timer IS NULL"
        " ORDER BY id OFFSET %s LIMIT 1",
        (target, number - 1),
    )
    return row is not None


async def waiting_below(transaction: Transaction, root: str, number: int, now: datetime) -> bool:
    """Return whether at least *number* messages, timers and steps of a tree are due."""
    row = await transaction.one(
        "SELECT 1 FROM rt_mailbox WHERE root = %s AND parked_at IS NULL AND due_at <= %s"
        " ORDER BY due_at OFFSET %s LIMIT 1",
        (root, now, number - 1),
    )
    return row is not None


@dataclass(frozen=True)
class Choice:
    """What to do now, and when to look again if nothing comes before."""

    message: Letter | None
    steps: tuple[Letter, ...]
    look_again: datetime | None


def choose(
    letters: Sequence[Letter], now: datetime, busy: Collection[str], held: dict[str, datetime]
) -> Choice:
    """Choose the next message to handle and the steps to begin; pure.

    FIFO per sender: a message that waits for another attempt holds back only later
    messages of its own sender. A timer (not due, never tried) holds back nobody.

    Args:
        letters: Pending rows in lane and id order.
        now: The present instant.
        busy: Runs whose step is being worked on.
        held: Runs claimed by an older activation that may still be working, with the
            instant from which the step may run again.
    """
    message: Letter | None = None
    steps: list[Letter] = []
    later: list[datetime] = []
    blocked: set[str] = set()
    for letter in letters:
        if letter.run_id is not None:
            if letter.run_id in busy:
                continue
            ready = max(letter.due_at, held.get(letter.run_id, letter.due_at))
            if ready <= now:
                steps.append(letter)
            else:
                later.append(ready)
        elif letter.due_at > now:
            later.append(letter.due_at)
            if letter.timer is None:
                blocked.add(letter.sender)
        elif message is None and letter.sender not in blocked:
            message = letter
    return Choice(message, tuple(steps), min(later, default=None))


async def consume(transaction: Transaction, letter_id: int) -> bool:
    """Delete the row; False when it was already consumed."""
    return await transaction.execute("DELETE FROM rt_mailbox WHERE id = %s", (letter_id,)) == 1


async def count(transaction: Transaction, letter_id: int, attempts: int) -> None:
    """Count an attempt that is made now."""
    await transaction.execute(
        "UPDATE rt_mailbox SET attempts = %s WHERE id = %s", (attempts, letter_id)
    )


async def delay(
    transaction: Transaction,
    letter_id: int,
    attempts: int,
    due_at: datetime,
    error: dict[str, Any],
) -> None:
    """Keep a failed attempt, the how-manieth it was; the row is due again later."""
    await transaction.execute(
        "UPDATE rt_mailbox SET attempts = %s, due_at = %s, error = %s WHERE id = %s",
        (attempts, due_at, Jsonb(error), letter_id),
    )


async def park(
    transaction: Transaction,
    letter_id: int,
    attempts: int,
    now: datetime,
    error: dict[str, Any],
) -> None:
    """Take the row out of the way until somebody retries or drops it."""
    await transaction.execute(
        "UPDATE rt_mailbox SET attempts = %s, parked_at = %s, error = %s, timer = NULL"
        " WHERE id = %s",
        (attempts, now, Jsonb(error), letter_id),
    )


async def failing(transaction: Transaction, target: str, kind: str) -> bool:
    """Return whether a message of this kind is there whose last attempt failed.

    It is parked, or is to be tried again, by an operator's wish or by itself.
    """
    row = await transaction.one(
        "SELECT 1 FROM rt_mailbox WHERE target = %s AND kind = %s AND error IS NOT NULL LIMIT 1",
        (target, kind),
    )
    return row is not None


# -- what an operator does ---------------------------------------------------------
#
# No turn ever touches a parked row, and each change says that the row must be parked:
# so nothing here races a turn, and of two operators one finds nothing to do. The audit log
# of the tree says in the same commit what was done.


async def listed(
    transaction: Transaction, now: datetime, *, target: str | None, parked: bool, limit: int
) -> list[dict[str, Any]]:
    """Return what lies in mailboxes, oldest first; never a body, which may hold a prompt.

    Args:
        target: Only the mail of this entity.
        parked: Only what is parked.
    """
    return await transaction.fetch(
        "SELECT id, target, sender, kind, run_id, timer,"
        " CASE WHEN run_id IS NOT NULL THEN body ->> 'step' END AS step,"
        " CASE WHEN parked_at IS NOT NULL THEN 'parked' WHEN due_at <= %(now)s THEN 'due'"
        " WHEN attempts > 0 THEN 'delayed' ELSE 'timer' END AS state,"
        " attempts, error, due_at, created_at, parked_at FROM rt_mailbox"
        " WHERE (%(target)s::text IS NULL OR target = %(target)s)"
        " AND (NOT %(parked)s OR parked_at IS NOT NULL) ORDER BY id LIMIT %(limit)s",
        {"now": now, "target": target, "parked": parked, "limit": limit},
    )


async def hasten(transaction: Transaction, target: str, now: datetime) -> int:
    """Make due what failed and waits for its next attempt; timers keep their time.

    Returns:
        How many messages and steps became due.
    """
    return await transaction.execute(
        "UPDATE rt_mailbox SET due_at = %(now)s WHERE target = %(target)s"
        " AND parked_at IS NULL AND attempts > 0 AND due_at > %(now)s",
        {"target": target, "now": now},
    )


async def retry(
    transaction: Transaction, letter_id: int | None, now: datetime
) -> list[dict[str, Any]]:
    """Make a parked message due again with fresh attempts; all of them without an id.

    Later messages of its sender were handled meanwhile. A command's answer, the error for
    which it was parked, is taken back: the next answer is that of the new attempts.

    Returns:
        What is due again: id, target, kind, sender.
    """
    again = await transaction.fetch(
        "WITH again AS (UPDATE rt_mailbox SET parked_at = NULL, attempts = 0, due_at = %(now)s"
        " WHERE parked_at IS NOT NULL AND (%(id)s::bigint IS NULL OR id = %(id)s)"
        " RETURNING id, target, kind, sender, reply_to),"
        " opened AS (UPDATE rt_inbox_seen SET reply = NULL, replied_at = NULL"
        " WHERE command_id IN (SELECT reply_to FROM again) AND reply ->> 'status' = '0')"
        " SELECT id, target, kind, sender FROM again ORDER BY id",
        {"id": letter_id, "now": now},
    )
    await transaction.insert(
        [entry(row["target"], OPERATOR, "message_retried", dict(row), now) for row in again]
    )
    return again


async def drop(transaction: Transaction, letter_id: int, now: datetime) -> dict[str, Any] | None:
    """Delete a parked message for good.

    A command is answered with ``dropped``, so that nobody waits for it. With the last failed
    message of its kind the entity's issue is solved: the work is not wanted any more.

    Returns:
        What was dropped: id, target, kind, sender, attempts, error; None when there was no
        parked message with this id. A step is never parked (its run is), so it stays.
    """
    row = await transaction.one(
        "DELETE FROM rt_mailbox WHERE id = %s AND parked_at IS NOT NULL AND run_id IS NULL"
        " RETURNING id, target, kind, sender, attempts, error, reply_to",
        (letter_id,),
    )
    if row is None:
        return None
    target, kind = row["target"], row["kind"]
    kept = {name: row[name] for name in ("id", "target", "kind", "sender", "attempts")}
    kept["code"] = row["error"]["code"] if row["error"] else None
    await transaction.insert([entry(target, OPERATOR, "message_dropped", kept, now)])
    reply = {"status": 0, "body": problem(Dropped(target=target, message_kind=kind))}
    await transaction.execute(
        "UPDATE rt_inbox_seen SET reply = %s, replied_at = %s"
        " WHERE command_id = %s AND (reply IS NULL OR reply ->> 'status' = '0')",
        (Jsonb(reply), now, row.pop("reply_to")),
    )
    if not await failing(transaction, target, kind):
        solved = IssueResolved(entity=target, workflow=kind)
        await put(transaction, keys.root_of(target), solved, sender=OPERATOR.login, now=now)
    return row
