"""A world of many entities in which everything that may go wrong does, by the numbers of a seed.

The kernel and PostgreSQL are real; the clock is not, and one scheduler decides who does the
next thing. Processes die at named points and between two things, entities are taken over from
processes that go on, bells are lost, time jumps. In the end everything must be settled.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg.types.json import Jsonb

from foundry_ray.core.errors import InvalidInput, Unavailable
from foundry_ray.core.messages import Message
from foundry_ray.core.secrets import Sealer
from foundry_ray.runtime import mailbox, points
from foundry_ray.runtime.activation import Activation
from foundry_ray.runtime.commit import Fenced
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.refs import Answer, Client
from foundry_ray.runtime.supervisor import Supervisor
from foundry_ray.store.engine import Database
from foundry_ray.testing.clock import FakeClock
from tests.integration.runtime import kit
from tests.integration.runtime.kit import (
    Begin,
    Cancel,
    Crash,
    Do,
    DoFirst,
    PassOn,
    Remind,
    Resume,
    Root,
)
from tests.model.toys import GiveUp, Slow, Worker

PROCESSES = 3
CLIENTS = ("ann", "ben")
NO_PATIENCE = timedelta(0)
# Points that are passed seldom are the more dangerous.
RARE = dict.fromkeys(
    (points.RELEASING, points.RELEASED, points.FAILURE_OPEN, points.AFTER_FAILURE), 4
)


@dataclass(frozen=True)
class Plan:
    """What a history depends on.

    Attributes:
        entities: How many, besides their root.
        ticks: How many things happen before everything comes to rest.
        crash_chance: Of each passing of a point.
    """

    seed: int
    entities: int = 8
    ticks: int = 600
    crash_chance: float = 0.02

    @classmethod
    def from_environment(cls) -> Plan:
        told = {
            name: int(os.environ[f"FOUNDRY_{name.upper()}"])
            for name in ("seed", "entities", "ticks")
            if f"FOUNDRY_{name.upper()}" in os.environ
        }
        return cls(**told)

    def __str__(self) -> str:
        return (
            f"FOUNDRY_SEED={self.seed} FOUNDRY_ENTITIES={self.entities} FOUNDRY_TICKS={self.ticks}"
        )


@dataclass
class Process:
    """One of several that host activations; all of them die at once."""

    number: int
    kernel: Kernel


@dataclass(frozen=True)
class Sent:
    """A command that was acknowledged."""

    client: str
    target: str
    lane: int
    word: str
    command_id: str


class Simulation:
    """One history.

    Args:
        number: Names this history's tree in a database that others use, too.
    """

    def __init__(self, database: Database, plan: Plan, *, number: int = 1) -> None:
        self.plan = plan
        self.dice = random.Random(f"simulation {plan.seed}")
        self.database = database
        self.clock = FakeClock()
        self.root = f"org/{number}"
        self.keys = [f"{self.root}/repo/{n}" for n in range(1, plan.entities + 1)]
        self.outside = Slow(self.dice, self.clock)
        self.processes = [Process(n, self._kernel(n)) for n in range(PROCESSES)]
        kinds = self.processes[0].kernel.actors
        self.client = Client(database, self, self.clock, actors=kinds)
        self.hosted: dict[str, tuple[Process, Activation]] = {}
        self.zombies: list[tuple[Process, Activation]] = []
        self.crash_chance = 0.0
        self.trace: list[str] = []
        self.outside.log = self.trace
        self.passed: dict[str, int] = defaultdict(int)
        self.died: dict[str, int] = defaultdict(int)
        self._words = 0
        self._things = 0
        self.sent: list[Sent] = []
        self.told: dict[str, tuple[str, list[str]]] = {}  # word: from, to
        self.timers: dict[str, tuple[str, str, float]] = {}  # word: entity, name, seconds
        self.runs: dict[str, str] = {}  # run: entity
        self.cancelled: set[str] = set()
        self.houses: dict[str, str] = {}  # run: entity
        self.given_up: set[str] = set()
        self.unordered: set[str] = set()
        self._epochs: dict[str, tuple[int, int]] = {}
        self._logs: dict[str, list[str]] = defaultdict(list)
        self._eye: Supervisor | None = None

    def _kernel(self, number: int) -> Kernel:
        return Kernel(
            database=self.database,
            clock=self.clock,
            sealer=Sealer(b"k" * 32),
            waker=self,
            tools={"repository": self.outside},
            actors={"repository": Worker, "organization": Root},
            idle_factor=0,
            point=lambda name: self._point(number, name),
        )

    # -- what a cluster does: rings find a process, or start one -----------------------------

    def ring(self, key: str) -> None:
        if self.dice.random() < 0.2:
            return  # a bell that nobody hears; the sweep will find it
        if key not in self.hosted:
            self._host(key)
        self.hosted[key][1].ring()

    def end(self, key: str) -> None:
        """The supervisor ends what does not move."""
        if key in self.hosted:
            self.hosted.pop(key)[1].end()

    def drain(self, key: str) -> None:
        if key in self.hosted:
            self.hosted[key][1].drain()

    async def answered(self, key: str, command_id: str) -> None:
        await asyncio.Event().wait()  # clients look later

    async def hand(self, key: str, message: Message) -> Any:
        raise AssertionError("nothing is handed over here")

    def _host(self, key: str) -> None:
        process = self.dice.choice(self.processes)
        self.hosted[key] = (process, Activation(process.kernel, key))

    def _point(self, number: int, name: str) -> None:
        self.passed[name] += 1
        if self.dice.random() < self.crash_chance * RARE.get(name, 1):
            self.died[name] += 1
            self._note(f"process {number} dies at {name}")
            self._kill(self.processes[number])
            raise Crash(name)

    def _kill(self, process: Process) -> None:
        for key, (home, activation) in list(self.hosted.items()):
            if home is process:
                activation.end()
                del self.hosted[key]
        for zombie in [one for one in self.zombies if one[0] is process]:
            zombie[1].end()
            self.zombies.remove(zombie)

    # -- what happens -------------------------------------------------------------------------

    async def run(self) -> None:
        """Let things happen, then let everything come to rest, and check all promises.

        Raises:
            AssertionError: One is broken; the last events and how to repeat it are printed.
        """
        jitter = random.getstate()
        try:
            await self._run()
        except Exception:
            print("\n".join(self.trace[-80:]))
            print(f"{self.plan} pytest tests/model/test_simulation.py -k whatever")
            raise
        finally:
            random.setstate(jitter)

    async def _run(self) -> None:
        async with self.database.transaction() as transaction:
            row = await transaction.one("SELECT current_database() AS name")
        assert row is not None
        kit.OUTSIDE[row["name"]] = self.outside
        asyncio.get_running_loop().set_exception_handler(_forgive_crashes)
        self.crash_chance = self.plan.crash_chance
        actions = {
            self._work: 60, self._send: 14, self._pass_on: 4, self._set_timer: 3,
            self._begin_run: 4, self._cancel_run: 1, self._build: 3, self._give_up: 1.5,
            self._let_a_call_end: 4,
            self._break_a_step: 1, self._wait: 4, self._sweep: 5, self._steal: 1,
            self._kill_one: 0.5, self._vanish: 0.5, self._drain_one: 1,
        }  # fmt: skip
        chosen = self.dice.choices(list(actions), list(actions.values()), k=self.plan.ticks)
        for tick, action in enumerate(chosen):
            await action()
            if tick % 25 == 0:
                await self.check_meanwhile()
        await self._settle()
        await self.check_meanwhile()
        await self.check_at_the_end()

    def _note(self, what: str) -> None:
        self.trace.append(what)

    def _word(self) -> str:
        self._words += 1
        return f"{self.root}:{self._words}"

    async def _work(self) -> None:
        """Somebody does one thing."""
        everybody = [*self.hosted.values(), *self.zombies]
        if everybody:
            await self._let_work(*self.dice.choice(everybody))

    async def _let_work(self, process: Process, activation: Activation) -> None:
        key = activation.key
        # What the kernel's retries take; the pool takes of it, too, for a new connection.
        self._things += 1
        random.seed(f"jitter {self.plan.seed} {self._things}")
        zombie = (process, activation) in self.zombies
        before = await self._entity(key)
        old = bool(before) and 0 < activation.epoch < before[0]["epoch"]
        over = False
        try:
            if activation.holding.actor is None:
                await activation.activate()
                process.kernel.point(points.ACTIVATED)
                await self._say_host(key, _elsewhere(process), activation.epoch)
            elif activation.holding.undone:
                await activation.holding.reload()
            over = await activation.once()
            await asyncio.sleep(0)  # its steps begin
            await asyncio.sleep(0)
        except Fenced:
            self._note(f"{key} fenced, epoch {activation.epoch}")
            over = True
        except Crash:
            return
        self._note(f"{key} epoch {activation.epoch} over {over}")
        if old:
            assert await self._entity(key) == before, f"an old epoch committed: {key}"
        if over:
            activation.end()
            if zombie:
                self.zombies.remove((process, activation))
            elif self.hosted.get(key) == (process, activation):
                del self.hosted[key]

    async def _entity(self, key: str) -> list[dict[str, Any]]:
        return await self._rows("SELECT epoch, revision FROM rt_entity WHERE key = %s", key)

    async def _ask(self, client: str, target: str, command: Message) -> Answer:
        name = f"{self.root} {self._words}"
        answer = await self.client.ask(
            target, command, scope=client, idempotency_key=name, patience=NO_PATIENCE
        )
        if self.dice.random() < 0.2:  # the answer was lost: it asks again
            again = await self.client.ask(
                target, command, scope=client, idempotency_key=name, patience=NO_PATIENCE
            )
            assert again.command_id == answer.command_id
        self.ring(target)
        return answer

    async def _send(self) -> None:
        client, target = self.dice.choice(CLIENTS), self.dice.choice(self.keys)
        word = self._word()
        kind = DoFirst if self.dice.random() < 0.2 else Do
        if self.dice.random() < 0.1:
            self.outside.broken.add(word)
        self._note(f"{client} sends {word} to {target}")
        answer = await self._ask(client, target, kind(word=word))
        self.sent.append(Sent(client, target, int(kind.lane), word, answer.command_id))

    async def _pass_on(self) -> None:
        source = self.dice.choice(self.keys)
        to = self.dice.sample(self.keys, 2)
        word = self._word()
        self.told[word] = (source, to)
        await self._ask("ann", source, PassOn(words=[word], to=to))

    async def _set_timer(self) -> None:
        key, word = self.dice.choice(self.keys), self._word()
        name, after = self.dice.choice("tu"), self.dice.choice((0.0, 1.0, 30.0, 500.0))
        self.timers[word] = (key, name, after)
        await self._ask("ben", key, Remind(name=name, after=after, word=word))

    async def _begin_run(self) -> None:
        key, run_id = self.dice.choice(self.keys), self._word()
        self.runs[run_id] = key
        await self._ask("ann", key, Begin(workflow="toy.pair", run_id=run_id))

    async def _cancel_run(self) -> None:
        if self.runs:
            run_id = self.dice.choice(list(self.runs))
            self.cancelled.add(run_id)
            self._words += 1
            await self._ask("ben", self.runs[run_id], Cancel(run_id=run_id))

    async def _build(self) -> None:
        key, run_id = self.dice.choice(self.keys), self._word()
        self.houses[run_id] = key
        await self._ask("ben", key, Begin(workflow="sim.house", run_id=run_id))

    async def _give_up(self) -> None:
        if self.houses:
            run_id = self.dice.choice(list(self.houses))
            self.given_up.add(run_id)
            self._words += 1
            await self._ask("ben", self.houses[run_id], GiveUp(run_id=run_id))

    async def _let_a_call_end(self) -> None:
        if self.outside.waiting:
            self.outside.waiting.pop(self.dice.randrange(len(self.outside.waiting))).set()
            for _ in range(3):
                await asyncio.sleep(0)

    async def _break_a_step(self) -> None:
        trouble = self.dice.choice((Unavailable("Away."), InvalidInput("No.")))
        self.outside.troubles[self.dice.choice(("one", "two"))].append(trouble)

    async def _wait(self) -> None:
        self.clock.advance(self.dice.choice((0.1, 1, 1, 3, 12, 40, 600)))

    async def _sweep(self) -> None:
        if self._eye is None:
            self._eye = Supervisor(Activation(self.processes[0].kernel, self.root))
        await self._eye.sweep()
        if self.root not in self.hosted and self.dice.random() < 0.5:
            self.ring(self.root)

    async def _steal(self) -> None:
        """A name is lost, the process behind it is not: somebody else takes over."""
        if self.hosted:
            key = self.dice.choice(list(self.hosted))
            self.zombies.append(self.hosted.pop(key))
            self._note(f"{key} stolen")
            self._host(key)
            await self._let_work(*self.hosted[key])

    async def _kill_one(self) -> None:
        process = self.dice.choice(self.processes)
        self._note(f"process {process.number} killed")
        self._kill(process)

    async def _vanish(self) -> None:
        """Everybody can see that the last process of an entity is gone."""
        key = self.dice.choice(self.keys)
        if key not in self.hosted and all(one.key != key for _, one in self.zombies):
            await self._say_host(key, kit.a_dead_process())

    async def _say_host(self, key: str, where: Jsonb, epoch: int | None = None) -> None:
        await self._execute(
            "UPDATE rt_entity SET host = %s WHERE key = %s AND host IS NOT NULL"
            " AND epoch = coalesce(%s, epoch)",
            where,
            key,
            epoch,
        )

    async def _drain_one(self) -> None:
        if self.hosted:
            self.drain(self.dice.choice(list(self.hosted)))

    # -- the end ------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Nothing breaks any more: give everything its time."""
        self.crash_chance = 0.0
        self.outside.broken.clear()
        self.outside.troubles.clear()
        for _, zombie in self.zombies:
            zombie.end()
        self.zombies.clear()
        for _ in range(400):
            self.clock.advance(15)
            while self.outside.waiting:
                await self._let_a_call_end()
            await self._sweep()
            self.hosted.setdefault(self.root, (self.processes[0], self._new(self.root)))
            for home, activation in list(self.hosted.values()):
                for _ in range(3):
                    if activation.ended.is_set():
                        break
                    await self._let_work(home, activation)
            await self._retry()
            if await self._nothing_waits() and not self.hosted:
                return
        raise AssertionError(f"something waits for ever: {await self._mail()}")

    def _new(self, key: str) -> Activation:
        return Activation(self.processes[0].kernel, key)

    async def _retry(self) -> None:
        """An operator takes care of what is parked."""
        parked = await self._rows(
            "SELECT id, body ->> 'word' AS word, body ->> 'run_id' AS run, body -> 'words' AS words"
            " FROM rt_mailbox WHERE root = %s AND parked_at IS NOT NULL",
            self.root,
        )
        for row in parked:
            self.unordered |= {row["word"], row["run"], *(row["words"] or ())}
            async with self.database.transaction() as transaction:
                await mailbox.retry(transaction, row["id"], self.clock.now())
        runs = await self._rows(
            "SELECT id, entity_key FROM rt_run WHERE entity_key LIKE %s AND state = 'parked'",
            f"{self.root}/%",
        )
        for row in runs:
            waiting = await self._rows(
                "SELECT 1 FROM rt_mailbox WHERE target = %s AND body ->> 'run_id' = %s",
                row["entity_key"],
                row["id"],
            )
            if not waiting:
                self._words += 1
                await self._ask("ann", row["entity_key"], Resume(run_id=row["id"]))

    async def _mail(self) -> list[dict[str, Any]]:
        return await self._rows("SELECT * FROM rt_mailbox WHERE root = %s", self.root)

    async def _nothing_waits(self) -> bool:
        return not await self._mail()

    # -- what always holds ----------------------------------------------------------------------

    async def check_meanwhile(self) -> None:
        """Epochs and revisions only rise; what was applied stays, and is applied once."""
        for row in await self._rows(
            "SELECT key, epoch, revision FROM rt_entity WHERE root = %s", self.root
        ):
            present = (row["epoch"], row["revision"])
            before = self._epochs.get(row["key"], (0, 0))
            assert present >= before and present[1] >= before[1], (row["key"], before, present)
            self._epochs[row["key"]] = present
        for key in self.keys:
            log = await self.log(key)
            known = self._logs[key]
            assert log[: len(known)] == known, f"what was applied at {key} has changed"
            assert len(set(log)) == len(log), f"applied twice at {key}"
            self._logs[key] = log
        assert not self.outside.twice, f"two worked on one step at once: {self.outside.twice}"

    async def check_at_the_end(self) -> None:
        """Nothing is lost, everything is in order, and nothing is half done."""
        for sent in self.sent:
            log = self._logs[sent.target]
            assert sent.word in log, f"lost: {sent}"
            answer = await self.client.look(sent.command_id)
            assert answer.answered
            assert answer.body == {"count": log.index(sent.word) + 1}, sent
        self._check_order()
        self._check_told()
        await self._check_timers()
        await self._check_runs()
        self._check_houses()
        issues = await self._rows(
            "SELECT fingerprint, affected FROM rt_issue WHERE actor_key = %s"
            " AND resolved_at IS NULL",
            self.root,
        )
        assert not issues, "an issue stays open though all work succeeded"
        feed = await self._rows(
            "SELECT data ->> 'word' AS word FROM rt_feed WHERE data ->> 'key' LIKE %s",
            f"{self.root}/%",
        )
        shown = sorted(row["word"] for row in feed)
        assert shown == sorted(word for log in self._logs.values() for word in log)

    def _check_order(self) -> None:
        lines: dict[tuple[str, str, int], list[str]] = defaultdict(list)
        for sent in self.sent:
            if sent.word not in self.unordered:
                lines[(sent.client, sent.target, sent.lane)].append(sent.word)
        for (client, target, _), words in lines.items():
            wanted = set(words)
            found = [word for word in self._logs[target] if word in wanted]
            assert found == words, f"out of order from {client} at {target}"

    def _check_told(self) -> None:
        for word, (source, to) in self.told.items():
            for target in to:
                assert f"sent {word} to {target}" in self._logs[source], f"lost: {word}"
                assert word in self._logs[target], f"lost on the way: {word} to {target}"
        for source in self.keys:
            for target in self.keys:
                said = [w.split()[1] for w in self._logs[source] if w.endswith(f" to {target}")]
                said = [word for word in said if word not in self.unordered]
                found = [word for word in self._logs[target] if word in set(said)]
                assert found == said, f"out of order from {source} at {target}"

    async def _check_timers(self) -> None:
        for key in self.keys:
            times = await self._times(key)
            last: dict[str, str] = {}
            for what in times:
                if what.startswith("set "):
                    _, name, _, word = what.split()
                    last[name] = word
            for word, (entity, name, after) in self.timers.items():
                if entity != key:
                    continue
                set_at = times[f"set {name} {after} {word}"]
                fired = times.get(word)
                assert fired or last[name] != word, f"a timer never fired: {word}"
                assert fired is None or fired >= set_at + timedelta(seconds=after), word

    async def _check_runs(self) -> None:
        assert not await self._rows(
            "SELECT id FROM rt_run WHERE entity_key LIKE %s", f"{self.root}/%"
        )
        for run_id, key in self.runs.items():
            done = [word for word in self._logs[key] if word.startswith(f"{run_id}/")]
            whole = [f"{run_id}/one", f"{run_id}/two"]
            if run_id in self.cancelled:
                assert done == whole[: len(done)]
            else:
                assert done == whole, f"half done: {run_id} {done}"
            assert {word for word in self.outside.effects if word.startswith(f"{run_id}/")} >= set(
                done
            )

    def _check_houses(self) -> None:
        for run_id, key in self.houses.items():
            log = self._logs[key]
            ends = [f"built {run_id}" in log, f"undone {run_id}" in log]
            assert sum(ends) == 1, f"half done: {run_id}"
            assert ends[0] or run_id in self.given_up, run_id
            standing = {f"{run_id}/walls", f"{run_id}/roof"} & self.outside.built
            assert len(standing) == (2 if ends[0] else 0), f"half built: {standing}"

    # -- rows -----------------------------------------------------------------------------------

    async def log(self, key: str) -> list[str]:
        """Return what an entity wrote down."""
        async with self.database.transaction() as transaction:
            return await kit.words(transaction, key)

    async def _times(self, key: str) -> dict[str, datetime]:
        rows = await self._rows(
            "SELECT summary, at FROM history_event WHERE actor_key = %s ORDER BY id", key
        )
        return {row["summary"]: row["at"] for row in rows}

    async def _rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        async with self.database.transaction() as transaction:
            return [dict(row) for row in await transaction.fetch(sql, values)]

    async def _execute(self, sql: str, *values: Any) -> None:
        async with self.database.transaction() as transaction:
            await transaction.execute(sql, values)


def _elsewhere(process: Process) -> Jsonb:
    """A machine of its own: nobody can tell whether the process is gone."""
    return Jsonb({"node": f"machine {process.number}", "pid": 1, "started": 1})


def _forgive_crashes(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A step's task that died with its process is nobody's concern."""
    if not isinstance(context.get("exception"), Crash):
        loop.default_exception_handler(context)
