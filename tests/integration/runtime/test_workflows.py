"""Runs: their steps, their troubles, and crashes after each of them."""

from __future__ import annotations

import asyncio
import subprocess

import pytest
from psycopg.types.json import Jsonb

from foundry_ray.core.errors import InvalidInput, Unavailable
from foundry_ray.runtime import host, mailbox
from foundry_ray.runtime.activation import DRAIN_PATIENCE, Activation
from tests.helpers import eventually
from tests.integration.runtime.kit import (
    ROOT,
    A,
    Begin,
    Cancel,
    Crashes,
    Do,
    Fail,
    GoOn,
    Resume,
    World,
    a_dead_process,
    somewhere_else,
    world,
)

DONE = ["one", "one two", "one two three"]


async def issues(toys: World) -> list[dict[str, object]]:
    return await toys.rows("SELECT * FROM rt_issue ORDER BY id")


async def run_row(toys: World) -> dict[str, object]:
    [row] = await toys.rows("SELECT * FROM rt_run")
    return row


async def go_on(toys: World, *, times: int = 5, by: float = 10) -> None:
    """Let retries come due, one after the other."""
    for _ in range(times):
        await toys.quiet()
        toys.fake.advance(by)
    await toys.quiet()


# -- the way ------------------------------------------------------------------------


async def test_steps_follow_one_another_to_the_end(toys: World) -> None:
    await toys.tell(A, Begin())

    await toys.quiet()

    assert await toys.words(A) == DONE
    assert toys.outside.calls == ["one", "two", "three"]
    assert await toys.rows("SELECT 1 FROM rt_run") == []
    assert await issues(toys) == []


async def test_a_turn_never_waits_for_a_step(toys: World) -> None:
    gate = toys.outside.gates["one"] = asyncio.Event()
    await toys.tell(A, Begin())
    await eventually(lambda: toys.outside.calls == ["one"])

    assert await toys.ask(A, Do(word="meanwhile")) == {"count": 1}

    gate.set()
    toys.outside.gates.clear()
    await toys.quiet()
    assert await toys.words(A) == ["meanwhile", *DONE]


async def test_a_step_holds_no_connection_while_it_works(toys: World) -> None:
    gate = toys.outside.gates["one"] = asyncio.Event()
    await toys.tell(A, Begin())
    await eventually(lambda: toys.outside.calls == ["one"])

    busy = await toys.rows(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND state LIKE 'idle in transaction%%'"
    )

    assert busy == []
    gate.set()


async def test_a_waiting_run_goes_on_with_a_message(toys: World) -> None:
    await toys.tell(A, Begin(workflow="toy.patient"))
    await toys.quiet()
    assert (await run_row(toys))["state"] == "waiting"

    await toys.tell(A, GoOn())
    await toys.quiet()

    assert await toys.words(A) == ["one"]


async def test_a_run_that_is_sent_elsewhere_drops_the_step_it_was_at(toys: World) -> None:
    """A run has one step at a time: the old one's result counts no more."""
    gate = toys.outside.gates["two"] = asyncio.Event()
    await toys.tell(A, Begin())
    await eventually(lambda: toys.outside.calls == ["one", "two"])

    await toys.tell(A, GoOn())
    await eventually(lambda: toys.outside.calls == ["one", "two", "one", "two"])
    gate.set()
    toys.outside.gates.clear()
    await toys.quiet()

    assert await toys.words(A) == ["one", *DONE]


# -- trouble ------------------------------------------------------------------------


async def test_a_step_is_tried_again_with_patience(toys: World) -> None:
    toys.outside.troubles["two"] = [Unavailable("Away.")]
    await toys.tell(A, Begin())
    await toys.quiet()

    assert await toys.words(A) == ["one", "again toy-two 1"]
    [letter] = await toys.pending(A)
    assert letter["due_at"] > toys.clock.now()
    [issue] = await issues(toys)
    assert (issue["workflow"], issue["step"]) == ("toy.chain", "toy-two")
    assert (issue["will_retry"], issue["attempt"]) == (True, 1)

    await go_on(toys, times=1)
    assert await toys.words(A) == ["one", "again toy-two 1", *DONE[1:]]
    assert (await issues(toys))[0]["resolved_at"] is not None
    assert await toys.words(ROOT) == [], "the parent hears of what was given up only"


async def test_a_step_whose_attempts_are_used_up_parks_its_run(toys: World) -> None:
    toys.outside.troubles["two"] = [Unavailable("Away.")] * 3
    await toys.tell(A, Begin())
    await go_on(toys)

    assert await toys.words(A) == [
        "one",
        "again toy-two 1",
        "again toy-two 2",
        "gave up toy-two unavailable",
    ]
    run = await run_row(toys)
    assert (run["state"], run["step"], run["attempt"]) == ("parked", "toy-two", 3)
    assert await toys.pending(A) == []
    [issue] = await issues(toys)
    assert (issue["will_retry"], issue["attempt"], issue["count"]) == (False, 3, 3)
    assert await toys.words(ROOT) == [f"{A} failed: unavailable"]


async def test_an_error_that_cannot_pass_is_not_tried_again(toys: World) -> None:
    toys.outside.troubles["one"] = [InvalidInput("No.")]
    await toys.tell(A, Begin())
    await toys.quiet()

    assert await toys.words(A) == ["gave up toy-one invalid_input"]


async def test_a_bug_in_a_step_is_not_tried_again(toys: World) -> None:
    toys.outside.troubles["one"] = [RuntimeError("a bug")]
    await toys.tell(A, Begin())
    await toys.quiet()

    assert await toys.words(A) == ["gave up toy-one internal"]


async def test_a_parked_run_resumes_at_the_failed_step(toys: World) -> None:
    toys.outside.troubles["two"] = [InvalidInput("No.")]
    await toys.tell(A, Begin())
    await toys.quiet()

    await toys.tell(A, Resume())
    await toys.quiet()

    assert toys.outside.calls == ["one", "two", "two", "three"]
    assert (await toys.words(A))[-2:] == DONE[1:]
    [issue] = await issues(toys)
    assert issue["resolved_at"] is not None


async def test_a_parked_run_resumes_after_a_restart_too(toys: World) -> None:
    toys.outside.troubles["two"] = [InvalidInput("No.")]
    await toys.tell(A, Begin())
    await toys.quiet()
    toys.host.end(A)

    await toys.tell(A, Resume())
    await toys.quiet()

    assert (await toys.words(A))[-2:] == DONE[1:]


async def test_a_later_run_resolves_the_issue_of_one_that_ended(toys: World) -> None:
    toys.outside.troubles["one"] = [InvalidInput("No.")]
    await toys.tell(A, Begin(workflow="toy.fleeting"))
    await toys.quiet()
    assert await toys.rows("SELECT 1 FROM rt_run") == []
    assert [issue["resolved_at"] for issue in await issues(toys)] == [None]

    toys.host.end(A)
    await toys.tell(A, Begin(workflow="toy.fleeting"))
    await toys.quiet()

    [issue] = await issues(toys)
    assert issue["resolved_at"] is not None


async def test_cancelling_a_parked_run_resolves_its_issue(toys: World) -> None:
    toys.outside.troubles["one"] = [InvalidInput("No.")]
    await toys.tell(A, Begin())
    await toys.quiet()

    await toys.tell(A, Cancel())
    await toys.quiet()

    [issue] = await issues(toys)
    assert issue["resolved_at"] is not None
    assert await toys.rows("SELECT 1 FROM rt_run") == []


async def test_a_step_that_takes_too_long_is_a_timeout(toys: World) -> None:
    toys.outside.gates["three"] = asyncio.Event()
    await toys.tell(A, Begin())

    await eventually(lambda: _has(toys, ["one", "one two", "again toy-three 1"]))

    [issue] = await eventually(lambda: issues(toys))
    assert issue["code"] == "timeout"


async def _has(toys: World, words: list[str]) -> bool:
    return await toys.words(A) == words


async def test_the_late_result_of_a_cancelled_run_is_ignored(toys: World) -> None:
    gate = toys.outside.gates["one"] = asyncio.Event()
    await toys.tell(A, Begin())
    await eventually(lambda: toys.outside.calls == ["one"])

    await toys.tell(A, Cancel())
    await eventually(lambda: _no_runs(toys))
    gate.set()
    await toys.quiet()

    assert await toys.words(A) == []
    assert await toys.pending(A) == []
    assert await toys.ask(A, Do(word="a")) == {"count": 1}


async def _no_runs(toys: World) -> bool:
    return not await toys.rows("SELECT 1 FROM rt_run")


async def test_a_waiting_run_that_is_failed_is_parked_and_reported(toys: World) -> None:
    await toys.tell(A, Begin(workflow="toy.patient"), Fail())
    await toys.quiet()

    assert (await run_row(toys))["state"] == "parked"
    assert await toys.words(A) == ["gave up  unavailable"]
    assert len(await issues(toys)) == 1
    assert await toys.words(ROOT) == [f"{A} failed: unavailable"]


async def test_a_bug_in_the_order_of_steps_parks_the_run(toys: World) -> None:
    toys.outside.broken.add("after one two")
    await toys.tell(A, Begin())
    await toys.quiet()

    assert (await run_row(toys))["state"] == "parked"
    assert await toys.words(A) == ["one", "gave up toy-two internal"]


async def test_a_bug_in_the_error_hook_parks_the_run_all_the_same(toys: World) -> None:
    toys.outside.broken.add("on_error")
    toys.outside.troubles["two"] = [InvalidInput("No.")]
    await toys.tell(A, Begin())
    await toys.quiet()

    assert (await run_row(toys))["state"] == "parked"
    assert toys.outside.calls == ["one", "two"]
    assert len(await issues(toys)) == 1


async def test_a_step_that_is_cancelled_by_what_it_waits_for_is_tried_again(toys: World) -> None:
    toys.outside.troubles["one"] = [asyncio.CancelledError()]
    await toys.tell(A, Begin())
    await go_on(toys, times=1)

    assert await toys.words(A) == ["again toy-one 1", *DONE]


# -- death ------------------------------------------------------------------------------


async def begin_and_leave(toys: World, host: object) -> None:
    """Leave a claimed step behind, by an activation whose host is as given."""
    toys.outside.gates["one"] = asyncio.Event()
    await toys.tell(A, Begin())
    await eventually(lambda: toys.outside.calls == ["one"])
    await toys.execute("UPDATE rt_entity SET host = %s WHERE key = %s", host, A)


async def test_a_step_of_a_dead_process_runs_again_at_once(toys: World) -> None:
    await begin_and_leave(toys, a_dead_process())
    toys.host.end(A)
    toys.outside.gates.clear()

    await toys.quiet()

    assert toys.outside.calls == ["one", "one", "two", "three"]
    assert await toys.words(A) == DONE


async def test_a_step_that_may_still_run_waits_for_its_deadline(
    toys: World, database_url: str
) -> None:
    await begin_and_leave(toys, somewhere_else())
    gate = toys.outside.gates.pop("one")
    async with world(database_url, toys.clock) as heir:
        assert await heir.ask(A, Do(word="meanwhile")) == {"count": 1}
        assert heir.outside.calls == ["one"]

        gate.set()  # the old activation gets its result, which counts no more
        await eventually(lambda: toys.host.live() == [])
        assert await heir.words(A) == ["meanwhile"]

        toys.fake.advance(31)
        await heir.quiet()
        assert await heir.words(A) == ["meanwhile", *DONE]
        assert heir.outside.calls == ["one", "one", "two", "three"]


async def test_a_step_of_a_stopped_process_runs_again_when_that_process_dies(
    toys: World, database_url: str
) -> None:
    with subprocess.Popen(["sleep", "60"]) as stopped:
        where = host.HostIdentity(host.node(), stopped.pid, host.started(stopped.pid) or 0)
        await begin_and_leave(toys, Jsonb(where.as_json()))
        gate = toys.outside.gates.pop("one")
        async with world(database_url, toys.clock) as heir:
            assert await heir.ask(A, Do(word="meanwhile")) == {"count": 1}
            assert heir.outside.calls == ["one"]

            gate.set()  # the old activation gets its result, which counts no more
            stopped.kill()
            stopped.wait()

            await eventually(lambda: _has(heir, ["meanwhile", *DONE]))
            assert heir.outside.calls == ["one", "one", "two", "three"]


async def test_a_run_is_cancelled_though_its_step_is_under_way_in_an_older_activation(
    toys: World, database_url: str
) -> None:
    await begin_and_leave(toys, somewhere_else())
    gate = toys.outside.gates.pop("one")
    async with world(database_url, toys.clock) as heir:
        await heir.ask(A, Cancel())
        gate.set()  # the old activation gets its result, which counts no more
        await eventually(lambda: toys.host.live() == [])
        toys.fake.advance(31)
        await heir.quiet()

        assert await heir.words(A) == []
        assert heir.outside.calls == ["one"]
        assert await heir.rows("SELECT 1 FROM rt_run") == []
        assert await heir.pending(A) == []


async def test_a_run_is_cancelled_though_the_process_of_its_step_died(toys: World) -> None:
    await begin_and_leave(toys, a_dead_process())
    toys.host.end(A)
    await put_cancel(toys)
    toys.outside.gates.clear()

    await toys.quiet()

    assert await toys.words(A) == []
    assert await toys.rows("SELECT 1 FROM rt_run") == []
    assert await toys.pending(A) == []


async def put_cancel(toys: World) -> None:
    """Leave the command in the mailbox, where it goes before everything else."""
    async with toys.database.transaction() as transaction:
        await mailbox.put(transaction, A, Cancel(), sender="x", now=toys.clock.now())


async def test_what_an_older_activation_claimed_waits_though_the_last_one_is_gone(
    toys: World,
) -> None:
    await begin_and_leave(toys, somewhere_else())
    toys.outside.gates.clear()
    second = Activation(toys.kernel, A)
    await second.activate()
    await toys.execute("UPDATE rt_entity SET host = %s WHERE key = %s", a_dead_process(), A)

    third = Activation(toys.kernel, A)
    await third.activate()

    assert list(third.holding.held) == ["run"]
    toys.fake.advance(31)
    toys.host.end(A)
    await toys.quiet()
    assert await toys.words(A) == DONE


async def test_a_step_whose_process_dies_each_time_is_parked(toys: World) -> None:
    await begin_and_leave(toys, a_dead_process())
    for _ in range(7):
        toys.host.end(A)
        before = len(toys.outside.calls)
        toys.host.ring(A)
        await eventually(lambda: len(toys.outside.calls) > before)  # noqa: B023
    toys.host.end(A)

    toys.host.ring(A)

    await eventually(lambda: _has(toys, ["gave up toy-one internal"]))
    assert (await run_row(toys))["state"] == "parked"


async def test_a_drain_waits_for_steps_and_keeps_their_results(toys: World) -> None:
    toys.outside.gates["two"] = asyncio.Event()
    await toys.tell(A, Begin())
    await eventually(lambda: toys.outside.calls == ["one", "two"])
    activation, task = toys.host._live[A]

    activation.drain()
    toys.outside.gates.pop("two").set()
    await task

    assert await toys.words(A) == DONE[:2]
    [entity] = await toys.rows("SELECT host FROM rt_entity WHERE key = %s", A)
    assert entity["host"] is None
    await toys.quiet()
    assert await toys.words(A) == DONE


async def test_a_drain_gives_up_a_step_that_takes_long_and_the_next_activation_does_it(
    toys: World,
) -> None:
    toys.outside.gates["two"] = asyncio.Event()
    await toys.tell(A, Begin())
    await eventually(lambda: toys.outside.calls == ["one", "two"])
    activation, task = toys.host._live[A]

    activation.drain()
    toys.fake.advance(DRAIN_PATIENCE)
    activation.ring()
    await task

    [entity] = await toys.rows("SELECT host FROM rt_entity WHERE key = %s", A)
    assert entity["host"] is None
    toys.outside.gates.pop("two").set()
    await toys.quiet()
    assert toys.outside.calls == ["one", "two", "two", "three"]
    assert await toys.words(A) == DONE


# -- a crash at every point ---------------------------------------------------------------


async def test_a_run_comes_to_the_same_end_wherever_its_process_dies(database_url: str) -> None:
    calm = Crashes()
    async with world(database_url, point=calm.point) as toys:
        await toys.tell("org/1/repo/1000", Begin(run_id="calm"))
        await toys.quiet()
        points = len(calm.passed)  # those of the end of the world are not the run's
    assert {"activated", "before_begin", "turn_open", "before_commit", "after_commit"} <= set(
        calm.passed
    )
    assert {"step_claimed", "step_done"} <= set(calm.passed)

    for at in range(1, points + 1):
        key, run_id = f"org/1/repo/{at}", f"crash-{at}"
        crashes = Crashes(at)
        async with world(database_url, point=crashes.point) as toys:
            crashes.world = toys
            await toys.tell(key, Begin(run_id=run_id))
            await eventually(lambda: len(crashes.passed) >= crashes.at)  # noqa: B023
            await toys.quiet()

            said = await toys.words(key)
            effects = {k for k in toys.outside.effects if k.startswith(f"{run_id}/")}
            assert said == DONE, crashes.passed
            assert effects == {f"{run_id}/{step}" for step in ("one", "two", "three")}
            assert await toys.rows("SELECT 1 FROM rt_run WHERE id = %s", run_id) == []


@pytest.mark.parametrize("trouble", ["again", "parked"])
async def test_a_failing_run_comes_to_the_same_end_wherever_its_process_dies(
    database_url: str, trouble: str
) -> None:
    """A crash may cost an attempt, and never the report or a second one of the last failure."""
    for at in range(1, 25):
        key, run_id = f"org/1/repo/{at}", f"crash-{at}"
        crashes = Crashes(at)
        async with world(database_url, point=crashes.point) as toys:
            crashes.world = toys
            failures = [Unavailable("Away.")] if trouble == "again" else [InvalidInput("No.")] * 2
            toys.outside.troubles["two"] = list(failures)
            await toys.tell(key, Begin(run_id=run_id))
            await go_on(toys, times=3)

            said = await toys.words(key)
            if trouble == "again":
                assert said[-1] == "one two three"
                assert await toys.rows("SELECT 1 FROM rt_run WHERE id = %s", run_id) == []
            else:
                assert said == ["one", "gave up toy-two invalid_input"]
                [run] = await toys.rows("SELECT state FROM rt_run WHERE id = %s", run_id)
                assert run["state"] == "parked"
            told = await toys.words(ROOT)
    assert len(told) == len(set(told)) == (0 if trouble == "again" else 24)
