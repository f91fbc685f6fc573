"""Activations: fencing, lost connections, timers, passivation, handing over."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import Internal, WrongState
from foundry_ray.runtime import mailbox
from foundry_ray.runtime.activation import Activation
from foundry_ray.runtime.commit import Fenced
from foundry_ray.runtime.kernel import Passivated
from tests.helpers import eventually
from tests.integration.runtime.kit import (
    A,
    B,
    Defer,
    Do,
    Forget,
    PassOn,
    Refuse,
    Remind,
    Wire,
    World,
    cut_connections,
    world,
)


async def put(toys: World, key: str, *words: str, sender: str = "x") -> None:
    """Put mail into a mailbox without a doorbell."""
    async with toys.database.transaction() as transaction:
        for word in words:
            await mailbox.put(transaction, key, Do(word=word), sender=sender, now=toys.clock.now())


async def live(toys: World, key: str) -> Activation:
    """Return an activation that this test drives itself."""
    activation = Activation(toys.kernel, key)
    await activation.activate()
    return activation


# -- one at a time ------------------------------------------------------------------


async def test_every_activation_has_a_higher_epoch(toys: World) -> None:
    first, second = await live(toys, A), await live(toys, A)

    assert (first.epoch, second.epoch) == (1, 2)


async def test_a_zombie_commits_nothing(toys: World) -> None:
    await put(toys, A, "a", "b")
    zombie = await live(toys, A)
    async with toys.database.transaction() as transaction:
        letter, _ = await mailbox.pending(transaction, A)
    heir = await live(toys, A)

    with pytest.raises(Fenced):
        await zombie.turns.handle(letter)
    assert await toys.words(A) == []
    await heir.once()
    with pytest.raises(Fenced):
        await zombie.once()
    await heir.once()

    assert await toys.words(A) == ["a", "b"]


async def test_a_fenced_activation_ends_by_itself(toys: World) -> None:
    await toys.ask(A, Do(word="a"))
    heir = await live(toys, A)

    await toys.tell(A, Do(word="b"))

    await eventually(lambda: toys.host.live() == [])
    await heir.once()
    assert await toys.words(A) == ["a", "b"]


@pytest.mark.parametrize("drain", [False, True])
async def test_an_idle_zombie_ends_too(toys: World, drain: bool) -> None:
    toys.kernel.idle_factor = 0 if not drain else 1
    zombie = await live(toys, A)
    await live(toys, A)

    if drain:
        zombie.drain()

    with pytest.raises(Fenced):
        await zombie.once()


async def test_a_message_that_was_applied_is_not_applied_again(toys: World) -> None:
    await put(toys, A, "a")
    activation = await live(toys, A)
    async with toys.database.transaction() as transaction:
        [letter] = await mailbox.pending(transaction, A)

    await activation.turns.handle(letter)
    await activation.turns.handle(letter)

    assert await toys.words(A) == ["a"]
    assert activation.holding.actor is not None
    assert activation.holding.actor.state.words == ["a"]


# -- lost connections ---------------------------------------------------------------


@pytest.mark.parametrize("moment", ["turn_open", "before_commit"])
async def test_a_turn_whose_connection_breaks_is_repeated(database_url: str, moment: str) -> None:
    cuts: list[int] = []

    def point(name: str) -> None:
        if name == moment and not cuts:
            cuts.append(cut_connections(database_url))

    async with world(database_url, point=point) as toys:
        assert await toys.ask(A, Do(word="a"), patience=timedelta(seconds=10)) == {"count": 1}
        await toys.ask(A, PassOn(words=["p"], to=[B]))
        await toys.quiet()

        assert cuts == [1]
        assert await toys.words(A) == ["a"]
        assert await toys.words(B) == ["p"]


async def test_a_commit_whose_answer_is_lost_is_not_applied_again(database_url: str) -> None:
    armed: list[Wire] = []

    def point(name: str) -> None:
        if name == "before_commit" and armed:
            armed.pop().cut_after_commit = True

    async with Wire(database_url) as wire, world(wire.url, point=point) as toys:
        assert await toys.ask(A, Do(word="a")) == {"count": 1}
        armed.append(wire)
        started = asyncio.get_running_loop().time()

        assert await toys.ask(A, Do(word="b"), patience=timedelta(seconds=8)) == {"count": 2}

        took = asyncio.get_running_loop().time() - started
        assert wire.cuts == 1
        assert took < 4, "who waits hears of a reply that was there"
        assert await toys.ask(A, Do(word="c")) == {"count": 3}
        assert await toys.words(A) == ["a", "b", "c"]


async def test_a_turn_that_meets_a_deadlock_is_repeated(database_url: str) -> None:
    """The server undoes one of two that wait for each other: ours."""
    async with world(database_url) as toys, world(database_url) as other:
        activation = await live(toys, A)
        await put(toys, A, "a")
        async with other.database.transaction() as transaction:
            await transaction.execute("SET LOCAL deadlock_timeout = '20s'")
            await transaction.execute("SELECT 1 FROM rt_mailbox FOR UPDATE")
            task = asyncio.create_task(activation.run())

            async def ours_waits() -> bool:
                return bool(
                    await toys.rows("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                )

            await eventually(ours_waits)
            await transaction.execute("UPDATE rt_entity SET revision = revision + 10")

        await eventually(lambda: _has(toys, A, ["a"]))
        [entity] = await toys.rows("SELECT revision, epoch FROM rt_entity")
        assert (entity["revision"], entity["epoch"]) == (11, 1), "repeated by the same activation"
        activation.drain()
        await task


async def _has(toys: World, key: str, words: list[str]) -> bool:
    return await toys.words(key) == words


# -- timers -------------------------------------------------------------------------


async def test_a_timer_fires_once_when_it_is_due(toys: World) -> None:
    await toys.ask(A, Remind(name="t", after=10, word="ring"))

    toys.fake.advance(9)
    await toys.quiet()
    assert await toys.words(A) == []
    toys.fake.advance(1)
    await toys.quiet()
    toys.fake.advance(100)
    await toys.quiet()

    assert await toys.words(A) == ["ring"]


async def test_timers_that_came_due_in_an_outage_fire_once_each(toys: World) -> None:
    await toys.ask(A, Remind(name="late", after=60, word="late"))
    await toys.ask(A, Remind(name="early", after=10, word="early"))
    await toys.host.close()

    toys.fake.advance(7200)
    toys.host.kernel = toys.kernel
    await toys.quiet()

    assert sorted(await toys.words(A)) == ["early", "late"]


async def test_a_timer_is_replaced_by_its_name(toys: World) -> None:
    await toys.ask(A, Remind(name="t", after=10, word="old"))
    await toys.ask(A, Remind(name="t", after=20, word="new"))
    await toys.ask(B, Remind(name="t", after=10, word="of another"))

    toys.fake.advance(10)
    await toys.quiet()
    assert await toys.words(A) == []
    toys.fake.advance(10)
    await toys.quiet()

    assert await toys.words(A) == ["new"]
    assert await toys.words(B) == ["of another"]


async def test_a_forgotten_timer_does_not_fire(toys: World) -> None:
    await toys.ask(A, Remind(name="t", after=10, word="ring"))
    await toys.ask(A, Forget(name="t"))

    toys.fake.advance(20)
    await toys.quiet()

    assert await toys.words(A) == []


async def test_a_timer_to_come_holds_nobody_up(toys: World) -> None:
    await toys.ask(A, Remind(name="t", after=10, word="ring"))

    await toys.tell(A, Do(word="a"), sender=A)
    await toys.quiet()

    assert await toys.words(A) == ["a"]


async def test_many_timers_to_come_hide_no_message(toys: World) -> None:
    for n in range(70):
        await put_timer(toys, A, f"t{n}", 1000 + n)

    assert await toys.ask(A, Do(word="a")) == {"count": 1}


async def put_timer(toys: World, key: str, name: str, after: float) -> None:
    async with toys.database.transaction() as transaction:
        now = toys.clock.now()
        await mailbox.put(
            transaction,
            key,
            Do(word=name),
            sender=key,
            now=now,
            timer=name,
            due_at=now + timedelta(seconds=after),
        )


async def test_an_activation_wakes_for_its_own_timer(database_url: str) -> None:
    async with world(database_url, SystemClock()) as toys:
        await toys.ask(A, Remind(name="t", after=0.1, word="ring"))

        await eventually(lambda: _has(toys, A, ["ring"]))


# -- passivation ----------------------------------------------------------------------


async def test_an_idle_entity_is_rows_only(toys: World) -> None:
    toys.kernel.idle_factor = 0.001
    await toys.ask(A, Do(word="a"))

    await eventually(lambda: toys.host.live() == [])

    [entity] = await toys.rows("SELECT host FROM rt_entity")
    assert entity["host"] is None
    assert await toys.ask(A, Do(word="b")) == {"count": 2}
    assert await toys.epoch(A) == 2


async def test_an_entity_with_a_timer_to_come_is_passivated_and_comes_back(toys: World) -> None:
    toys.kernel.idle_factor = 0.001
    await toys.ask(A, Remind(name="t", after=600, word="ring"))
    await eventually(lambda: toys.host.live() == [])

    toys.fake.advance(600)
    await toys.quiet()

    assert await toys.words(A) == ["ring"]


async def test_an_entity_with_due_mail_is_not_passivated(toys: World) -> None:
    activation = await live(toys, A)
    await put(toys, A, "a")

    assert not await activation.holding.release(at_once=False)

    [entity] = await toys.rows("SELECT host FROM rt_entity")
    assert entity["host"] is not None


async def test_mail_that_comes_during_a_release_is_not_overlooked(
    toys: World, database_url: str
) -> None:
    """The statement that releases waits for a lock and decides on what it saw before."""
    toys.kernel.idle_factor = 0
    async with world(database_url) as other:
        async with other.database.transaction() as transaction:
            await transaction.execute(
                "INSERT INTO rt_entity (key, kind, root, epoch, revision, created_at)"
                " VALUES (%s, 'repository', 'org/1', 0, 0, now())",
                (A,),
            )
        toys.host.ring(A)
        await eventually(lambda: toys.host.live() == [])
        activation = await live(toys, A)
        async with other.database.transaction() as transaction:
            await transaction.execute("SELECT 1 FROM rt_entity WHERE key = %s FOR UPDATE", (A,))
            task = asyncio.create_task(activation.run())
            await eventually(
                lambda: toys.rows("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            )
            await put(toys, A, "a")
            activation.ring()
        await task

    assert await toys.words(A) == ["a"]


async def test_no_ring_is_lost_however_eager_passivation_is(toys: World) -> None:
    toys.kernel.idle_factor = 0
    said = [str(n) for n in range(40)]
    for word in said:
        await toys.tell(A, Do(word=word))

    await eventually(lambda: _has(toys, A, said))


async def test_who_waits_for_an_answer_is_told_when_the_activation_ends(toys: World) -> None:
    patience = timedelta(seconds=0.4)
    waiting = asyncio.create_task(toys.client.ask(A, Defer(), scope="s", patience=patience))
    await eventually(lambda: toys.rows("SELECT 1 FROM rt_entity WHERE revision > 0"))
    [command] = await toys.rows("SELECT command_id FROM rt_inbox_seen")
    activation, _ = toys.host._live[A]

    answered = asyncio.create_task(activation.answered(command["command_id"]))
    await eventually(lambda: activation.doors.waiting(command["command_id"]) == 2)
    toys.host.end(A)

    with pytest.raises(Passivated):
        await answered
    assert not (await waiting).answered


async def test_a_drain_finishes_what_was_begun_and_releases(toys: World) -> None:
    await put(toys, A, "a", "b")
    activation = await live(toys, A)
    await activation.once()

    activation.drain()
    assert await activation.once()

    assert await toys.words(A) == ["a"]
    [entity] = await toys.rows("SELECT host FROM rt_entity")
    assert entity["host"] is None
    await toys.quiet()
    assert await toys.words(A) == ["a", "b"]


# -- handing over ----------------------------------------------------------------------


async def test_what_is_handed_over_is_committed_without_a_mailbox_row(toys: World) -> None:
    assert await toys.host.hand(A, Do(word="a")) == {"count": 1}

    assert await toys.words(A) == ["a"]
    rows = await toys.rows("SELECT pg_sequence_last_value('rt_mailbox_id_seq') AS last")
    assert rows == [{"last": None}]


async def test_a_refused_hand_over_leaves_nothing_behind(toys: World) -> None:
    with pytest.raises(WrongState):
        await toys.host.hand(A, Refuse(word="no"))
    toys.outside.broken.add("bad")
    with pytest.raises(Internal):
        await toys.host.hand(A, Do(word="bad"))

    assert await toys.host.hand(A, Do(word="a")) == {"count": 1}


async def test_an_ended_activation_takes_nothing_over(toys: World) -> None:
    activation = await live(toys, A)
    activation.drain()
    await activation.run()

    with pytest.raises(Passivated):
        await activation.hand(Do(word="a"))


async def test_who_hands_over_to_a_zombie_may_hand_over_again(toys: World) -> None:
    zombie = await live(toys, A)
    task = asyncio.create_task(zombie.run())
    await live(toys, A)

    with pytest.raises(Passivated):
        await zombie.hand(Do(word="a"))

    await task
    assert await toys.words(A) == []


async def test_who_hands_over_to_an_activation_that_is_killed_hears_of_it(
    database_url: str,
) -> None:
    def die(name: str) -> None:
        if name == "turn_open":
            toys.host.end(A)

    async with world(database_url, point=die) as toys:
        with pytest.raises(Passivated):
            await asyncio.wait_for(toys.host.hand(A, Do(word="a")), 5)
