"""The entities of the simulation, what they do, and the world outside."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta
from typing import Any, Literal

from foundry_ray.core.messages import Command
from foundry_ray.runtime.actor import handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Nothing, Run, StepContext
from foundry_ray.runtime.workflow import step as make_step
from foundry_ray.testing.clock import FakeClock
from tests.integration.runtime import kit
from tests.integration.runtime.kit import Child, Outside, PassOn, Remind, Told, Words

LONG = timedelta(seconds=30)


class Slow(Outside):
    """Some calls take until the scheduler lets them end.

    Attributes:
        waiting: What ends the calls that are under way.
        built: What stands there.
        twice: Steps that two worked on at once before the first one's time was over.
    """

    def __init__(self, dice: random.Random, clock: FakeClock) -> None:
        super().__init__()
        self.dice = dice
        self.clock = clock
        self.waiting: list[asyncio.Event] = []
        self.built: set[str] = set()
        self.twice: list[str] = []
        self.log: list[str] = []
        self._busy: dict[str, datetime] = {}

    async def effect(self, step: str, context: StepContext) -> None:
        now = self.clock.now()
        until = self._busy.get(context.run_id)
        self.log.append(f"call {context.run_id} {step} {context.attempt} {now} {until}")
        if until is not None and now < until:
            self.twice.append(f"{context.run_id}/{step} attempt {context.attempt} {now} {until}")
        self._busy[context.run_id] = own = now + LONG
        try:
            if self.dice.random() < 0.3:
                gate = asyncio.Event()
                self.waiting.append(gate)
                try:
                    await gate.wait()
                finally:
                    if gate in self.waiting:
                        self.waiting.remove(gate)
            await super().effect(step, context)
        finally:
            self.log.append(f"end {context.run_id} {step}")
            if self._busy.get(context.run_id) == own:
                del self._busy[context.run_id]


class Pair(kit.Chain):
    """Two steps; each result is written down under the run's name."""

    kind = "toy.pair"
    steps = (kit.one, kit.two)

    def next(self, state: Words, run: Run, result: Any, turn: Turn) -> Next:
        first = run.step == "toy-one"
        state.add(f"{run.id}/{'one' if first else 'two'}", turn)
        return Go(kit.two, result) if first else Done()

    def on_retry(self, state: Words, run: Run, error: Any, turn: Turn) -> None:
        """Nothing is shown."""

    def on_error(self, state: Words, run: Run, error: Any, turn: Turn) -> None:
        """Nothing is shown."""


@make_step("sim-take-down-walls", timeout=LONG, retry=kit.QUICK)
async def take_down_walls(tools: Slow, input: Nothing, context: StepContext) -> Nothing:
    await tools.effect("no walls", context)
    tools.built.discard(f"{context.run_id}/walls")
    return input


@make_step("sim-take-down-roof", timeout=LONG, retry=kit.QUICK)
async def take_down_roof(tools: Slow, input: Nothing, context: StepContext) -> Nothing:
    await tools.effect("no roof", context)
    tools.built.discard(f"{context.run_id}/roof")
    return input


@make_step("sim-build-walls", timeout=LONG, retry=kit.QUICK, undo=take_down_walls)
async def build_walls(tools: Slow, input: Nothing, context: StepContext) -> Nothing:
    await tools.effect("walls", context)
    tools.built.add(f"{context.run_id}/walls")
    return input


@make_step("sim-build-roof", timeout=LONG, retry=kit.QUICK, undo=take_down_roof)
async def build_roof(tools: Slow, input: Nothing, context: StepContext) -> Nothing:
    await tools.effect("roof", context)
    tools.built.add(f"{context.run_id}/roof")
    return input


class House(kit.Chain):
    """Walls and a roof, or nothing of both."""

    kind = "sim.house"
    steps = (build_walls, build_roof)

    def begin(self, state: Words, run: Run, turn: Turn) -> Next:
        return Go(build_walls, Nothing())

    def next(self, state: Words, run: Run, result: Any, turn: Turn) -> Next:
        if run.step == "sim-build-walls":
            return Go(build_roof, Nothing())
        state.add(f"built {run.id}", turn)
        return Done()

    def undone(self, state: Words, run: Run, turn: Turn) -> None:
        state.add(f"undone {run.id}", turn)


class GiveUp(Command):
    kind: Literal["runtime.sim_give_up"] = "runtime.sim_give_up"
    run_id: str


class Worker(Child):
    """Also writes down what it sends and which timers it sets."""

    workflows = (Pair, House)

    @handles
    def give_up(self, command: GiveUp, turn: Turn) -> None:
        turn.undo(command.run_id)

    @handles
    def pass_on(self, command: PassOn, turn: Turn) -> None:
        for word in command.words:
            for target in command.to:
                self.state.add(f"sent {word} to {target}", turn)
                turn.tell(target, Told(word=word))

    @handles
    def remind(self, command: Remind, turn: Turn) -> None:
        self.state.add(f"set {command.name} {command.after} {command.word}", turn)
        turn.remind(command.name, timedelta(seconds=command.after), Told(word=command.word))
