"""What supervisors look at: who has due work, who does not move, which cluster may act.

Parent and child are data. Never a call per child: one query per supervisor.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from foundry_ray.core import keys
from foundry_ray.runtime import host
from foundry_ray.runtime.feed import RETENTION_HOURS
from foundry_ray.store.engine import Transaction

# An activation whose oldest due message is older than this, and that has not committed
# since it was rung, is ended and activated anew.
STUCK_AFTER = timedelta(seconds=5)
# A live activation knows its own timers; it is reminded of what is due for this long.
REMIND_AFTER = timedelta(seconds=1)
# ... and this often when all that is due is being worked on, in case it lives elsewhere
# and has died there.
REMIND_EVERY = timedelta(seconds=2)

SWEPT_OUT_EVERY = timedelta(minutes=1)
SWEPT_AT_ONCE = 1000  # rows of a table

# Who holds the lease while a node drains: nobody, for a while.
DRAINING = "draining"
DRAINING_SECONDS = 10
# How long a cluster may act without renewing its lease, by the server's clock.
LEASE_SECONDS = 10
LEASE_RENEWED_EVERY = timedelta(seconds=3)


@dataclass(frozen=True)
class Due:
    """An entity with due work.

    Attributes:
        oldest: When the oldest due message or unclaimed step became due; None when
            everything due is being worked on.
        moves: Counts the entity's activations and commits; it rises while it moves.
        host: Where its activation lives, as stored; None when it has none.
    """

    key: str
    oldest: datetime | None
    moves: int
    host: dict[str, Any] | None

    @property
    def dead(self) -> bool:
        """Whether no process can be working for it: none is recorded, or it is gone."""
        return host.proven_gone(self.host)

    @property
    def concerns_app(self) -> bool:
        """Whether ``app`` looks after it; a step that is worked on is its organization's."""
        root = keys.root_of(self.key)
        return root in (keys.APP, self.key) or self.oldest is not None or self.dead


# The planner's numbers are old just when it matters: after a burst of mail it would read
# whole tables for a few due rows. So the due rows are asked for in the order of their index,
# and no other way is open.
_FRUGAL = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"
_DUE = """
SELECT found.target AS key, found.oldest, coalesce(e.revision + e.epoch, 0) AS moves, e.host
FROM (
    SELECT target, min(due_at) AS since, min(due_at) FILTER (WHERE (
        SELECT claimed_epoch FROM rt_run r WHERE r.id = due.run_id) IS NULL) AS oldest
    FROM (
        SELECT target, run_id, due_at FROM rt_mailbox m
        WHERE m.root = {root} AND m.parked_at IS NULL AND m.due_at <= %(now)s AND {which}
        ORDER BY m.due_at OFFSET 0
    ) AS due
    GROUP BY target
) AS found
LEFT JOIN LATERAL (
    SELECT revision, epoch, host FROM rt_entity WHERE key = found.target OFFSET 0
) AS e ON true
ORDER BY found.since
"""
_DUE_BELOW = _DUE.format(root="%(root)s", which="true")
# A loose index scan from root to root, and a look at what is due below each: the cost grows
# with the number of organizations and with what is due, not with the mail.
_DUE_EVERYWHERE = """
WITH RECURSIVE roots (root) AS (
    (SELECT root FROM rt_mailbox WHERE parked_at IS NULL ORDER BY root LIMIT 1)
    UNION ALL
    SELECT (SELECT m.root FROM rt_mailbox m WHERE m.parked_at IS NULL AND m.root > roots.root
        ORDER BY m.root LIMIT 1)
    FROM roots WHERE roots.root IS NOT NULL
)
SELECT roots.root, due.* FROM roots LEFT JOIN LATERAL ({due}) AS due ON true
WHERE (SELECT true FROM rt_mailbox m
    WHERE m.root = roots.root AND m.parked_at IS NULL AND m.due_at <= %(now)s LIMIT 1)
ORDER BY roots.root
""".format(
    due=_DUE.format(
        root="roots.root",
        which="(m.root = %(app)s OR m.target = m.root OR m.due_at <= %(overdue)s)",
    )
)


async def due_below(transaction: Transaction, root: str, now: datetime) -> list[Due]:
    """Return the entities of one tree that have due work, the longest waiting first."""
    await transaction.execute(_FRUGAL)
    rows = await transaction.fetch(_DUE_BELOW, {"root": root, "now": now})
    return [Due(**row) for row in rows]


async def due_everywhere(transaction: Transaction, now: datetime) -> tuple[list[str], list[Due]]:
    """Return what ``app`` looks after.

    Returns:
        The roots (organizations, and the app) below which something is due; and of the
        entities that have due work: those of the app's own tree, the roots themselves, and
        whom their supervisors should have brought back for long, and did not.
    """
    await transaction.execute(_FRUGAL)
    rows = await transaction.fetch(
        _DUE_EVERYWHERE, {"app": keys.APP, "now": now, "overdue": now - STUCK_AFTER}
    )
    found = [
        Due(row["key"], row["oldest"], row["moves"], row["host"])
        for row in rows
        if row["key"] is not None
    ]
    return list(dict.fromkeys(row["root"] for row in rows)), [d for d in found if d.concerns_app]


class Watch:
    """Remembers what a supervisor saw and did; tells whom to ring, and who is stuck."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, datetime]] = {}
        self._rung: dict[str, datetime] = {}

    def to_ring(self, found: Collection[Due], now: datetime) -> list[str]:
        """Return the keys to ring now; they count as rung."""
        rung = {due.key: self._rung[due.key] for due in found if due.key in self._rung}
        chosen = [due.key for due in found if self._wants(due, rung.get(due.key), now)]
        rung.update(dict.fromkeys(chosen, now))
        self._rung = rung
        return chosen

    @staticmethod
    def _wants(due: Due, rung: datetime | None, now: datetime) -> bool:
        if due.dead or (due.oldest is not None and now - due.oldest >= REMIND_AFTER):
            return True
        return due.oldest is None and (rung is None or now - rung >= REMIND_EVERY)

    def stuck(self, found: Collection[Due], now: datetime) -> list[str]:
        """Return the keys that were rung, have old due mail, and have not moved since."""
        result = []
        seen: dict[str, tuple[int, datetime]] = {}
        for due in found:
            if due.oldest is None or due.dead:
                continue
            moves, since = self._seen.get(due.key, (due.moves, now))
            if moves != due.moves:
                moves, since = due.moves, now
            seen[due.key] = (moves, since)
            if now - since > STUCK_AFTER and now - due.oldest > STUCK_AFTER:
                result.append(due.key)
                del seen[due.key]
        self._seen = seen
        return result


async def take_lease(transaction: Transaction, holder: str, *, orphaned: bool) -> bool:
    """Let *holder* be the one cluster that activates; return whether it is.

    Args:
        orphaned: The process that renewed the lease is certainly gone.
    """
    touched = await transaction.execute(
        "INSERT INTO rt_cluster (id, holder, lease_until)"
        " VALUES (1, %(holder)s, now() + make_interval(secs => %(seconds)s))"
        " ON CONFLICT (id) DO UPDATE"
        " SET holder = excluded.holder, lease_until = excluded.lease_until"
        " WHERE rt_cluster.holder = excluded.holder OR rt_cluster.lease_until < now()"
        " OR (%(orphaned)s AND rt_cluster.holder <> %(draining)s)",
        {
            "holder": holder,
            "seconds": LEASE_SECONDS,
            "orphaned": orphaned,
            "draining": DRAINING,
        },
    )
    return touched == 1


async def has_lease(transaction: Transaction, holder: str) -> bool:
    """Return whether *holder* is the cluster that may activate now."""
    row = await transaction.one(
        "SELECT 1 FROM rt_cluster WHERE holder = %s AND lease_until > now()", (holder,)
    )
    return row is not None


async def hosted(transaction: Transaction) -> list[str]:
    """Return the keys of all entities that have an activation."""
    rows = await transaction.fetch("SELECT key FROM rt_entity WHERE host IS NOT NULL")
    return [row["key"] for row in rows]


async def entities(transaction: Transaction, now: datetime, *, idle: bool) -> list[dict[str, Any]]:
    """Return what an operator sees of each entity that has a process or something to do.

    Args:
        idle: Return the others too.
    """
    rows = await transaction.fetch(
        "SELECT e.key, e.kind, e.epoch, e.revision, e.host, e.activated_at,"
        " coalesce(m.pending, 0) AS pending, coalesce(m.parked, 0) AS parked, m.oldest"
        " FROM rt_entity e LEFT JOIN (SELECT target,"
        " count(*) FILTER (WHERE parked_at IS NULL AND due_at <= %(now)s) AS pending,"
        " count(*) FILTER (WHERE parked_at IS NOT NULL) AS parked,"
        " min(due_at) FILTER (WHERE parked_at IS NULL AND due_at <= %(now)s) AS oldest"
        " FROM rt_mailbox GROUP BY target) m ON m.target = e.key"
        " WHERE %(idle)s OR e.host IS NOT NULL OR m.pending > 0 ORDER BY e.key",
        {"now": now, "idle": idle},
    )
    seen = [_seen(row, now) for row in rows]
    return [entity for entity in seen if idle or entity["state"] != "idle"]


async def entity(transaction: Transaction, key: str, now: datetime) -> dict[str, Any] | None:
    """Return all that an operator sees of one entity; None when nobody knows the key.

    Besides what `entities` tells: its parent, what waits for another attempt (``delayed``)
    or its time (``timers``), and its runs. One that never lived but has mail is ``never``.
    """
    row = await transaction.one(
        "SELECT %(key)s::text AS key, e.kind, coalesce(e.epoch, 0) AS epoch,"
        " coalesce(e.revision, 0) AS revision, e.host, e.activated_at, m.*"
        " FROM (SELECT count(*) AS mail,"
        " count(*) FILTER (WHERE parked_at IS NULL AND due_at <= %(now)s) AS pending,"
        " count(*) FILTER (WHERE parked_at IS NULL AND due_at > %(now)s AND attempts > 0)"
        " AS delayed,"
        " count(*) FILTER (WHERE parked_at IS NULL AND due_at > %(now)s AND attempts = 0)"
        " AS timers,"
        " count(*) FILTER (WHERE parked_at IS NOT NULL) AS parked,"
        " min(due_at) FILTER (WHERE parked_at IS NULL AND due_at <= %(now)s) AS oldest"
        " FROM rt_mailbox WHERE target = %(key)s) m LEFT JOIN rt_entity e ON e.key = %(key)s",
        {"key": key, "now": now},
    )
    assert row is not None
    if row["kind"] is None and not row["mail"]:
        return None
    seen = _seen({**row, "kind": keys.kind_of(key)}, now)
    if row["kind"] is None:
        seen["state"] = "never"
    runs = await transaction.fetch(
        "SELECT r.id, r.kind AS workflow, r.step, r.state, r.attempt, r.deadline, r.error,"
        " m.due_at, r.updated_at FROM rt_run r LEFT JOIN rt_mailbox m ON m.run_id = r.id"
        " WHERE r.entity_key = %s ORDER BY r.created_at, r.id",
        (key,),
    )
    return {
        **seen,
        "parent": keys.parent_of(key),
        "delayed": row["delayed"],
        "timers": row["timers"],
        "runs": [dict(run) for run in runs],
    }


def _seen(row: dict[str, Any], now: datetime) -> dict[str, Any]:
    where = row["host"]
    state = "live" if not host.proven_gone(where) else "waiting" if row["pending"] else "idle"
    oldest: datetime | None = row["oldest"]
    return {
        "key": row["key"],
        "kind": row["kind"],
        "state": state,
        "node": where["node"] if where and state == "live" else None,
        "pid": where["pid"] if where and state == "live" else None,
        "activated_at": row["activated_at"],
        "epoch": row["epoch"],
        "revision": row["revision"],
        "pending": row["pending"],
        "oldest_seconds": (now - oldest).total_seconds() if oldest else None,
        "parked": row["parked"],
    }


async def sweep_out(transaction: Transaction, now: datetime) -> int:
    """Delete some of what has had its time: feed rows, remembered commands, secrets.

    Returns:
        How many rows were deleted; call again soon when it is many.
    """
    touched = 0
    for table, condition in (
        ("rt_feed", f"at < %(now)s - interval '{RETENTION_HOURS} hours'"),
        ("rt_inbox_seen", "expires_at < %(now)s"),
        ("rt_secret", "expires_at < %(now)s"),
    ):
        touched += await transaction.execute(
            f"DELETE FROM {table} WHERE ctid IN"
            f" (SELECT ctid FROM {table} WHERE {condition} LIMIT {SWEPT_AT_ONCE})",
            {"now": now},
        )
    return touched
