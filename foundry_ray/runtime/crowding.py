"""Makes room on a full node: the longest idle activations leave for those that wait.

If none is idle, those that have lived longest give up their place between two turns, once
somebody has waited long: an entity with endless work must not keep the others out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from foundry_ray.core import keys
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.logging import get_logger
from foundry_ray.store.engine import Database, Transaction

log = get_logger("runtime")

# An activation that committed so recently is not idle: more may come at once.
IDLE_AFTER = timedelta(seconds=1)
# Whoever waits longer may have the place of one that has worked for as long.
FAIR_AFTER = timedelta(seconds=5)
YIELDS_AT_ONCE = 2
# How long an activation that was asked to leave counts as leaving.
LEAVES_WITHIN = timedelta(seconds=5)


@dataclass(frozen=True)
class Crowd:
    """Who lives in the cluster.

    Attributes:
        keys: The entities that have a process.
        room: How many more may have one; below zero when there are too many.
        step_waits: A running step waits for an entity that finds no room.
    """

    keys: frozenset[str]
    room: int
    step_waits: bool = False


class Places(Protocol):
    """What the kernel needs from whoever limits the number of activations."""

    async def crowd(self) -> Crowd | None:
        """Return who lives; None when their number is not limited."""

    def make_room(self, key: str) -> None:
        """Let an activation finish its turn and end, unless it works on a step."""


@dataclass(frozen=True)
class Occupant:
    """A live activation.

    Attributes:
        idle: Since its last commit.
        age: Since it was activated.
        due: It has mail that is due, or a step.
        working: It works on a step, and cannot leave.
    """

    key: str
    idle: timedelta
    age: timedelta
    due: bool
    working: bool


def leavers(occupants: Sequence[Occupant], waits: Sequence[timedelta], room: int) -> list[str]:
    """Return who should leave.

    Args:
        waits: How long each of those has waited that have due work and no activation.
        room: Places that are free, or will soon be.
    """
    needed = len(waits) - max(room, 0)
    if needed <= 0:
        return []
    idle = [one for one in occupants if not one.due and not one.working and one.idle >= IDLE_AFTER]
    idle.sort(key=lambda one: one.idle, reverse=True)
    chosen = [one.key for one in idle[:needed]]
    impatient = sum(wait >= FAIR_AFTER for wait in waits) - len(chosen) - max(room, 0)
    if impatient > 0:
        busy = [one for one in occupants if one.due and not one.working and one.age >= FAIR_AFTER]
        busy.sort(key=lambda one: one.age, reverse=True)
        chosen += [one.key for one in busy[: min(impatient, YIELDS_AT_ONCE)]]
    return chosen


class Relief:
    """Looks at the crowd with each sweep of ``app``."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._leaving: dict[str, datetime] = {}

    async def look(self, database: Database, roots: Collection[str], now: datetime) -> None:
        """Make room if the cluster is full and something below these *roots* waits."""
        try:
            crowd = await self._places.crowd()
        except Unavailable:  # nobody can start anything just now
            return
        if crowd is None or crowd.room > 0:
            return
        self._leaving = {
            key: since
            for key, since in self._leaving.items()
            if key in crowd.keys and now - since < LEAVES_WITHIN
        }
        async with database.transaction() as transaction:
            waits = await waiting(transaction, roots, crowd.keys, now)
            if crowd.step_waits:
                waits.append(timedelta(0))
            if not waits:
                return
            present = await occupants(transaction, crowd.keys - self._leaving.keys(), now)
        going = leavers(present, waits, crowd.room + len(self._leaving))
        for key in going:
            self._leaving[key] = now
            self._places.make_room(key)
        log.info(
            "crowded", live=len(crowd.keys), waiting=len(waits), leaving=len(self._leaving),
            longest_seconds=max(waits).total_seconds(),
        )  # fmt: skip


async def waiting(
    transaction: Transaction, roots: Collection[str], live: Collection[str], now: datetime
) -> list[timedelta]:
    """Return how long each entity has waited that has due work and no process."""
    rows = await transaction.fetch(
        "SELECT target, min(due_at) AS oldest FROM rt_mailbox WHERE root = ANY(%s)"
        " AND parked_at IS NULL AND due_at <= %s AND target <> ALL(%s) GROUP BY target",
        (list(roots), now, list(live)),
    )
    return [now - row["oldest"] for row in rows if keys.root_of(row["target"]) != row["target"]]


async def occupants(
    transaction: Transaction, live: Collection[str], now: datetime
) -> list[Occupant]:
    """Return those of the *live* entities that are activated and are no roots."""
    rows = await transaction.fetch(
        "SELECT e.key, now() - greatest(e.moved_at, e.activated_at) AS idle,"
        " now() - e.activated_at AS age,"
        " EXISTS (SELECT 1 FROM rt_mailbox m WHERE m.target = e.key AND m.parked_at IS NULL"
        " AND m.due_at <= %s) AS due,"
        " EXISTS (SELECT 1 FROM rt_run r WHERE r.entity_key = e.key"
        " AND r.claimed_epoch = e.epoch) AS working"
        " FROM rt_entity e WHERE e.key = ANY(%s) AND e.host IS NOT NULL"
        " AND e.parent_key IS NOT NULL",
        (now, list(live)),
    )
    return [Occupant(**row) for row in rows]
