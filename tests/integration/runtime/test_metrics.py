"""What the kernel counts: turns, steps and activations, by kind and result."""

from __future__ import annotations

from collections import Counter

import pytest

from foundry_ray.core.errors import InvalidInput, Unavailable, WrongState
from foundry_ray.runtime import mailbox
from tests.integration.runtime.kit import ROOT, A, B, Begin, Do, Refuse, World


class Tally:
    """A meter that a test reads."""

    def __init__(self) -> None:
        self.turns: Counter[tuple[str, str]] = Counter()
        self.steps: Counter[tuple[str, str]] = Counter()
        self.activations: Counter[str] = Counter()
        self.waited: list[float] = []

    def turn(self, kind: str, result: str, seconds: float, waited: float) -> None:
        assert seconds >= 0
        self.turns[kind, result] += 1
        self.waited.append(waited)

    def step(self, kind: str, result: str, seconds: float) -> None:
        assert seconds >= 0
        self.steps[kind, result] += 1

    def live(self, kind: str, change: int) -> None:
        self.activations[kind] += change


@pytest.fixture
def tally(toys: World) -> Tally:
    """The meter of the toys' kernel."""
    toys.kernel.meter = tally = Tally()
    return tally


async def test_turns_are_counted_by_what_became_of_them(toys: World, tally: Tally) -> None:
    toys.outside.broken.add("bad")
    await toys.ask(A, Do(word="a"))
    with pytest.raises(WrongState):
        await toys.ask(B, Refuse(word="b"))
    await toys.tell(A, Do(word="bad"))
    for _ in range(6):
        await toys.quiet()
        toys.fake.advance(20)

    assert tally.turns == {
        ("repository", "done"): 1,
        ("repository", "refused"): 1,
        ("repository", "again"): mailbox.PATIENCE.max_attempts - 1,
        ("repository", "parked"): 1,
        ("organization", "done"): 2,  # the issue, and the child that failed
    }


async def test_steps_are_counted_by_what_became_of_them(toys: World, tally: Tally) -> None:
    toys.outside.troubles["two"] = [Unavailable("Away."), InvalidInput("No.")]
    await toys.tell(A, Begin())
    await toys.quiet()
    toys.fake.advance(10)
    await toys.quiet()

    assert tally.steps == {
        ("repository", "done"): 1,
        ("repository", "again"): 1,
        ("repository", "parked"): 1,
    }


async def test_a_messages_age_counts_from_when_it_was_due(toys: World, tally: Tally) -> None:
    async with toys.database.transaction() as transaction:
        now = toys.clock.now()
        await mailbox.put(transaction, A, Do(word="a"), sender="x", now=now)
    toys.fake.advance(90)

    await toys.quiet()

    assert tally.waited == [90]


async def test_live_activations_are_counted_until_they_end(toys: World, tally: Tally) -> None:
    await toys.ask(A, Do(word="a"))
    await toys.ask(B, Do(word="b"))
    assert tally.activations == {"repository": 2}

    toys.host.end(A)
    toys.host.ring(ROOT)
    await toys.host.close()

    assert tally.activations == {"repository": 0, "organization": 0}
