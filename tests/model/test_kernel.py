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
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
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

from foundry_ray.core.errors import Dropped, Internal, InvalidInput, Unavailable
from foundry_ray.core.messages import Message
from foundry_ray.core.secrets import Sealer
from foundry_ray.runtime import mailbox, points
from foundry_ray.runtime.activation import Activation
from foundry_ray.runtime.commit import Fenced
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.refs import Answer, Client
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Run
from foundry_ray.store.engine import Database, Transaction
from foundry_ray.testing.clock import FakeClock
from tests.integration.runtime import kit
from tests.integration.runtime.kit import (
    Begin,
    Cancel,
    Child,
    Crash,
    Do,
    DoFirst,
    Outside,
    Resume,
    Root,
    Words,
)

EXAMPLES = int(os.environ.get("FOUNDRY_MODEL_EXAMPLES", "0"))
T = TypeVar("T")
# Where one does a thing; the others are passed by starts, and by steps in their own tasks.
HERE = [
    name
    for name in points.POINTS
    if name not in (points.ACTIVATING, points.ACTIVATED, points.STEP_DONE)
]
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
        await asyncio.Event().wait()  # who asks looks later

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
        self.client = Client(self.bench.database, Deaf(), self.clock, actors=self.kernel.actors)
        self.asked: dict[str, str] = {}  # command id: word
        self.retried: set[str] = set()
        self.thrown_away: set[str] = set()
        self.cancelled: set[str] = set()
        self.leaving: list[Activation] = []

    def _point(self, name: str) -> None:
        if name == self.crash_at:
            self.crash_at = None
            raise Crash(name)

    # -- what happens -------------------------------------------------------------------

    def _word(self, breaks: bool) -> str:
        word = next(self.words)
        if breaks:
            self.bad.add(word)
            self.outside.broken.add(word)
        return word

    @rule(
        sender=st.sampled_from(SENDERS),
        first=st.sampled_from([False, False, True]),
        bad=st.lists(st.sampled_from([False, False, True]), min_size=1, max_size=3),
    )
    def send(self, sender: str, first: bool, bad: list[bool]) -> None:
        for breaks in bad:
            word = self._word(breaks)
            message = (DoFirst if first else Do)(word=word)
            self._put(message, sender)
            self.sent[(sender, int(message.lane))].append(word)

    @rule(
        sender=st.sampled_from(SENDERS), times=st.integers(1, 3),
        bad=st.sampled_from([False, False, True]),
    )  # fmt: skip
    def ask(self, sender: str, times: int, bad: bool) -> None:
        """A client that hears nothing asks again, under the same name."""
        word = self._word(bad)
        found = {self._ask(sender, word) for _ in range(times)}
        assert len(found) == 1
        self.asked[found.pop()] = word
        self.sent[(f"client/{sender}", int(Do.lane))].append(word)

    @rule(heal=st.booleans())
    def retry_what_is_parked(self, heal: bool) -> None:
        for row in self._parked():
            self.retried.add(row["word"] or "")
            if heal:
                self.bad.discard(row["word"])
                self.outside.broken.discard(row["word"])
            self._operate(partial(mailbox.retry, letter_id=row["id"], now=self.clock.now()))

    @rule()
    def drop_what_is_parked(self) -> None:
        for row in self._parked():
            if row["word"]:
                self.thrown_away.add(row["word"])
                self._operate(partial(mailbox.drop, letter_id=row["id"], now=self.clock.now()))

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: self.runs)
    def cancel_a_run(self, which: int) -> None:
        run_id = self.runs[which % len(self.runs)]
        self.cancelled.add(run_id)
        self._put(Cancel(run_id=run_id), "y")

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: self.runs)
    def resume_a_run(self, which: int) -> None:
        self._put(Resume(run_id=self.runs[which % len(self.runs)]), "y")

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: self.live)
    def let_one_leave(self, which: int) -> None:
        activation = self.live[which % len(self.live)]
        activation.drain()
        self.leaving.append(activation)

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

    @rule(
        which=st.sampled_from([0, 0, 0, 0, 1, 2]), things=st.integers(1, 4),
        crash=st.sampled_from([*[None] * 8, *HERE]),
    )  # fmt: skip
    @precondition(lambda self: self.live)
    def work(self, which: int, things: int, crash: str | None) -> None:
        """Any activation, also a fenced one, does a few things, perhaps its last."""
        activation = self.live[-1 - which % len(self.live)]
        current = activation.epoch == self.begun
        before = self._entity()
        self.crash_at = crash
        while things and activation in self.live:
            self._once(activation)
            things -= 1
        self.crash_at = None
        if not current:
            assert self._entity() == before, "an old epoch committed"

    @rule()
    def let_attempts_pass(self) -> None:
        """What fails each time is parked."""
        activation = self._activate()
        for _ in range(12):
            if activation not in self.live:
                break
            self._once(activation)
            self.clock.advance(6)

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

    def _ask(self, sender: str, word: str) -> str:
        asked = self.client.ask(
            self.key, Do(word=word), scope=sender, idempotency_key=word, patience=timedelta(0)
        )
        answer: Answer = self.bench.run(asked)
        return answer.command_id

    def _parked(self) -> list[dict[str, Any]]:
        return self._rows(
            "SELECT id, body ->> 'word' AS word FROM rt_mailbox"
            " WHERE target = %s AND parked_at IS NOT NULL",
            self.key,
        )

    def _operate(self, work: Callable[[Transaction], Awaitable[Any]]) -> None:
        async def operate() -> None:
            async with self.bench.database.transaction() as transaction:
                await work(transaction)

        self.bench.run(operate())

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
        if over is True and activation not in self.leaving:
            due = self._rows(
                "SELECT 1 FROM rt_mailbox WHERE target = %s AND parked_at IS NULL AND due_at <= %s",
                self.key,
                self.clock.now(),
            )
            assert not due, "passivated, and something was due"
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
        assert acknowledged <= done | waiting | self.thrown_away, "lost"
        assert not self.thrown_away & (done | waiting), "dropped and still there"
        assert not done & waiting, "applied and still there"
        assert set(self.timers.values()) <= done | waiting | self.thrown_away
        assert not self.dropped & (done | waiting)
        assert not self.bad & done
        assert not (parked - self.bad) or self.begun > mailbox.PATIENCE.max_attempts
        for words in self.sent.values():
            aside = parked | self.retried | self.thrown_away
            order = [word for word in words if word not in aside]
            here = [word for word in applied if word in set(order)]
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
        self._check_answers()
        for run_id in set(self.runs) - {row["id"] for row in never} - self.cancelled:
            if run_id in runs:
                assert runs[run_id] == "parked"
                assert self.failing or self.begun > mailbox.PATIENCE.max_attempts
            else:
                assert {f"{run_id}/{step}" for step in STEPS} <= applied
                assert {f"{run_id}/{step}" for step in STEPS} <= set(self.outside.effects)

    def _check_answers(self) -> None:
        applied = self._applied()
        for command_id, word in self.asked.items():
            try:
                answer: Answer = self.bench.run(self.client.look(command_id))
            except Dropped:
                assert word in self.thrown_away
            except Internal:
                assert word not in applied
            else:
                assert answer.answered
                assert answer.body == {"count": applied.index(word) + 1}

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
