"""The kernel against its promises, in whatever order things happen.

Hypothesis makes up histories: senders, turns, crashes at any point, stolen
activations, timers, clocks, steps that fail or come late. The kernel is the real
one on a real PostgreSQL; only the clock is ours. After every rule, and at the end
when everything had its time:

- no acknowledged message is lost: it was applied, or waits, or is parked and reported;
- each is applied once, and those of one sender in their order;
- epochs rise by one with each activation, and an old one commits nothing;
- nothing that is due is forgotten.

``FOUNDRY_MODEL_EXAMPLES=500 pytest tests/model`` looks further, at random; what it
finds is printed as a blob for ``@reproduce_failure``.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from foundry_ray.core.errors import InvalidInput, Unavailable
from foundry_ray.core.messages import Message
from foundry_ray.core.secrets import Sealer
from foundry_ray.runtime import mailbox
from foundry_ray.runtime.activation import Activation
from foundry_ray.runtime.commit import Fenced
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Run
from foundry_ray.store.engine import Database
from foundry_ray.testing.clock import FakeClock
from tests.integration.runtime import kit
from tests.integration.runtime.kit import Begin, Child, Crash, Do, DoFirst, Outside, Root, Words

EXAMPLES = int(os.environ.get("FOUNDRY_MODEL_EXAMPLES", "0"))
T = TypeVar("T")
POINTS = ["before_begin", "turn_open", "before_commit", "after_commit", "step_claimed"]
SENDERS = ["x", "y", "z"]
STEPS = ("one", "two")


class Pair(kit.Chain):
    """Two steps; each result is written down under the run's name."""

    kind = "toy.pair"
    steps = (kit.one, kit.two)

    def next(self, state: Words, run: Run, result: Any, turn: Turn) -> Next:
        first = run.step == "toy-one"
        state.add(f"{run.id}/{'one' if first else 'two'}", turn)
        return Go(kit.two, result) if first else Done()


class Worker(Child):
    workflows = (Pair,)


class Deaf:
    """Rings nobody: the rules say who looks into a mailbox, and when."""

    def ring(self, key: str) -> None:
        pass

    async def answered(self, key: str, command_id: str) -> None:
        raise AssertionError("nobody asks here")

    async def hand(self, key: str, message: Message) -> Any:
        raise AssertionError("nothing is handed over here")

    def end(self, key: str) -> None:
        pass


class Bench:
    """What all histories of one test share: a loop, a database, new names."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.database = Database(url, name="toy", size=4)
        self.names = count(1)
        self.run(self.database.open())
        row = self.run(self._name())
        self.outside = kit.OUTSIDE.setdefault(row, Outside())

    async def _name(self) -> str:
        async with self.database.transaction() as transaction:
            row = await transaction.one("SELECT current_database() AS name")
        assert row is not None
        return str(row["name"])

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def close(self) -> None:
        self.run(self.database.close())
        self.runner.close()


class Histories(RuleBasedStateMachine):
    bench: Bench

    @initialize()
    def begin(self) -> None:
        number = next(self.bench.names)
        self.root, self.key = f"org/{number}", f"org/{number}/repo/1"
        self.clock = FakeClock()
        self.outside = self.bench.outside
        self.outside.troubles.clear()
        self.outside.gates = {step: asyncio.Event() for step in STEPS}
        self.kernel = Kernel(
            database=self.bench.database,
            clock=self.clock,
            sealer=Sealer(b"k" * 32),
            waker=Deaf(),
            tools={"repository": self.outside},
            actors={"repository": Worker, "organization": Root},
            idle_factor=0,
            point=self._point,
        )
        self.crash_at: str | None = None
        self.live: list[Activation] = []
        self.words = (f"{self.key}:{n}" for n in count(1))
        self.sent: dict[tuple[str, int], list[str]] = defaultdict(list)
        self.bad: set[str] = set()
        self.timers: dict[str, str] = {}
        self.dropped: set[str] = set()
        self.runs: list[str] = []
        self.failing = 0
        self.begun = 0  # activations
        self.seen: list[str] = []

    def _point(self, name: str) -> None:
        if name == self.crash_at:
            self.crash_at = None
            raise Crash(name)

    # -- what happens -------------------------------------------------------------------

    @rule(sender=st.sampled_from(SENDERS), first=st.booleans(), bad=st.sampled_from([0, 0, 0, 1]))
    def send(self, sender: str, first: bool, bad: int) -> None:
        word = next(self.words)
        message = (DoFirst if first else Do)(word=word)
        if bad:
            self.bad.add(word)
            self.outside.broken.add(word)
        self._put(message, sender)
        self.sent[(sender, int(message.lane))].append(word)

    @rule(name=st.sampled_from(["t", "u"]), after=st.sampled_from([0, 1, 30]))
    def set_timer(self, name: str, after: float) -> None:
        word = next(self.words)
        if (old := self.timers.get(name)) and old not in self._applied():
            self.dropped.add(old)
        due = self.clock.now() + timedelta(seconds=after)
        self._put(Do(word=word), self.key, timer=name, due_at=due)
        self.timers[name] = word

    @rule()
    def begin_run(self) -> None:
        run_id = next(self.words)
        self._put(Begin(workflow="toy.pair", run_id=run_id), "x")
        self.runs.append(run_id)

    @rule(step=st.sampled_from(STEPS), again=st.booleans())
    @precondition(lambda self: self.failing < 2)
    def let_a_step_fail(self, step: str, again: bool) -> None:
        self.failing += 1
        trouble = Unavailable("Away.") if again else InvalidInput("No.")
        self.outside.troubles[step].append(trouble)

    @rule(seconds=st.sampled_from([0.3, 2, 12, 40]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def activate(self) -> None:
        """A process takes the entity over, whether or not another one still has it."""
        self._activate()

    @rule(which=st.integers(0, 9), crash=st.sampled_from([None, None, None, *POINTS]))
    @precondition(lambda self: self.live)
    def work(self, which: int, crash: str | None) -> None:
        """Any activation, also a fenced one, does one thing, perhaps its last."""
        activation = self.live[which % len(self.live)]
        current = activation.epoch == self.begun
        before = self._entity()
        self.crash_at = crash
        self._once(activation)
        self.crash_at = None
        if not current:
            assert self._entity() == before, "an old epoch committed"

    @rule()
    @precondition(lambda self: self.live and self.live[-1].epoch == self.begun)
    def be_robbed_in_the_middle_of_a_turn(self) -> None:
        """The entity is taken over after its mail was read and before the commit."""
        victim = self.live[-1]
        choice = self.bench.run(victim.choose(self.clock.now()))
        self._activate()
        before = self._entity()
        if choice.message is not None:
            with pytest.raises(Fenced):
                self.bench.run(victim.turns.handle(choice.message))
            self._end(victim)
        assert self._entity() == before

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: self.live)
    def die(self, which: int) -> None:
        self._end(self.live[which % len(self.live)])

    @rule()
    @precondition(lambda self: self.begun)
    def vanish_to_another_machine(self) -> None:
        """Nobody can tell any more whether the last activation is gone."""
        self._sql(
            "UPDATE rt_entity SET host = %s WHERE key = %s AND host IS NOT NULL",
            kit.somewhere_else(),
            self.key,
        )

    @rule()
    def let_steps_finish(self) -> None:
        self.bench.run(self._open_gates())

    # -- how it is done ------------------------------------------------------------------

    async def _open_gates(self) -> None:
        for gate in self.outside.gates.values():
            gate.set()
        for _ in range(4):
            await asyncio.sleep(0)
        for gate in self.outside.gates.values():
            gate.clear()

    def _put(self, message: Message, sender: str, **told: Any) -> None:
        async def put() -> None:
            async with self.bench.database.transaction() as transaction:
                now = self.clock.now()
                await mailbox.put(transaction, self.key, message, sender=sender, now=now, **told)

        self.bench.run(put())

    def _activate(self) -> Activation:
        activation = Activation(self.kernel, self.key)
        self.bench.run(activation.activate())
        self.begun += 1
        assert activation.epoch == self.begun
        self.live.append(activation)
        return activation

    def _once(self, activation: Activation) -> None:
        over: BaseException | bool
        try:
            over = self.bench.run(self._do_one_thing(activation))
        except (Crash, Fenced) as trouble:
            over = trouble
        if over:
            self._end(activation)
        elif activation.holding.actor is None:  # released, and rung meanwhile: as its loop does
            self.bench.run(activation.activate())
            self.begun += 1

    @staticmethod
    async def _do_one_thing(activation: Activation) -> bool:
        over = await activation.once()
        for _ in range(2):
            await asyncio.sleep(0)  # its steps begin
        return over

    def _end(self, activation: Activation) -> None:
        async def end() -> None:
            activation.end()

        self.live.remove(activation)
        self.bench.run(end())

    def _sql(self, sql: str, *values: Any) -> None:
        async def execute() -> None:
            async with self.bench.database.transaction() as transaction:
                await transaction.execute(sql, values)

        self.bench.run(execute())

    def _rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        async def fetch() -> list[dict[str, Any]]:
            async with self.bench.database.transaction() as transaction:
                return [dict(row) for row in await transaction.fetch(sql, values)]

        rows: list[dict[str, Any]] = self.bench.run(fetch())
        return rows

    def _applied(self) -> list[str]:
        async def fetch() -> list[str]:
            async with self.bench.database.transaction() as transaction:
                return await kit.words(transaction, self.key)

        applied: list[str] = self.bench.run(fetch())
        return applied

    def _entity(self) -> list[dict[str, Any]]:
        return self._rows("SELECT epoch, revision FROM rt_entity WHERE key = %s", self.key)

    # -- what always holds ------------------------------------------------------------------

    @invariant()
    def nothing_is_lost_or_done_twice_and_order_holds(self) -> None:
        if not hasattr(self, "key"):
            return
        applied = self._applied()
        mail = self._rows(
            "SELECT body ->> 'word' AS word, parked_at IS NOT NULL AS parked FROM rt_mailbox"
            " WHERE target = %s AND body ? 'word'",
            self.key,
        )
        assert applied[: len(self.seen)] == self.seen, "what was applied stays"
        self.seen = applied
        named = [word for word in applied if word.startswith(self.key)]
        assert len(set(named)) == len(named), "applied twice"
        waiting = {row["word"] for row in mail}
        parked = {row["word"] for row in mail if row["parked"]}
        done = set(applied)
        acknowledged = {word for words in self.sent.values() for word in words}
        assert acknowledged <= done | waiting, "lost"
        assert not done & waiting, "applied and still there"
        assert set(self.timers.values()) <= done | waiting
        assert not self.dropped & (done | waiting)
        assert not self.bad & done
        assert not (parked - self.bad) or self.begun > mailbox.PATIENCE.max_attempts
        for words in self.sent.values():
            order = [word for word in words if word not in parked]
            here = [word for word in applied if word in set(words)]
            assert here == order[: len(here)], "out of order"
        [entity] = self._entity() or [{"epoch": 0}]
        assert entity["epoch"] == self.begun

    def teardown(self) -> None:
        """Give everything its time; then nothing waits, and every run is over or parked."""
        if not hasattr(self, "key"):
            return
        for activation in list(self.live):
            self._end(activation)
        for gate in self.outside.gates.values():
            gate.set()
        self.bench.run(self._drain())
        [entity] = self._entity() or [{"epoch": 0}]
        self.begun = entity["epoch"]
        self.nothing_is_lost_or_done_twice_and_order_holds()
        applied = set(self._applied())
        found = self._rows("SELECT id, state FROM rt_run WHERE entity_key = %s", self.key)
        runs = {row["id"]: row["state"] for row in found}
        never = self._rows(
            "SELECT body ->> 'run_id' AS id FROM rt_mailbox WHERE target = %s"
            " AND parked_at IS NOT NULL AND body ? 'run_id'",
            self.key,
        )
        assert not never or self.begun > mailbox.PATIENCE.max_attempts
        for run_id in set(self.runs) - {row["id"] for row in never}:
            if run_id in runs:
                assert runs[run_id] == "parked"
                assert self.failing or self.begun > mailbox.PATIENCE.max_attempts
            else:
                assert {f"{run_id}/{step}" for step in STEPS} <= applied
                assert {f"{run_id}/{step}" for step in STEPS} <= set(self.outside.effects)

    async def _has_work(self, activation: Activation) -> bool:
        choice = await activation.choose(self.clock.now())
        return bool(
            choice.message
            or choice.steps
            or activation.holding.working
            or activation.steps.outcomes
        )

    async def _drain(self) -> None:
        """Let new activations of the entity and its root work until nothing waits."""
        for _ in range(60):
            for key in (self.key, self.root):
                activation = Activation(self.kernel, key)
                await activation.activate()
                while await self._has_work(activation):
                    await self._do_one_thing(activation)
                activation.drain()
                assert await self._do_one_thing(activation)
            async with self.bench.database.transaction() as transaction:
                waiting = await transaction.one(
                    "SELECT 1 FROM rt_mailbox WHERE root = %s AND parked_at IS NULL", (self.root,)
                )
            if waiting is None:
                return
            self.clock.advance(15)
        raise AssertionError("something waits for ever")


def test_the_kernel_keeps_its_promises(database_url: str) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    bench = Bench(database_url)
    machine = type("Histories", (Histories,), {"bench": bench})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                derandomize=not EXAMPLES,
                max_examples=EXAMPLES or 25,
                stateful_step_count=30,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        structlog.reset_defaults()
        bench.close()
