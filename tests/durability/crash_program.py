"""A process that hosts toy entities, and dies or stops at a named point of the kernel.

It reads its plan from standard input, and leaves in good order when that closes. What it
came to it appends to ``<folder>/<name>.jsonl``: the point at which it sent itself a signal,
and, if it lived, how often it passed each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import structlog

from foundry_ray.core import logging
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import FoundryError, Unavailable
from foundry_ray.core.retry import RetryPolicy
from foundry_ray.core.secrets import Sealer
from foundry_ray.runtime import supervision
from foundry_ray.runtime.actor import handles
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.local import LocalHost
from foundry_ray.runtime.points import POINTS
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Nothing, Run, Step, StepContext, Workflow
from foundry_ray.runtime.workflow import step as make_step
from foundry_ray.store.engine import Database, StoreUnavailable, Transaction
from tests.integration.runtime.kit import OUTSIDE, Child, Defer, Outside, Root, Told, Word, Words

ANY = "any"  # for a plan: whatever point comes
FIRST_WORD, SHY = "x 1", "shy"
STEPS = ("one", "two", "three")
SWEEP_EVERY = 0.05  # seconds


@dataclass(frozen=True)
class Plan:
    """What a process is to do.

    Attributes:
        root: The organization whose tree it hosts.
        folder: The world outside; also where the process writes down what it came to.
        point: Where it sends itself *send*: at the *passing*-th time that it comes there.
        at_key: Only passings of this entity count; "" for all.
        idle: Seconds after which an activation is passivated.
        step_timeout: Seconds that a step may take.
        only: Host this one entity, once, and leave when nothing is live any more; else
            whatever below the root has due work is rung.
    """

    url: str
    root: str
    folder: str
    name: str
    point: str = ""
    passing: int = 1
    at_key: str = ""
    send: int = signal.SIGKILL
    idle: float = 60
    step_timeout: float = 30
    guards: Mapping[str, str] = field(default_factory=dict)
    only: str = ""

    def to_json(self) -> bytes:
        """Return the plan as a process reads it."""
        return json.dumps(asdict(self)).encode() + b"\n"


# -- the outside ------------------------------------------------------------------------


@dataclass(frozen=True)
class Shore:
    """The world outside: a folder with one file for each effect, named by its key."""

    folder: Path

    async def effect(self, step: str, context: StepContext) -> None:
        """Bring the effect about, unless it is there; the first call of ``two`` is refused."""
        key = f"{context.run_id}.{step}"
        _append(self.folder / "calls", f"{key} {context.attempt} {os.getpid()}")
        if step == "two" and _create(self.folder / f"{context.run_id}.refused"):
            raise Unavailable("The first call is refused.")
        if _create(self.folder / f"{key}.effect"):
            _append(self.folder / "effects", key)


def _append(file: Path, line: str) -> None:
    with file.open("a") as lines:
        lines.write(line + "\n")


def _create(file: Path) -> bool:
    """Create the file; return False if it was there."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


# A crash costs an attempt, so there are more than a run of tests can use up.
QUICK = RetryPolicy(
    max_attempts=20, first_delay=timedelta(seconds=0.1), max_delay=timedelta(seconds=0.2)
)


@make_step("shore-one", timeout=timedelta(seconds=30), retry=QUICK)
async def one(tools: Shore, input: Nothing, context: StepContext) -> Word:
    await tools.effect("one", context)
    return Word(word="run one")


@make_step("shore-two", timeout=timedelta(seconds=30), retry=QUICK)
async def two(tools: Shore, input: Word, context: StepContext) -> Word:
    await tools.effect("two", context)
    return Word(word=f"{input.word} two")


@make_step("shore-three", timeout=timedelta(seconds=30), retry=QUICK)
async def three(tools: Shore, input: Word, context: StepContext) -> Word:
    await tools.effect("three", context)
    return Word(word=f"{input.word} three")


# -- the entities -----------------------------------------------------------------------


class Voyage(Workflow[Words]):
    """Three effects; each is written down and told to a neighbour, the last answers who waits."""

    kind = "toy.chain"
    steps: ClassVar[tuple[Step[Any, Any], ...]] = (one, two, three)

    def begin(self, state: Words, run: Run, turn: Turn) -> Next:
        return Go(one, Nothing())

    def next(self, state: Words, run: Run, result: Any, turn: Turn) -> Next:
        state.add(result.word, turn)
        turn.tell(f"{state.key.rpartition('/')[0]}/2", Told(word=result.word))
        match run.step:
            case "shore-one":
                return Go(two, result)
            case "shore-two":
                return Go(three, result)
            case _:
                for command_id in state.deferred:
                    turn.reply({"said": result.word}, command_id=command_id)
                    state.add(f"answered {command_id}", turn)
                state.deferred.clear()
                return Done()

    def on_error(self, state: Words, run: Run, error: FoundryError, turn: Turn) -> None:
        state.add(f"gave up {run.step} {error.code}", turn)


class Worker(Child):
    """A child whose every knowledge is in its words, so that it outlives its process."""

    workflows = (Voyage,)  # type: ignore[assignment]

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> Words:
        state = await Words.load(transaction, key)
        told = [word.split(" ", 1) for word in state.words]
        answered = {rest[0] for name, *rest in told if name == "answered"}
        deferred = [rest[0] for name, *rest in told if name == "deferred"]
        state.deferred = [command_id for command_id in deferred if command_id not in answered]
        return state

    @handles
    def defer(self, command: Defer, turn: Turn) -> None:
        """Answered when the next run ends."""
        super().defer(command, turn)
        self.state.add(f"deferred {turn.command_id}", turn)

    @handles
    def told(self, event: Told, turn: Turn) -> None:
        if event.word == SHY and FIRST_WORD not in self.state.words:
            raise Unavailable("Not before the first word was said.")
        super().told(event, turn)


# -- the process ------------------------------------------------------------------------


class Process:
    """Hosts what the plan says, and counts the points that the kernel passes."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._report = Path(plan.folder) / f"{plan.name}.jsonl"
        self._passed: Counter[str] = Counter()
        self._counted = 0

    def point(self, name: str) -> None:
        """Count a passing; at the chosen one the process sends itself its signal."""
        assert name in POINTS, f"{name} is declared nowhere"
        self._passed[name] += 1
        plan, key = self._plan, structlog.contextvars.get_contextvars()["actor_key"]
        if plan.point in (name, ANY) and plan.at_key in ("", key):
            self._counted += 1
            if self._counted == plan.passing:
                facts = {"point": name, "passing": self._passed[name], "key": key}
                self._write({**facts, "pid": os.getpid(), "sent": int(plan.send)})
                os.kill(os.getpid(), plan.send)

    def _write(self, facts: Mapping[str, Any]) -> None:
        with self._report.open("a") as report:
            report.write(json.dumps(facts) + "\n")

    async def run(self) -> None:
        """Host until standard input closes, or nothing is live any more."""
        plan = self._plan
        database = Database(plan.url, name=plan.name, size=4, guards=plan.guards)
        await database.open()
        async with database.transaction() as transaction:
            row = await transaction.one("SELECT current_database() AS name")
        assert row is not None
        OUTSIDE[row["name"]] = Outside()  # for the toys' own troubles: here they have none
        host = LocalHost()
        host.on_crash = _give_up
        timeout = timedelta(seconds=plan.step_timeout)
        Voyage.steps = tuple(replace(step, timeout=timeout) for step in Voyage.steps)
        idle_after = Worker.idle_after
        assert idle_after is not None
        host.kernel = Kernel(
            database=database,
            clock=SystemClock(),
            sealer=Sealer(b"k" * 32),
            waker=host,
            tools={"repository": Shore(Path(plan.folder))},
            actors={"repository": Worker, "organization": Root},
            idle_factor=plan.idle / idle_after.total_seconds(),
            point=self.point,
        )
        over = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, over.set)
        if plan.only:
            host.ring(plan.only)
        while not over.is_set():
            if not plan.only:
                await self._sweep(host, database)
            elif not host.live():
                over.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_EVERY):
                    await over.wait()
        await host.close()
        await database.close()
        self._write({"passed": self._passed})

    async def _sweep(self, host: LocalHost, database: Database) -> None:
        try:
            async with database.transaction() as transaction:
                now = SystemClock().now()
                found = await supervision.due_below(transaction, self._plan.root, now)
        except StoreUnavailable:
            return  # the next sweep finds it
        for due in found:
            host.ring(due.key)


def _give_up(key: str, trouble: BaseException) -> None:
    """End with a code of its own: an activation may be fenced, and never break."""
    sys.excepthook(type(trouble), trouble, trouble.__traceback__)
    sys.stderr.flush()
    os._exit(70)


def main() -> None:
    """Read the plan and do it."""
    logging.configure("INFO")
    asyncio.run(Process(Plan(**json.loads(sys.stdin.buffer.readline()))).run())


if __name__ == "__main__":
    main()
