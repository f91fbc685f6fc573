"""A sweep is one query on one index, however much lies there and however many died."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from foundry_ray.core import keys
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.secrets import Sealer
from foundry_ray.runtime.activation import Activation
from foundry_ray.runtime.actor import Actor
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.supervisor import Supervisor
from foundry_ray.store.engine import Database, Transaction
from tests.helpers import eventually
from tests.integration.runtime.kit import Root

ENTITIES = 100_000
DEAD = 90_000  # of each table; some are found and overwritten at once
ORGANIZATIONS = 200
BIG = "org/7"
# What one sweep may read, in pages of 8 KiB: a descent or two per organization, and the dead
# rows' part of the index until a vacuum. The tables have 10,000 and more.
PAGES = {"app": 4_000, BIG: 800}

FILL = """
ALTER TABLE rt_mailbox SET (autovacuum_enabled = false);
ALTER TABLE rt_run SET (autovacuum_enabled = false);
ALTER TABLE rt_entity SET (autovacuum_enabled = false);

CREATE TEMPORARY TABLE made AS
    SELECT n, CASE WHEN n % 2 = 0 THEN 'org/7' ELSE 'org/' || n % {organizations} END AS root
    FROM generate_series(1, {entities}) AS n;
INSERT INTO rt_entity (key, kind, parent_key, root, epoch, revision, created_at)
    SELECT root || '/repo/' || n, 'repository', root, root, 1, 1, now() FROM made;
INSERT INTO rt_run (id, entity_key, kind, version, input, step, step_input, state, attempt,
    reported, undo, undoing, created_at, updated_at)
    SELECT 'run' || n, root || '/repo/' || n, 'w', 1, '{{}}', 's', '{{}}', 'pending', 0, false,
        '[]', false,
        now(), now() FROM made;

-- Mail that was due and is done: as many dead rows in front of what is due now.
INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, run_id, attempts, due_at,
    created_at)
    SELECT root || '/repo/' || n, root, 'x', 1, 'k', '{{}}', 'run' || n, 0,
        now() - make_interval(secs => 60 + n), now() FROM made;
ANALYZE rt_mailbox;
DELETE FROM rt_mailbox;
-- Each row of a run was rewritten, too, and each entity committed.
UPDATE rt_run SET state = 'waiting';
UPDATE rt_entity SET revision = 2;

-- A timer for each entity, a parked letter for each tenth, and little that is due.
INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, timer, attempts, due_at,
    created_at)
    SELECT root || '/repo/' || n, root, 'x', 1, 'k', '{{}}', 't', 0,
        now() + make_interval(days => 1, secs => n), now() FROM made;
INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, attempts, due_at, created_at,
    parked_at)
    SELECT root || '/repo/' || n, root, 'x', 1, 'k', '{{}}', 5, now() - interval '1 hour', now(),
        now() FROM made WHERE n % 10 = 0;
INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, attempts, due_at, created_at)
    SELECT root || '/repo/' || n, root, 'x', 1, 'k', '{{}}', 0, now() - interval '1 minute', now()
    FROM made WHERE n IN (2, 4, 5, 2006, 3003);
INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, attempts, due_at, created_at)
    VALUES ('app/user/1', 'app', 'x', 1, 'k', '{{}}', 0, now() - interval '1 minute', now());
"""


@pytest.fixture
def crowded_url(database_url: str) -> str:
    """A database with 100,000 entities and as many dead rows of each table."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(FILL.format(entities=ENTITIES, organizations=ORGANIZATIONS))
    return database_url


class Recording(Transaction):
    """Keeps what is asked."""

    asked: list[tuple[str, Any]] = []

    async def execute(self, sql: str, values: Any = None) -> int:
        self.asked.append((sql, values))
        return await super().execute(sql, values)

    async def fetch(self, sql: str, values: Any = None) -> Any:
        self.asked.append((sql, values))
        return await super().fetch(sql, values)


class RecordingDatabase(Database):
    """Keeps the queries of all its transactions."""

    def __init__(self, url: str) -> None:
        super().__init__(url, name="toy")
        self.asked: list[tuple[str, Any]] = []

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Transaction]:
        async with super().transaction(snapshot=snapshot) as transaction:
            recording = Recording(transaction._connection)
            recording.asked = self.asked
            yield recording


class Bells:
    """Remembers who was rung, and wakes nobody."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    def ring(self, key: str) -> None:
        self.rung.append(key)

    def end(self, key: str) -> None:
        raise AssertionError("nothing is stuck here")

    def drain(self, key: str) -> None:
        raise AssertionError("nobody leaves here")

    async def answered(self, key: str, command_id: str) -> None:
        raise AssertionError("nobody asks here")

    async def hand(self, key: str, message: Any) -> Any:
        raise AssertionError("nothing is handed over here")


class App(Actor[None]):
    actor_type = "app_shell"

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> None:
        return None


async def swept(url: str, root: str) -> tuple[list[str], list[tuple[str, Any]]]:
    """Let the supervisor of *root* sweep once; return whom it rang and what it asked."""
    database, bells = RecordingDatabase(url), Bells()
    await database.open()
    kernel = Kernel(
        database=database,
        clock=SystemClock(),
        sealer=Sealer(b"k" * 32),
        waker=bells,
        tools={},
        actors={"organization": Root, "app_shell": App},
    )
    assert await Supervisor(Activation(kernel, root)).sweep()
    await database.close()
    return bells.rung, database.asked


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def explained(
    url: str, asked: list[tuple[str, Any]], how: str = "ANALYZE, BUFFERS"
) -> dict[str, Any]:
    """Ask the same again, and return the plan of the one query of entities and mail."""
    plans = []
    with psycopg.connect(url) as connection:
        for sql, values in asked:
            if not any(table in sql for table in ("rt_mailbox", "rt_entity", "rt_run")):
                connection.execute(sql, values)  # what it deletes, and how it asks
                continue
            row = connection.execute(f"EXPLAIN ({how}, FORMAT JSON) {sql}", values).fetchone()
            assert row is not None
            plans.append(row[0][0]["Plan"])
    [plan] = plans
    assert isinstance(plan, dict)
    return plan


def indexes(plan: dict[str, Any]) -> set[tuple[str, str]]:
    """Return which table is read by which index, or by what else."""
    return {
        (node["Relation Name"], node.get("Index Name", node["Node Type"]))
        for node in nodes(plan)
        if "Relation Name" in node
    }


async def test_a_sweep_is_one_query_on_one_index_whatever_lies_there(crowded_url: str) -> None:
    everywhere, asked_by_app = await swept(crowded_url, keys.APP)
    below, asked_by_organization = await swept(crowded_url, BIG)

    late = {"org/7/repo/2", "org/7/repo/4", "org/7/repo/2006", "org/5/repo/5", "org/3/repo/3003"}
    assert set(everywhere) == {"app/user/1", "org/3", "org/5", "org/7"} | late
    assert set(below) == {"org/7/repo/2", "org/7/repo/4", "org/7/repo/2006"}

    asked = {keys.APP: asked_by_app, BIG: asked_by_organization}
    by_index = {
        ("rt_mailbox", "rt_mailbox_due"),
        ("rt_entity", "rt_entity_pkey"),
        ("rt_run", "rt_run_pkey"),
    }
    with psycopg.connect(crowded_url, autocommit=True) as connection:
        await eventually(lambda: min(dead_rows(connection).values()) > DEAD)
        # With the numbers of before the mail was done, and with those of now.
        for command in ("SELECT 1", "ANALYZE"):
            connection.execute(command)
            for root, queries in asked.items():
                plan = explained(crowded_url, queries)
                assert indexes(plan) == by_index
                assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= PAGES[root]
        assert min(dead_rows(connection).values()) > DEAD

        # The same queries without the index are found out.
        connection.execute("DROP INDEX rt_mailbox_due")
        for queries in asked.values():
            assert indexes(explained(crowded_url, queries, "SETTINGS")) != by_index


def dead_rows(connection: psycopg.Connection[Any]) -> dict[str, int]:
    found = connection.execute(
        "SELECT relname, n_dead_tup FROM pg_stat_user_tables"
        " WHERE relname IN ('rt_mailbox', 'rt_entity', 'rt_run')"
    )
    return dict(found.fetchall())
