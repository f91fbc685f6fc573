"""What supervisors look at: who has due work, and who does not move.

Parent and child are data. Never a call per child: one query per supervisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from foundry_ray.store.engine import Transaction

# An activation whose oldest due message is older than this, and that has not committed
# since it was rung, is ended and activated anew.
STUCK_AFTER = timedelta(seconds=5)


async def roots_with_work(transaction: Transaction, now: datetime) -> list[str]:
    """Return the roots (organizations, and the app) below which something is due.

    A loose index scan over the one partial index on due mail: its cost grows with the
    number of organizations, not with the mail.
    """
    rows = await transaction.fetch(
        "WITH RECURSIVE due AS ("
        " (SELECT root FROM rt_mailbox WHERE parked_at IS NULL AND due_at <= %(now)s"
        "  ORDER BY root LIMIT 1)"
        " UNION ALL"
        " SELECT (SELECT m.root FROM rt_mailbox m WHERE m.parked_at IS NULL"
        "  AND m.due_at <= %(now)s AND m.root > due.root ORDER BY m.root LIMIT 1)"
        " FROM due WHERE due.root IS NOT NULL)"
        " SELECT root FROM due WHERE root IS NOT NULL",
        {"now": now},
    )
    return [row["root"] for row in rows]


@dataclass(frozen=True)
class Due:
    """An entity with due work.

    Attributes:
        oldest: When the oldest due message or unclaimed step became due; None when
            everything due is being worked on.
        revision: Counts the entity's commits; it rises while the entity moves.
    """

    key: str
    oldest: datetime | None
    revision: int
    hosted: bool


async def due_below(transaction: Transaction, root: str, now: datetime) -> list[Due]:
    """Return the entities of one tree that have due work, the longest waiting first."""
    rows = await transaction.fetch(
        "SELECT m.target, min(m.due_at) FILTER (WHERE r.claimed_epoch IS NULL) AS oldest,"
        " coalesce(max(e.revision), 0) AS revision, bool_or(e.host IS NOT NULL) AS hosted"
        " FROM rt_mailbox m LEFT JOIN rt_entity e ON e.key = m.target"
        " LEFT JOIN rt_run r ON r.id = m.run_id"
        " WHERE m.root = %s AND m.parked_at IS NULL AND m.due_at <= %s"
        " GROUP BY m.target ORDER BY min(m.due_at)",
        (root, now),
    )
    return [Due(row["target"], row["oldest"], row["revision"], bool(row["hosted"])) for row in rows]


class Watch:
    """Remembers what a supervisor saw, and tells who is stuck."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, datetime]] = {}

    def stuck(self, found: list[Due], now: datetime) -> list[str]:
        """Return the keys that were rung, have old due mail, and have not moved since."""
        result = []
        seen: dict[str, tuple[int, datetime]] = {}
        for due in found:
            if due.oldest is None or not due.hosted:
                continue
            revision, since = self._seen.get(due.key, (due.revision, now))
            if revision != due.revision:
                revision, since = due.revision, now
            seen[due.key] = (revision, since)
            if now - since > STUCK_AFTER and now - due.oldest > STUCK_AFTER:
                result.append(due.key)
                del seen[due.key]
        self._seen = seen
        return result
