"""A run that is given up goes back the way it came: each undo a step, the last one first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Literal

import pytest

from foundry_ray.core.errors import FoundryError, InvalidInput, Unavailable, WrongState
from foundry_ray.core.messages import Command, Lane
from foundry_ray.runtime.actor import handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Nothing, Run, StepContext, Wait, Workflow
from foundry_ray.runtime.workflow import step as make_step
from tests.helpers import eventually
from tests.integration.runtime.kit import (
    QUICK,
    A,
    Begin,
    Child,
    Crashes,
    Do,
    GoOn,
    Outside,
    Resume,
    Words,
    World,
    a_dead_process,
    somewhere_else,
    world,
)

LONG = timedelta(seconds=30)


@make_step("toy-cancel-hotel", timeout=LONG, retry=QUICK)
async def cancel_hotel(tools: Outside, input: Nothing, context: StepContext) -> Nothing:
    await tools.effect("cancel hotel", context)
    return input


@make_step("toy-cancel-flight", timeout=LONG, retry=QUICK)
async def cancel_flight(tools: Outside, input: Nothing, context: StepContext) -> Nothing:
    await tools.effect("cancel flight", context)
    return input


@make_step("toy-book-hotel", timeout=LONG, retry=QUICK, undo=cancel_hotel)
async def book_hotel(tools: Outside, input: Nothing, context: StepContext) -> Nothing:
    await tools.effect("hotel", context)
    return input


@make_step("toy-book-flight", timeout=LONG, retry=QUICK, undo=cancel_flight)
async def book_flight(tools: Outside, input: Nothing, context: StepContext) -> Nothing:
    await tools.effect("flight", context)
    return input


@make_step("toy-pay", timeout=LONG, retry=QUICK)
async def pay(tools: Outside, input: Nothing, context: StepContext) -> Nothing:
    await tools.effect("pay", context)
    return input


class Trip(Workflow[Words]):
    """All of it or nothing."""

    kind = "toy.trip"
    steps = (book_hotel, book_flight, pay)

    def begin(self, state: Words, run: Run, turn: Turn) -> Next:
        return Go(book_hotel, Nothing())

    def next(self, state: Words, run: Run, result: Any, turn: Turn) -> Next:
        state.add(run.step, turn)
        match run.step:
            case "toy-book-hotel":
                return Go(book_flight, Nothing())
            case "toy-book-flight":
                return Go(pay, Nothing())
            case _:
                return Done()

    def on_error(self, state: Words, run: Run, error: FoundryError, turn: Turn) -> None:
        state.add(f"gave up {run.step}", turn)
        turn.undo(run.id)

    def undone(self, state: Words, run: Run, turn: Turn) -> None:
        state.add("undone", turn)

    def on_undo_error(self, state: Words, run: Run, error: FoundryError, turn: Turn) -> None:
        state.add(f"stuck at {run.step}", turn)


class Someday(Trip):
    """Waits for a word before it books anything."""

    kind = "toy.someday"

    def begin(self, state: Words, run: Run, turn: Turn) -> Next:
        return Wait()


class Stubborn(Trip):
    """Is parked when it fails."""

    kind = "toy.stubborn"

    def on_error(self, state: Words, run: Run, error: FoundryError, turn: Turn) -> None:
        state.add(f"stuck at {run.step}", turn)


class GiveUp(Command):
    lane = Lane.CONTROL
    kind: Literal["runtime.toy_give_up"] = "runtime.toy_give_up"
    run_id: str = "run"


class Traveller(Child):
    workflows = (Trip, Someday, Stubborn)

    @handles
    def give_up(self, command: GiveUp, turn: Turn) -> None:
        turn.undo(command.run_id)


@pytest.fixture
async def toys(toys: World) -> World:
    toys.kernel.actors["repository"] = Traveller
    return toys


async def issues(toys: World) -> list[tuple[str, bool]]:
    rows = await toys.rows("SELECT workflow, resolved_at FROM rt_issue ORDER BY id")
    return [(row["workflow"], row["resolved_at"] is not None) for row in rows]


async def runs(toys: World) -> list[dict[str, Any]]:
    return await toys.rows("SELECT state, step, undoing, undo FROM rt_run")


async def go_on(toys: World, *, times: int = 4) -> None:
    for _ in range(times):
        await toys.quiet()
        toys.fake.advance(10)
    await toys.quiet()


TO_PAY = ["hotel", "flight", "pay"]
BACK = ["cancel flight", "cancel hotel"]


# -- given up by its workflow ---------------------------------------------------------------


async def test_a_run_that_fails_for_good_is_undone_the_last_step_first(toys: World) -> None:
    toys.outside.troubles["pay"] = [InvalidInput("No money.")]

    await toys.tell(A, Begin(workflow="toy.trip"))
    await toys.quiet()

    assert toys.outside.calls == [*TO_PAY, *BACK]
    assert await toys.words(A) == ["toy-book-hotel", "toy-book-flight", "gave up toy-pay", "undone"]
    assert await runs(toys) == []
    assert await toys.pending(A) == []


async def test_what_was_undone_did_not_succeed_and_a_later_run_solves_its_issue(
    toys: World,
) -> None:
    toys.outside.troubles["pay"] = [InvalidInput("No money.")]
    await toys.tell(A, Begin(workflow="toy.trip"))
    await toys.quiet()
    assert await issues(toys) == [("toy.trip", False)]

    await toys.tell(A, Begin(workflow="toy.trip", run_id="another"))
    await toys.quiet()

    assert await issues(toys) == [("toy.trip", True)]


async def test_a_step_that_failed_may_have_happened_and_is_undone_too(toys: World) -> None:
    toys.outside.troubles["flight"] = [InvalidInput("No seat.")]

    await toys.tell(A, Begin(workflow="toy.trip"))
    await toys.quiet()

    assert toys.outside.calls == ["hotel", "flight", *BACK]


async def test_an_undo_that_fails_is_tried_again_and_its_issue_resolves_itself(
    toys: World,
) -> None:
    toys.outside.troubles["pay"] = [InvalidInput("No money.")]
    toys.outside.troubles["cancel flight"] = [Unavailable("Away.")]
    await toys.tell(A, Begin(workflow="toy.trip"))
    await toys.quiet()
    [row] = await runs(toys)
    assert (row["state"], row["step"], row["undoing"]) == ("pending", "toy-cancel-flight", True)
    assert [name for name, _ in row["undo"]] == ["toy-cancel-hotel"]
    assert await issues(toys) == [("toy.trip", False), ("toy.trip.undo", False)]

    await go_on(toys)

    assert toys.outside.calls == [*TO_PAY, "cancel flight", *BACK]
    assert await issues(toys) == [("toy.trip", False), ("toy.trip.undo", True)]


@pytest.mark.parametrize("restart", [False, True])
async def test_an_undo_that_fails_for_good_is_parked_and_can_be_retried(
    toys: World, restart: bool
) -> None:
    toys.outside.troubles["pay"] = [InvalidInput("No money.")]
    toys.outside.troubles["cancel flight"] = [InvalidInput("Not so late.")]
    await toys.tell(A, Begin(workflow="toy.trip"))
    await toys.quiet()
    [row] = await runs(toys)
    assert (row["state"], row["step"]) == ("parked", "toy-cancel-flight")
    assert (await toys.words(A))[-1] == "stuck at toy-cancel-flight"
    with pytest.raises(WrongState):
        await toys.ask(A, GoOn())
    if restart:
        toys.host.end(A)

    await toys.tell(A, Resume())
    await toys.quiet()

    assert toys.outside.calls == [*TO_PAY, "cancel flight", *BACK]
    assert (await toys.words(A))[-1] == "undone"
    assert await issues(toys) == [("toy.trip", False), ("toy.trip.undo", True)]


# -- given up by a message --------------------------------------------------------------------


async def test_a_step_under_way_is_let_end_and_then_undone(toys: World) -> None:
    toys.outside.gates["flight"] = asyncio.Event()
    await toys.tell(A, Begin(workflow="toy.trip"))
    await eventually(lambda: toys.outside.calls == ["hotel", "flight"])

    await toys.ask(A, GiveUp())
    assert await toys.ask(A, Do(word="meanwhile")) == {"count": 2}
    assert toys.outside.calls == ["hotel", "flight"]
    toys.outside.gates.pop("flight").set()
    await toys.quiet()

    assert toys.outside.calls == ["hotel", "flight", *BACK]
    assert await toys.words(A) == ["toy-book-hotel", "meanwhile", "undone"]
    assert (await runs(toys), await issues(toys)) == ([], [])


async def test_a_step_that_may_run_elsewhere_has_time_until_its_deadline_before_it_is_undone(
    toys: World, database_url: str
) -> None:
    toys.outside.gates["flight"] = asyncio.Event()
    await toys.tell(A, Begin(workflow="toy.trip"))
    await eventually(lambda: toys.outside.calls == ["hotel", "flight"])
    await toys.execute("UPDATE rt_entity SET host = %s WHERE key = %s", somewhere_else(), A)
    async with world(database_url, toys.clock) as heir:
        heir.kernel.actors["repository"] = Traveller
        await heir.ask(A, GiveUp())
        heir.host.end(A)  # nor does the next activation forget it
        assert await heir.ask(A, Do(word="meanwhile")) == {"count": 2}
        assert toys.outside.calls == ["hotel", "flight"]

        toys.outside.gates.pop("flight").set()  # the old one gets its result, which counts no more
        await eventually(lambda: toys.host.live() == [])
        toys.fake.advance(31)
        await heir.quiet()

        assert heir.outside.calls == ["hotel", "flight", *BACK]
        assert await heir.words(A) == ["toy-book-hotel", "meanwhile", "undone"]


async def test_a_step_whose_process_is_gone_is_undone_at_once(toys: World) -> None:
    toys.outside.gates["flight"] = asyncio.Event()
    await toys.tell(A, Begin(workflow="toy.trip"))
    await eventually(lambda: toys.outside.calls == ["hotel", "flight"])
    await toys.ask(A, GiveUp())
    await toys.execute("UPDATE rt_entity SET host = %s WHERE key = %s", a_dead_process(), A)
    toys.host.end(A)
    toys.outside.gates.clear()

    await toys.quiet()

    assert toys.outside.calls == ["hotel", "flight", *BACK]


async def test_a_run_that_did_nothing_yet_ends_at_once(toys: World) -> None:
    await toys.tell(A, Begin(workflow="toy.someday"))
    await toys.quiet()

    await toys.ask(A, GiveUp())

    assert toys.outside.calls == []
    assert await toys.words(A) == ["undone"]
    assert await runs(toys) == []


async def test_to_give_up_a_parked_run_resolves_its_issue(toys: World) -> None:
    toys.outside.troubles["flight"] = [InvalidInput("No seat.")]
    await toys.tell(A, Begin(workflow="toy.stubborn"))
    await toys.quiet()
    assert [row["state"] for row in await runs(toys)] == ["parked"]

    await toys.ask(A, GiveUp())
    await toys.ask(A, GiveUp())  # once is enough
    await toys.quiet()

    assert toys.outside.calls == ["hotel", "flight", *BACK]
    assert await issues(toys) == [("toy.stubborn", True)]
    assert await runs(toys) == []


# -- a crash at every point -------------------------------------------------------------------


async def fail_to_pay(toys: World, key: str) -> None:
    """The last step fails for good, also if a crash lets it be asked for again."""
    toys.outside.troubles["pay"] += [InvalidInput("No money.")] * 2
    toys.fake.advance(10)
    toys.host.ring(key)


async def give_up(toys: World, key: str) -> None:
    """Somebody gives the run up while it waits for another attempt at its last step."""
    await toys.tell(key, GiveUp(run_id=key))


@pytest.mark.parametrize("way", [fail_to_pay, give_up])
async def test_an_undo_comes_to_the_same_end_wherever_its_process_dies(
    database_url: str, way: Callable[[World, str], Awaitable[None]]
) -> None:
    crashes = Crashes()
    async with world(database_url, point=crashes.point) as toys:
        toys.kernel.actors["repository"] = Traveller
        crashes.world = toys
        at = 0
        while at == 0 or len(crashes.passed) >= at:  # until a run passes no more points
            at += 1
            key = f"org/1/repo/{at}"
            for traces in (toys.outside.calls, toys.outside.effects):
                traces.clear()
            toys.outside.troubles["pay"] = [Unavailable("Away.")]
            crashes.begin(None)
            await toys.tell(key, Begin(workflow="toy.trip", run_id=key))
            await toys.quiet()
            assert toys.outside.calls == TO_PAY
            crashes.begin(at)
            await way(toys, key)
            await go_on(toys, times=1)

            assert (await toys.words(key))[-1] == "undone", crashes.passed
            assert await toys.rows("SELECT 1 FROM rt_run WHERE id = %s", key) == []
            assert await toys.pending(key) == []
            # Effects are known by their key: asked for twice, after a crash, they happen once.
            done = [k.removeprefix(f"{key}/") for k in toys.outside.effects]
            assert done == ["hotel", "flight", *BACK]
    assert at > 10
