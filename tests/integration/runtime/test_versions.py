"""A run ends by the version of its workflow with which it began, whatever release it meets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from foundry_ray.core.errors import WorkflowUnknown
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Nothing, Run, Workflows
from tests.helpers import eventually
from tests.integration.runtime.kit import (
    ROOT,
    A,
    Begin,
    Chain,
    Child,
    Do,
    Fleeting,
    Patient,
    Resume,
    Words,
    World,
    one,
    three,
)

BY_1 = ["one", "one two", "one two three"]
BY_2 = ["one", "one three"]


class ShorterChain(Chain):
    """The second release leaves out a step: a run that stands at it could not go on."""

    version = 2
    steps = (one, three)

    def next(self, state: Words, run: Run, result: Any, turn: Turn) -> Next:
        state.add(result.word, turn)
        return Go(three, result) if run.step == "toy-one" else Done()


class Both(Child):
    workflows = (ShorterChain, Chain, Fleeting, Patient)


class OnlyNew(Child):
    workflows = (ShorterChain, Fleeting, Patient)


def restart(toys: World, actor: type[Child]) -> None:
    """Let the entity's process die; the next one runs another release."""
    toys.host.end(A)
    toys.kernel.actors["repository"] = actor


async def begin_by_the_old(toys: World, step: str) -> None:
    """Leave a run of version 1 behind, in the middle of this step."""
    toys.outside.gates[step] = asyncio.Event()
    await toys.tell(A, Begin())
    await eventually(lambda: toys.outside.calls[-1:] == [step])
    [row] = await toys.rows("SELECT version, state FROM rt_run")
    assert row == {"version": 1, "state": "claimed"}


async def issue(toys: World) -> dict[str, Any]:
    [found] = await toys.rows("SELECT * FROM rt_issue")
    return found


@pytest.mark.parametrize("step", ["one", "two", "three"])
async def test_a_run_of_the_last_release_ends_by_its_own_version(toys: World, step: str) -> None:
    await begin_by_the_old(toys, step)
    restart(toys, Both)
    toys.outside.gates.clear()

    await toys.quiet()

    assert await toys.words(A) == BY_1
    assert await toys.rows("SELECT 1 FROM rt_run") == []
    assert await toys.rows("SELECT 1 FROM rt_issue") == []


async def test_a_new_run_begins_by_the_newest_version(toys: World) -> None:
    await begin_by_the_old(toys, "two")
    restart(toys, Both)

    await toys.tell(A, Begin(run_id="new"))
    await eventually(lambda: toys.outside.calls[-1:] == ["three"])
    toys.outside.gates["two"].set()
    toys.outside.gates.clear()
    await toys.quiet()

    assert toys.outside.effects["new/three"] == toys.outside.effects["run/three"] == 1
    assert "new/two" not in toys.outside.effects
    assert sorted(await toys.words(A)) == sorted(BY_1 + BY_2)


async def test_a_run_of_a_version_that_nobody_knows_is_parked_and_the_entity_goes_on(
    toys: World,
) -> None:
    await begin_by_the_old(toys, "two")
    restart(toys, OnlyNew)
    toys.outside.gates.clear()

    assert await toys.ask(A, Do(word="meanwhile")) == {"count": 2}
    await toys.quiet()

    [row] = await toys.rows("SELECT state, step, version, error ->> 'code' AS code FROM rt_run")
    assert row == {
        "state": "parked", "step": "toy-two", "version": 1, "code": "workflow_unknown",
    }  # fmt: skip
    found = await issue(toys)
    assert (found["code"], found["workflow"], found["will_retry"]) == (
        "workflow_unknown", "toy.chain", False,
    )  # fmt: skip
    assert "version 1 of toy.chain" in found["message"]
    assert await toys.words(ROOT) == [f"{A} failed: workflow_unknown"]
    with pytest.raises(WorkflowUnknown):
        await toys.ask(A, Resume())


async def test_a_release_that_knows_it_again_resumes_what_was_parked(toys: World) -> None:
    await begin_by_the_old(toys, "two")
    restart(toys, OnlyNew)
    toys.outside.gates.clear()
    await toys.quiet()
    assert (await issue(toys))["resolved_at"] is None

    restart(toys, Both)
    toys.host.ring(A)
    await eventually(lambda: len(toys.outside.calls) == 4)
    await toys.quiet()

    assert toys.outside.calls == ["one", "two", "two", "three"]
    assert await toys.words(A) == BY_1
    assert (await issue(toys))["resolved_at"] is not None


async def test_a_run_at_a_step_or_with_an_input_that_nobody_knows_is_parked(toys: World) -> None:
    await begin_by_the_old(toys, "two")
    toys.host.end(A)
    await toys.execute("UPDATE rt_run SET step = 'toy-four', input = '{\"of\": \"tomorrow\"}'")

    assert await toys.ask(A, Do(word="meanwhile")) == {"count": 2}
    await toys.quiet()

    assert "step 'toy-four'" in (await issue(toys))["message"]


def test_the_newest_version_is_chosen_by_its_number_and_not_by_its_place() -> None:
    for classes in ((ShorterChain, Chain), (Chain, ShorterChain)):
        known = Workflows(classes)
        assert type(known.newest("toy.chain")) is ShorterChain
        assert type(known.of(Run("r", "toy.chain", Nothing(), "", 0))) is Chain
