"""Where a client is in the feed, topic by topic.

A snapshot of the database sees some transactions and not others, and not simply those
below a number. So a place after a snapshot remembers exactly what it saw; as soon as the
feed has gone past all of that, a plain position says the same.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple

from foundry_ray.runtime.feed import RETENTION_HOURS, Cursor
from foundry_ray.store.engine import Transaction

# Somewhat less than the feed keeps: a row is as old as its transaction's begin.
KEPT = timedelta(hours=RETENTION_HOURS) - timedelta(minutes=5)


class Sight(NamedTuple):
    """Which transactions a database snapshot sees (``pg_snapshot``)."""

    xmin: int
    xmax: int
    running: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Sight:
        """Read PostgreSQL's text ``xmin:xmax:xid,xid``; ValueError if it is something else."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), tuple(int(x) for x in running.split(",") if x))

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.running))}"

    def sees(self, xid: int) -> bool:
        """Return whether what this transaction wrote is in the snapshot."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


async def sight(transaction: Transaction) -> Sight:
    """Return what a REPEATABLE READ transaction sees."""
    row = await transaction.one("SELECT pg_current_snapshot()::text AS seen")
    assert row is not None
    return Sight.parse(row["seen"])


@dataclass(frozen=True)
class Place:
    """How far a client has read a topic.

    Attributes:
        at: Everything up to here is read.
        sight: What is read beyond that, if it began with a snapshot.
        when: Seconds since the epoch at which the place was current.
    """

    at: Cursor
    sight: Sight | None
    when: int

    @classmethod
    def after(cls, seen: Sight, when: int) -> Place:
        """Return the place of who holds a snapshot."""
        return cls(before(seen.xmin), seen, when)

    def wants(self, row: Cursor) -> bool:
        """Return whether a row of the feed is news here."""
        return row > self.at and not (self.sight is not None and self.sight.sees(row.xid))

    def move(self, row: Cursor, when: int) -> Place:
        """Return the place after everything up to *row* was read."""
        if row <= self.at:
            return replace(self, when=when)
        done = self.sight is not None and row.xid >= self.sight.xmax
        return Place(row, None if done else self.sight, when)


def before(xid: int) -> Cursor:
    """Return the position before everything that transaction *xid* wrote."""
    return Cursor(xid - 1, 2**62)


def name_of(topic: str) -> str:
    """Return the short name under which a cursor names a topic."""
    digest = hashlib.sha256(topic.encode()).digest()[:9]
    return base64.urlsafe_b64encode(digest).decode()


def write(places: Iterable[tuple[str, Place]]) -> str:
    """Return the cursor that says how far each topic (by its short name) was read."""
    groups: dict[Place, list[str]] = {}
    for name, place in places:
        groups.setdefault(place, []).append(name)
    said = [
        [p.at.xid, p.at.id, p.when, str(p.sight) if p.sight else "", names]
        for p, names in groups.items()
    ]
    text = json.dumps(said, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read(cursor: str) -> dict[str, Place]:
    """Return how far each topic was read; empty for what nobody of us wrote."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        said: Any = json.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
        return {
            str(name): Place(
                Cursor(int(xid), int(row)), Sight.parse(seen) if seen else None, int(when)
            )
            for xid, row, when, seen, names in said
            for name in names
        }
    except (ValueError, TypeError, RecursionError):
        return {}
