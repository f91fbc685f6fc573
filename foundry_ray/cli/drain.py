"""Letting activations go before their processes are ended.

Nothing depends on it: what is killed in the middle of a turn has not happened. But what was
let go leaves no process to be proven dead and no message suspected of killing it.
"""

from __future__ import annotations

import psycopg

from foundry_ray.runtime.host import node, started
from foundry_ray.runtime.supervision import DRAINING, DRAINING_SECONDS


def begin(url: str) -> None:
    """Take the lease away: nobody activates for a while, and `app` lets everybody go."""
    with psycopg.connect(url, connect_timeout=2) as connection:
        connection.execute(
            "INSERT INTO rt_cluster (id, holder, lease_until)"
            " VALUES (1, %(draining)s, now() + make_interval(secs => %(seconds)s))"
            " ON CONFLICT (id) DO UPDATE"
            " SET holder = excluded.holder, lease_until = excluded.lease_until",
            {"draining": DRAINING, "seconds": DRAINING_SECONDS},
        )


def live(url: str) -> int:
    """Return how many activations of this machine still have a process."""
    with psycopg.connect(url, connect_timeout=2) as connection:
        rows = connection.execute("SELECT host FROM rt_entity WHERE host IS NOT NULL").fetchall()
    return sum(
        host["node"] == node() and started(int(host["pid"])) == int(host["started"])
        for (host,) in rows
    )


def resume(url: str) -> None:
    """Let this cluster activate again at once."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        connection.execute("DELETE FROM rt_cluster WHERE holder = %s", (DRAINING,))
