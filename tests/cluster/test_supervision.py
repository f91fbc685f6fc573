"""What supervisors decide, and that two clusters on one database take turns."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg.types.json import Jsonb

from foundry_ray import bootstrap
from foundry_ray.actors.app_shell.messages import BeginSignIn
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.core import keys, settings
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.messages import Person
from foundry_ray.runtime import host, mailbox
from foundry_ray.runtime.local import LocalHost
from foundry_ray.runtime.refs import Client
from foundry_ray.runtime.supervision import Due, Watch, entities, sweep_out
from foundry_ray.store.engine import Database
from tests.helpers import eventually

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ALIVE = host.here().as_json()
ELSEWHERE = {**ALIVE, "node": "another/machine"}
HISTORY = "org/1/repo/2/history"
PATIENT = timedelta(seconds=20)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def due(oldest: float | None, *, moves: int = 1, where: dict[str, object] | None = None) -> Due:
    since = None if oldest is None else NOW - seconds(oldest)
    return Due(HISTORY, since, moves, where)


def test_what_has_no_live_process_is_rung_at_each_sweep() -> None:
    watch = Watch()
    dead = {**ELSEWHERE, "node": ALIVE["node"], "pid": 2**22 + 1}
    for number in range(3):
        assert watch.to_ring([due(0)], NOW + seconds(number)) == [HISTORY]
        assert watch.to_ring([due(None, where=dead)], NOW + seconds(number)) == [HISTORY]


def test_what_lives_is_reminded_only_of_what_is_due_for_long() -> None:
    watch = Watch()
    assert watch.to_ring([due(0.5, where=ELSEWHERE)], NOW) == []
    assert watch.to_ring([due(1.5, where=ELSEWHERE)], NOW) == [HISTORY]


def test_what_works_elsewhere_is_looked_at_every_two_seconds() -> None:
    watch = Watch()
    working = [due(None, where=ELSEWHERE)]
    rung = [number for number in range(6) if watch.to_ring(working, NOW + seconds(number))]
    assert rung == [0, 2, 4]


def test_only_what_has_not_moved_for_five_seconds_is_stuck() -> None:
    watch = Watch()
    for number in range(5):
        assert watch.stuck([due(6, where=ELSEWHERE)], NOW + seconds(number)) == []
    # it commits: five more seconds
    assert watch.stuck([due(6, moves=2, where=ELSEWHERE)], NOW + seconds(5.5)) == []
    assert watch.stuck([due(6, moves=2, where=ELSEWHERE)], NOW + seconds(10)) == []
    assert watch.stuck([due(6, moves=2, where=ELSEWHERE)], NOW + seconds(11)) == [HISTORY]
    # what works on a step, or has no process, is not stuck
    for number in range(20):
        assert watch.stuck([due(None, where=ELSEWHERE)], NOW + seconds(number)) == []
        assert watch.stuck([due(60)], NOW + seconds(number)) == []


class OneCluster:
    """A whole actor system in this process, with its own name."""

    def __init__(
        self, name: str, database: Database, outside: bootstrap.Adapters, *, supervise: bool = True
    ) -> None:
        self.host = LocalHost(supervise=supervise)
        self.host.kernel = bootstrap.kernel(outside, database, self.host)
        self.host.kernel.lease_holder = name
        self.client = Client(database, self.host, SystemClock(), actors=bootstrap.BY_KIND)

    async def record(self, summary: str, patience: timedelta = PATIENT) -> bool:
        message = RecordEvent(actor=Person(), what="test", summary=summary)
        answer = await self.client.ask(HISTORY, message, scope="test", patience=patience)
        return answer.answered


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url, size=8)
    await made.open()
    yield made
    await made.close()


async def test_two_clusters_on_one_database_take_turns(database: Database, tmp_path: Path) -> None:
    outside = bootstrap.adapters(settings.load(tmp_path / "data", {}))
    blue = OneCluster("blue", database, outside, supervise=False)
    green = OneCluster("green", database, outside)
    sign_in = BeginSignIn(state_hash="1", return_to="/")
    assert (await blue.client.ask(keys.APP, sign_in, scope="test", patience=PATIENT)).answered
    assert await blue.record("one")
    blue.host.end(HISTORY)
    async with database.transaction() as transaction:  # blue's processes are not this one
        await transaction.execute("UPDATE rt_entity SET host = %s", (Jsonb(ELSEWHERE),))

    # Green may not activate: neither what it is asked for, nor its own `app`.
    green.host.ring(keys.APP)
    assert not await green.record("two", patience=seconds(1))
    async with database.transaction() as transaction:
        row = await transaction.one("SELECT holder FROM rt_cluster")
    assert row == {"holder": "blue"}

    # Blue leaves; green takes over at once, and what it was asked for is done.
    await blue.host.close()

    async def done() -> bool:
        async with database.transaction() as transaction:
            rows = await transaction.fetch("SELECT summary FROM history_event ORDER BY at")
        return [row["summary"] for row in rows] == ["one", "two"]

    await eventually(done, timeout=5)
    await green.host.close()
    await outside.aclose()


async def test_a_supervisor_rings_what_nobody_rang(database: Database, tmp_path: Path) -> None:
    outside = bootstrap.adapters(settings.load(tmp_path / "data", {}))
    one = OneCluster("one", database, outside)
    one.host.ring(keys.APP)
    message = RecordEvent(actor=Person(), what="test", summary="unheard")
    async with database.transaction() as transaction:
        now = SystemClock().now()
        await mailbox.put(transaction, HISTORY, message, sender="test", now=now)
    await eventually(lambda: HISTORY in one.host.live())
    assert keys.organization(1) in one.host.live()
    await one.host.close()
    await outside.aclose()


async def test_what_has_had_its_time_is_deleted(database: Database) -> None:
    now = SystemClock().now()
    async with database.transaction() as transaction:
        for name, age in (("old", 25), ("young", 23)):
            await transaction.execute(
                "INSERT INTO rt_feed (topic, kind, item_id, item_revision, at)"
                " VALUES ('app', 'test', %s, 1, %s)",
                (name, now - timedelta(hours=age)),
            )
    async with database.transaction() as transaction:
        assert await sweep_out(transaction, now) == 1
        assert [r["item_id"] for r in await transaction.fetch("SELECT * FROM rt_feed")] == ["young"]


def test_this_process_is_alive() -> None:
    assert ALIVE["pid"] == os.getpid()
    assert not host.proven_gone(ELSEWHERE)


async def test_an_operator_sees_what_lives_and_what_waits(database: Database) -> None:
    now = SystemClock().now()
    gone = {**ALIVE, "pid": 2**22 + 1}
    async with database.transaction() as transaction:
        for key, where in (("app", ELSEWHERE), ("org/1", gone), ("org/2", None), ("org/3", None)):
            await transaction.execute(
                "INSERT INTO rt_entity (key, kind, root, epoch, revision, host, created_at)"
                " VALUES (%s, %s, %s, 1, 0, %s, %s)",
                (key, keys.kind_of(key), key, Jsonb(where) if where else None, now),
            )
        message = RecordEvent(actor=Person(), what="test", summary="waits")
        sent = now - seconds(3)
        await mailbox.put(transaction, "org/3", message, sender="test", now=sent)
    async with database.transaction() as transaction:
        some = await entities(transaction, now, idle=False)
        every = await entities(transaction, now, idle=True)
    assert [(one["key"], one["state"], one["pid"], one["oldest_seconds"]) for one in some] == [
        ("app", "live", os.getpid(), None),
        ("org/3", "waiting", None, 3.0),
    ]
    assert [one["key"] for one in every] == ["app", "org/1", "org/2", "org/3"]
