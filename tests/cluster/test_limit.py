"""Who may live when a node is full: the rules, the door, and a burst on a real Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from foundry_ray import bootstrap
from foundry_ray.actors.app_shell.messages import BeginSignIn
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.cluster.door import FOR_STEPS, LOCK_PATIENCE, Answer, Door, places
from foundry_ray.core import keys
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.messages import Person
from foundry_ray.runtime import host, mailbox
from foundry_ray.runtime.crowding import Occupant, leavers, occupants, waiting
from foundry_ray.runtime.refs import Client
from foundry_ray.store.engine import Database
from tests.cluster.conftest import Cluster
from tests.helpers import eventually

LIMIT = 4
ROOTS = 2  # app and the organization
BURST = 12


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def one(
    key: str, *, idle: float = 0, age: float = 60, due: bool = False, working: bool = False
) -> Occupant:
    return Occupant(key, seconds(idle), seconds(age), due, working)


# -- who leaves ------------------------------------------------------------------


def test_the_longest_idle_leave_as_many_as_are_needed() -> None:
    present = [one("a", idle=5), one("b", idle=50), one("c", idle=20)]
    assert leavers(present, [seconds(0)] * 2, 0) == ["b", "c"]
    assert leavers(present, [seconds(0)] * 2, 1) == ["b"]
    assert leavers(present, [seconds(0)] * 2, 2) == []
    assert leavers(present, [], 0) == []


def test_nobody_leaves_who_committed_just_now_or_has_work_or_works() -> None:
    present = [one("a", idle=0.5), one("b", idle=9, due=True), one("c", idle=9, working=True)]
    assert leavers(present, [seconds(4)], 0) == []


def test_endless_work_gives_up_its_place_to_who_has_waited_for_long() -> None:
    present = [
        one("old", due=True),
        one("older", age=90, due=True),
        one("young", age=4, due=True),
        one("step", age=99, due=True, working=True),
    ]
    assert leavers(present, [seconds(4.9)], 0) == []
    assert leavers(present, [seconds(5)], 0) == ["older"]
    assert leavers(present, [seconds(5)] * 9, 0) == ["older", "old"]
    idle = one("idle", idle=2)
    assert leavers([*present, idle], [seconds(5)], 0) == ["idle"]


# -- the door --------------------------------------------------------------------


class House:
    """Who lives, and doors to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = {"app", "org/1"}
        self.doors: list[Door] = []

    def door(self, *, orderly: bool = False) -> Door:
        made = Door(self.path, LIMIT, orderly=orderly)
        made._nodes_at = time.monotonic() + 3600  # one node, without asking Ray
        self.doors.append(made)
        return made

    def ask(self, door: Door, *, for_step: bool = False) -> Answer:
        with door.ask(lambda: self.names, for_step=for_step) as answer:
            if answer is Answer.ENTER:
                self.names.add(f"org/1/repo/{len(self.names)}")
        return answer


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "door")
    yield made
    for door in made.doors:
        door.close()


def test_many_organizations_take_half_of_the_places_at_most() -> None:
    assert [places(4, roots) for roots in (0, 1, 2, 3, 4, 5, 50)] == [4, 4, 4, 3, 2, 2, 2]
    assert places(1, 50) == 1


def test_two_roots_take_no_place_and_a_step_may_go_a_little_over(house: House) -> None:
    door = house.door()
    assert [house.ask(door) for _ in range(LIMIT + 1)] == [Answer.ENTER] * LIMIT + [Answer.FULL]
    assert not door.step_waits()
    for _ in range(FOR_STEPS):
        assert house.ask(door, for_step=True) is Answer.ENTER
    assert house.ask(door, for_step=True) is Answer.FULL
    assert house.door().step_waits()


def test_one_at_a_time_is_in_the_door_but_a_stopped_process_does_not_lock_it(
    house: House,
) -> None:
    first, second = house.door(), house.door()
    with first.ask(lambda: house.names, for_step=False):
        assert house.ask(second) is Answer.SOON
        second._asked_since -= LOCK_PATIENCE
        assert house.ask(second) is Answer.ENTER
    assert house.ask(second) is Answer.ENTER


def test_who_keeps_no_queue_leaves_free_places_to_the_queue(house: House) -> None:
    supervisor, replica = house.door(orderly=True), house.door()
    while house.ask(supervisor) is Answer.ENTER:
        pass
    house.names.remove("org/1/repo/2")
    assert house.ask(replica) is Answer.FULL
    assert house.ask(supervisor) is Answer.ENTER


# -- a burst ---------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def limited() -> Iterator[None]:
    """Few may live, and nobody leaves by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOUNDRY_MAX_ACTIVATIONS", str(LIMIT))
        patch.setenv("FOUNDRY_IDLE_AFTER", "1")
        yield


@pytest.fixture
async def database(cluster: Cluster) -> AsyncIterator[Database]:
    made = Database(cluster.database_url, size=4)
    await made.open()
    yield made
    await made.close()


def processes() -> set[str]:
    import ray

    return {name for name in ray.util.list_named_actors() if name.startswith(("app", "org/"))}


async def live(database: Database) -> set[str]:
    async with database.transaction() as transaction:
        rows = await transaction.fetch("SELECT key, host FROM rt_entity WHERE host IS NOT NULL")
    return {row["key"] for row in rows if not host.proven_gone(row["host"])}


async def test_a_burst_is_done_by_turns_and_nobody_is_left_out(database: Database) -> None:
    from foundry_ray.cluster.actors import directory

    waker = directory()
    client = Client(database, waker, SystemClock(), actors=bootstrap.BY_KIND)
    sign_in = BeginSignIn(state_hash="1", return_to="/")
    answer = await client.ask(keys.APP, sign_in, scope="test", patience=seconds(30))
    assert answer.answered

    begun = SystemClock().now()
    async with database.transaction() as transaction:
        for number in range(BURST):
            key = keys.history(keys.repository(1, number))
            message = RecordEvent(actor=Person(), what="test", summary=key)
            await mailbox.put(transaction, key, message, sender="test", now=begun)

    most, most_processes = 0, 0

    async def done() -> bool:
        nonlocal most, most_processes
        most = max(most, len(await live(database)))
        most_processes = max(most_processes, len(await asyncio.to_thread(processes)))
        async with database.transaction() as transaction:
            row = await transaction.one(
                "SELECT count(*) AS done, max(at) AS last FROM history_event"
            )
        assert row is not None
        assert row["done"] == BURST
        print(f"longest wait {(row['last'] - begun).total_seconds():.1f} s,", end=" ")
        return True

    assert await eventually(done, timeout=120, every=0.1)
    print(f"at most {most} live, {most_processes} processes")
    waker.close()
    assert LIMIT < most <= LIMIT + ROOTS
    assert most_processes <= LIMIT + ROOTS


async def test_the_rows_tell_who_is_idle_and_who_waits(database: Database) -> None:
    now = SystemClock().now()
    present = await live(database)
    waits = "org/1/repo/1000/history"
    async with database.transaction() as transaction:
        message = RecordEvent(actor=Person(), what="test", summary="waits")
        await mailbox.put(transaction, waits, message, sender="test", now=now - seconds(3))
        assert await waiting(transaction, ["org/1"], present, now) == [seconds(3)]
        seen = await occupants(transaction, present, now)
        assert {who.key for who in seen} == {key for key in present if "/repo/" in key}
        assert not any(who.due or who.working for who in seen)
        assert all(who.idle <= who.age for who in seen)
        for who in seen[:1]:
            await mailbox.put(transaction, who.key, message, sender="test", now=now)
            assert (await occupants(transaction, [who.key], now))[0].due
