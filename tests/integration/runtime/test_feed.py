"""The feed: complete and in a stable order, whoever writes and reads it; and the sweep."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from foundry_ray.runtime import commit, feed, supervision
from foundry_ray.runtime.feed import Change, Cursor
from foundry_ray.runtime.turn import FeedItem
from foundry_ray.store.engine import Database, Transaction
from tests.integration.runtime.kit import TOPIC, A, B, Do, World

WRITERS, TIMES = 8, 25
START = Cursor(0, 0)


async def write(database: Database, writer: int, done: asyncio.Event) -> None:
    """Write many changes, in transactions that stay open for unlike times."""
    for n in range(TIMES):
        async with database.transaction() as transaction:
            items = [FeedItem(f"t{n % 3}", "k", f"{writer}-{n}-{part}", n, {}) for part in (0, 1)]
            for item in items:
                row = await transaction.one("SELECT now() AS now")
                assert row is not None
                await commit._feed(transaction, [item], row["now"])
                await transaction.execute("SELECT pg_sleep(random() * 0.004)")
    done.set()


async def read(database: Database, after: Cursor, topics: list[str] | None = None) -> list[Change]:
    async with database.transaction() as transaction:
        return await feed.changes(transaction, after, topics, limit=50)


async def test_a_reader_beside_eight_writers_loses_nothing(toys: World, database_url: str) -> None:
    database = Database(database_url, size=WRITERS)
    await database.open()
    done = [asyncio.Event() for _ in range(WRITERS)]
    writers = [asyncio.create_task(write(database, n, done[n])) for n in range(WRITERS)]
    seen: list[Change] = []
    cursor = START
    while True:
        over = all(event.is_set() for event in done)
        found = await read(toys.database, cursor)
        seen += found
        if found:
            cursor = found[-1].cursor
        elif over:
            break
    await asyncio.gather(*writers)
    await database.close()

    wanted = {f"{w}-{n}-{p}" for w in range(WRITERS) for n in range(TIMES) for p in (0, 1)}
    assert {change.item_id for change in seen} == wanted
    assert len(seen) == len(wanted)
    assert [change.cursor for change in seen] == sorted(change.cursor for change in seen)
    again: list[Change] = []
    cursor = START
    while found := await read(toys.database, cursor):
        again += found
        cursor = found[-1].cursor
    assert again == seen, "every reader sees one order"
    for writer in range(WRITERS):
        own = [c.item_id for c in seen if c.item_id.startswith(f"{writer}-")]
        assert own == [f"{writer}-{n}-{p}" for n in range(TIMES) for p in (0, 1)]


async def test_a_reader_of_some_topics_sees_only_those(toys: World) -> None:
    done = asyncio.Event()
    await write(toys.database, 1, done)

    found = await read(toys.database, START, ["t1"])

    assert {change.topic for change in found} == {"t1"}
    assert len(found) == 16


async def test_nothing_falls_between_a_snapshot_and_its_cursor(toys: World) -> None:
    """A writer that began before the snapshot and ends after it is in the changes."""
    await toys.ask(A, Do(word="before"))
    early = Database(toys.database.url, size=1)
    await early.open()
    async with early.transaction() as writing:
        await commit._feed(writing, [FeedItem(TOPIC, "k", "across", 1, {})], toys.clock.now())
        await toys.ask(B, Do(word="at the same time"))
        async with toys.database.transaction(snapshot=True) as transaction:
            rows = await transaction.fetch("SELECT item_id FROM rt_feed")
            cursor = await feed.present(transaction)
        assert await read(toys.database, cursor) == [], "a change waits for those that began before"
    await early.close()

    assert len(rows) == 2
    after = [change.item_id for change in await read(toys.database, cursor)]
    assert "across" in after


async def test_an_items_revision_and_data_come_with_the_change(toys: World) -> None:
    await toys.ask(A, Do(word="a"))

    [change] = await read(toys.database, START)

    assert (change.topic, change.kind, change.item_id) == (TOPIC, "history", "00000001")
    assert change.data == {"key": A, "word": "a"}
    assert Cursor.parse(str(change.cursor)) == change.cursor


# -- the sweep ------------------------------------------------------------------------


class Explaining(Transaction):
    """Answers each query, and keeps its plan."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(transaction._connection)
        self.plans: list[str] = []

    async def fetch(self, sql: str, values: Any = None) -> Any:
        plan = await super().fetch(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {sql}", values)
        self.plans.append("\n".join(row["QUERY PLAN"] for row in plan))
        return await super().fetch(sql, values)


async def test_the_sweep_reads_one_index_and_not_the_mail(toys: World) -> None:
    await toys.execute(
        "INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, attempts, due_at,"
        " created_at, parked_at)"
        " SELECT 'org/' || n % 100 || '/repo/' || n, 'org/' || n % 100, 'x', 1, 'k', '{}', 0,"
        " %(now)s + make_interval(days => 1), %(now)s, CASE WHEN n % 4 = 0 THEN now() END"
        " FROM generate_series(1, 20000) AS n".replace("% 100", "%% 100")
        .replace("% 4", "%% 4")
        .replace("%(now)s", "now()")
    )
    await toys.execute(
        "UPDATE rt_mailbox SET due_at = now() - interval '1 minute' WHERE root = 'org/7'"
    )
    await toys.execute("ANALYZE rt_mailbox")
    [row] = await toys.rows("SELECT now() AS now")
    now = row["now"] + timedelta(seconds=1)

    async with toys.database.transaction() as transaction:
        explaining = Explaining(transaction)
        roots = await supervision.roots_with_work(explaining, now)
        due = await supervision.due_below(explaining, "org/7", now)

    assert roots == ["org/7"]
    assert len(due) == 200
    for plan in explaining.plans:
        assert "rt_mailbox_due" in plan, plan
        assert "Seq Scan on rt_mailbox" not in plan, plan
