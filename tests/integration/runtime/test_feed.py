"""The feed: complete and in a stable order, whoever writes and reads it."""

from __future__ import annotations

import asyncio

from foundry_ray.runtime import commit, feed
from foundry_ray.runtime.effects import FeedItem
from foundry_ray.runtime.feed import Change, Cursor
from foundry_ray.store.engine import Database
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
