"""Changes that people see, and a cursor over them that misses none.

Rows of concurrent transactions become visible out of order. Reading only rows
whose transaction is older than every running one, in (xid, id) order, is complete.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from foundry_ray.store.engine import Transaction

CHANNEL = "foundry_feed"
RETENTION_HOURS = 24


class Cursor(NamedTuple):
    """A place in the feed."""

    xid: int
    id: int

    def __str__(self) -> str:
        return f"{self.xid}.{self.id}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read what ``str`` wrote; ValueError if it is something else."""
        xid, _, row = text.partition(".")
        return cls(int(xid), int(row))


class Change(NamedTuple):
    """One change of one item."""

    cursor: Cursor
    topic: str
    kind: str
    item_id: str
    item_revision: int
    data: dict[str, Any] | None


async def present(transaction: Transaction) -> Cursor:
    """Return the cursor of a REPEATABLE READ snapshot: what it sees lies before."""
    row = await transaction.one(
        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin"
    )
    assert row is not None
    return Cursor(row["xmin"] - 1, 2**62)


async def changes(
    transaction: Transaction, after: Cursor, topics: list[str] | None = None, limit: int = 1000
) -> list[Change]:
    """Return the changes after a cursor, in order, for the topics (all if None)."""
    found = await transaction.fetch(
        "SELECT xid::text::bigint AS xid, id, topic, kind, item_id, item_revision, data"
        " FROM rt_feed"
        " WHERE (xid, id) > (%(xid)s::text::xid8, %(id)s)"
        " AND xid < pg_snapshot_xmin(pg_current_snapshot())"
        " AND (%(topics)s::text[] IS NULL OR topic = ANY(%(topics)s))"
        " ORDER BY xid, id LIMIT %(limit)s",
        {"xid": str(after.xid), "id": after.id, "topics": topics, "limit": limit},
    )
    return [
        Change(
            Cursor(row["xid"], row["id"]),
            row["topic"],
            row["kind"],
            row["item_id"],
            row["item_revision"],
            row["data"],
        )
        for row in found
    ]
