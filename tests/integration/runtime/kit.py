"""Toy entities on the real kernel and a real PostgreSQL.

Their kinds borrow the keys of real ones: ``org/1`` is a root that keeps issues,
``org/1/repo/<n>`` its children, which write down what they are told, and work.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import Jsonb

from foundry_ray.actors.history.tables import HistoryEvent
from foundry_ray.core.clock import Clock
from foundry_ray.core.errors import FoundryError, Unavailable, WrongState
from foundry_ray.core.messages import (
    ChildFailed,
    Command,
    Event,
    IssueReported,
    IssueResolved,
    Lane,
    Message,
    Value,
)
from foundry_ray.core.retry import RetryPolicy
from foundry_ray.core.secrets import Sealer
from foundry_ray.runtime import mailbox
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.host import here
from foundry_ray.runtime.issues import IssueBook
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.local import LocalHost
from foundry_ray.runtime.refs import Client
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Nothing, Run, StepContext, Wait, Workflow
from foundry_ray.runtime.workflow import step as make_step
from foundry_ray.store.engine import Database, Transaction
from foundry_ray.testing.clock import FakeClock
from tests.helpers import eventually

ROOT = "org/1"
A, B, C = "org/1/repo/1", "org/1/repo/2", "org/1/repo/3"
TOPIC = "repository:1/1"


# -- messages ------------------------------------------------------------------


class Do(Command):
    kind: Literal["runtime.toy_do"] = "runtime.toy_do"
    word: str


class DoFirst(Command):
    lane = Lane.CONTROL
    kind: Literal["runtime.toy_do_first"] = "runtime.toy_do_first"
    word: str


class PassOn(Command):
    kind: Literal["runtime.toy_pass_on"] = "runtime.toy_pass_on"
    words: list[str]
    to: list[str]


class Remind(Command):
    kind: Literal["runtime.toy_remind"] = "runtime.toy_remind"
    name: str
    after: float
    word: str


class Forget(Command):
    kind: Literal["runtime.toy_forget"] = "runtime.toy_forget"
    name: str


class Refuse(Command):
    kind: Literal["runtime.toy_refuse"] = "runtime.toy_refuse"
    word: str


class Defer(Command):
    kind: Literal["runtime.toy_defer"] = "runtime.toy_defer"


class Begin(Command):
    kind: Literal["runtime.toy_begin"] = "runtime.toy_begin"
    workflow: str = "toy.chain"
    run_id: str = "run"


class Resume(Command):
    kind: Literal["runtime.toy_resume"] = "runtime.toy_resume"
    run_id: str = "run"


class GoOn(Command):
    kind: Literal["runtime.toy_go_on"] = "runtime.toy_go_on"
    run_id: str = "run"


class Fail(Command):
    kind: Literal["runtime.toy_fail"] = "runtime.toy_fail"
    run_id: str = "run"


class Cancel(Command):
    lane = Lane.CONTROL
    kind: Literal["runtime.toy_cancel"] = "runtime.toy_cancel"
    run_id: str = "run"


class Told(Event):
    kind: Literal["runtime.toy_told"] = "runtime.toy_told"
    word: str


# -- the outside -----------------------------------------------------------------


@dataclass
class Outside:
    """The world outside: it remembers each effect by its idempotency key.

    Attributes:
        calls: Every call, in order.
        effects: Idempotency key to how often it was asked for.
        troubles: Step name to the errors of its next calls.
        gates: Step name to an event that its call waits for.
        broken: Words at which a handler breaks.
    """

    calls: list[str] = field(default_factory=list)
    effects: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    troubles: dict[str, list[BaseException]] = field(default_factory=lambda: defaultdict(list))
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    async def effect(self, step: str, context: StepContext) -> None:
        self.calls.append(step)
        if (gate := self.gates.get(step)) is not None:
            await gate.wait()
        if self.troubles[step]:
            raise self.troubles[step].pop(0)
        self.effects[f"{context.run_id}/{step}"] += 1


OUTSIDE: dict[str, Outside] = {}  # by the kernel's database: handlers may do no I/O


class Word(Value):
    word: str


QUICK = RetryPolicy(
    max_attempts=3, first_delay=timedelta(seconds=1), max_delay=timedelta(seconds=4)
)


@make_step("toy-one", timeout=timedelta(seconds=30), retry=QUICK)
async def one(tools: Outside, input: Nothing, context: StepContext) -> Word:
    await tools.effect("one", context)
    return Word(word="one")


@make_step("toy-two", timeout=timedelta(seconds=30), retry=QUICK)
async def two(tools: Outside, input: Word, context: StepContext) -> Word:
    await tools.effect("two", context)
    return Word(word=f"{input.word} two")


@make_step("toy-three", timeout=timedelta(seconds=0.2), retry=QUICK)
async def three(tools: Outside, input: Word, context: StepContext) -> Word:
    await tools.effect("three", context)
    return Word(word=f"{input.word} three")


class Chain(Workflow["Words"]):
    """Three steps, each of which is written down."""

    kind = "toy.chain"
    steps = (one, two, three)

    def begin(self, state: Words, run: Run, turn: Turn) -> Next:
        return Go(one, Nothing())

    def next(self, state: Words, run: Run, result: Any, turn: Turn) -> Next:
        if f"after {result.word}" in state.outside.broken:
            raise RuntimeError("the order of steps is broken")
        state.add(result.word, turn)
        match run.step:
            case "toy-one":
                return Go(two, result)
            case "toy-two":
                return Go(three, result)
            case _:
                return Done()

    def on_retry(self, state: Words, run: Run, error: FoundryError, turn: Turn) -> None:
        state.add(f"again {run.step} {run.attempt}", turn)

    def on_error(self, state: Words, run: Run, error: FoundryError, turn: Turn) -> None:
        if "on_error" in state.outside.broken:
            raise RuntimeError("on_error is broken")
        state.add(f"gave up {run.step} {error.code}", turn)


class Fleeting(Chain):
    """As Chain, but a failed run ends instead of being parked."""

    kind = "toy.fleeting"

    def on_error(self, state: Words, run: Run, error: FoundryError, turn: Turn) -> None:
        super().on_error(state, run, error, turn)
        turn.cancel(run.id)


class Patient(Chain):
    """Waits for a message before its only step."""

    kind = "toy.patient"

    def begin(self, state: Words, run: Run, turn: Turn) -> Next:
        return Wait()

    def next(self, state: Words, run: Run, result: Any, turn: Turn) -> Next:
        state.add(result.word, turn)
        return Done()


# -- actors ------------------------------------------------------------------------


@dataclass
class Words:
    """What an entity wrote down, in order; also its state."""

    key: str
    outside: Outside
    words: list[str] = field(default_factory=list)
    deferred: list[str] = field(default_factory=list)

    def add(self, word: str, turn: Turn) -> None:
        self.words.append(word)
        row = HistoryEvent(
            actor_key=self.key,
            id=f"{len(self.words):08d}",
            at=turn.now,
            actor={},
            kind="toy",
            repository_id="",
            summary=word,
            data={},
        )
        turn.insert(row)
        turn.publish(TOPIC, "history", row.id, 1, {"key": self.key, "word": word})

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> Words:
        row = await transaction.one("SELECT current_database() AS name")
        assert row is not None
        return cls(key, OUTSIDE[row["name"]], await words(transaction, key))


async def words(transaction: Transaction, key: str) -> list[str]:
    rows = await transaction.rows(HistoryEvent, "WHERE actor_key = %s ORDER BY id", (key,))
    return [row.summary for row in rows]


class Child(Actor[Words]):
    actor_type = "repository"
    idle_after = timedelta(seconds=60)
    workflows = (Chain, Fleeting, Patient)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> Words:
        return await Words.load(transaction, key)

    def _add(self, word: str, turn: Turn) -> dict[str, int]:
        self.state.add(word, turn)
        if word in self.state.outside.broken:
            raise RuntimeError("this handler is broken")
        return {"count": len(self.state.words)}

    @handles
    def do(self, command: Do, turn: Turn) -> dict[str, int]:
        return self._add(command.word, turn)

    @handles
    def do_first(self, command: DoFirst, turn: Turn) -> dict[str, int]:
        return self._add(command.word, turn)

    @handles
    def told(self, event: Told, turn: Turn) -> None:
        self._add(event.word, turn)

    @handles
    def pass_on(self, command: PassOn, turn: Turn) -> None:
        for word in command.words:
            for target in command.to:
                turn.tell(target, Told(word=word))

    @handles
    def remind(self, command: Remind, turn: Turn) -> None:
        turn.remind(command.name, timedelta(seconds=command.after), Told(word=command.word))

    @handles
    def forget(self, command: Forget, turn: Turn) -> None:
        turn.forget(command.name)

    @handles
    def refuse(self, command: Refuse, turn: Turn) -> None:
        self.state.add(command.word, turn)
        turn.tell(B, Told(word=command.word))
        turn.start("toy.chain", Nothing(), run_id=command.word)
        raise WrongState("Not now.", hint="Later.", word=command.word)

    @handles
    def defer(self, command: Defer, turn: Turn) -> None:
        """Answered by the next run that ends or word that is said, see `resume`."""
        command_id = turn.defer()
        assert command_id is not None
        self.state.deferred.append(command_id)

    @handles
    def begin(self, command: Begin, turn: Turn) -> None:
        if turn.run(command.run_id) is None:
            turn.start(command.workflow, Nothing(), run_id=command.run_id)

    @handles
    def resume(self, command: Resume, turn: Turn) -> None:
        for waiting in self.state.deferred:
            turn.reply({"said": "at last"}, command_id=waiting)
        self.state.deferred.clear()
        run = turn.run(command.run_id)
        if run is not None and run.parked:
            turn.retry(run.id)

    @handles
    def go_on(self, command: GoOn, turn: Turn) -> None:
        turn.go(command.run_id, Go(one, Nothing()))

    @handles
    def fail(self, command: Fail, turn: Turn) -> None:
        turn.fail(command.run_id, Unavailable("It will not come."))

    @handles
    def cancel(self, command: Cancel, turn: Turn) -> None:
        turn.cancel(command.run_id)


@dataclass
class RootState:
    words: Words
    issues: IssueBook


class Root(Actor[RootState]):
    actor_type = "organization"
    idle_after = timedelta(seconds=60)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> RootState:
        return RootState(
            await Words.load(transaction, key),
            await IssueBook.load(transaction, key, "organization:1"),
        )

    @handles
    def issue_reported(self, event: IssueReported, turn: Turn) -> None:
        if "issues" in self.state.words.outside.broken:
            raise RuntimeError("the book is broken")
        who = {"kind": "repository", "id": event.failure.entity, "title": event.failure.entity}
        self.state.issues.report(event.failure, who, turn)

    @handles
    def issue_resolved(self, event: IssueResolved, turn: Turn) -> None:
        self.state.issues.resolve(event.entity, event.workflow, turn)

    @handles
    def child_failed(self, message: ChildFailed, turn: Turn) -> None:
        self.state.words.add(f"{message.child} failed: {message.failure.code}", turn)


ACTORS: dict[str, type[Actor[Any]]] = {"repository": Child, "organization": Root}


# -- a world -----------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone."""


@dataclass
class World:
    """One process: a kernel, its activations, and a client."""

    database: Database
    clock: Clock
    host: LocalHost
    kernel: Kernel
    client: Client
    outside: Outside

    @property
    def fake(self) -> FakeClock:
        assert isinstance(self.clock, FakeClock)
        return self.clock

    async def tell(self, key: str, *messages: Message, sender: str = "client") -> None:
        """Put messages into a mailbox, and ring for each."""
        for message in messages:
            await self.client.tell(key, message, sender=sender)

    async def ask(self, key: str, command: Message, **told: Any) -> Any:
        answer = await self.client.ask(key, command, scope=told.pop("scope", "test"), **told)
        assert answer.answered
        return answer.body

    async def words(self, key: str) -> list[str]:
        async with self.database.transaction() as transaction:
            return await words(transaction, key)

    async def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        async with self.database.transaction() as transaction:
            return [dict(row) for row in await transaction.fetch(sql, values)]

    async def execute(self, sql: str, *values: Any) -> int:
        async with self.database.transaction() as transaction:
            return await transaction.execute(sql, values)

    async def pending(self, key: str) -> list[dict[str, Any]]:
        return await self.rows(
            "SELECT * FROM rt_mailbox WHERE target = %s AND parked_at IS NULL ORDER BY id", key
        )

    async def quiet(self) -> None:
        """Sweep until nothing can be done any more at the present instant."""

        async def nothing_to_do() -> bool:
            await self.host.sweep()
            now = self.clock.now()
            async with self.database.transaction(snapshot=True) as transaction:
                found = await transaction.fetch(
                    "SELECT DISTINCT target FROM rt_mailbox WHERE parked_at IS NULL"
                )
                claimed = await transaction.fetch("SELECT id FROM rt_run WHERE state = 'claimed'")
                for row in found:
                    letters = await mailbox.pending(transaction, row["target"])
                    choice = mailbox.choose(letters, now, {run["id"] for run in claimed}, {})
                    if choice.message is not None or choice.steps:
                        return False
            return not claimed or bool(self.outside.gates)

        await eventually(nothing_to_do)

    async def epoch(self, key: str) -> int:
        [row] = await self.rows("SELECT epoch FROM rt_entity WHERE key = %s", key)
        return int(row["epoch"])


@asynccontextmanager
async def world(
    url: str, clock: Clock | None = None, *, point: Callable[[str], None] = lambda _: None
) -> AsyncIterator[World]:
    """Open a world on a database; several may share one, as processes would."""
    database = Database(url, name="toy", size=4)
    await database.open()
    async with database.transaction() as transaction:
        row = await transaction.one("SELECT current_database() AS name")
        assert row is not None
    outside = OUTSIDE.setdefault(row["name"], Outside())
    host = LocalHost()
    time = clock or FakeClock()
    host.kernel = Kernel(
        database=database,
        clock=time,
        sealer=Sealer(b"k" * 32),
        waker=host,
        tools={"repository": outside},
        actors=dict(ACTORS),
        point=point,
    )
    kernel = host.kernel
    try:
        client = Client(database, host, time, actors=kernel.actors)
        yield World(database, time, host, kernel, client, outside)
    finally:
        await host.close()
        await database.close()


# -- trouble ------------------------------------------------------------------------


class Crashes:
    """Kills the world's process at the *n*-th point that it comes to.

    Give :meth:`point` to the kernel; ``passed`` has the names so far.
    """

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.passed: list[str] = []
        self.world: World | None = None

    def begin(self, at: int | None) -> None:
        """Count from here."""
        self.at, self.passed = at, []

    def point(self, name: str) -> None:
        self.passed.append(name)
        if self.at is not None and len(self.passed) == self.at:
            assert self.world is not None
            for key in self.world.host.live():
                self.world.host.end(key)
            raise Crash(name)


class Wire:
    """A wire to PostgreSQL that can break at the worst moment.

    Attributes:
        cut_after_commit: Let the next COMMIT through, and not its answer.
    """

    def __init__(self, url: str) -> None:
        told = conninfo_to_dict(url)
        self._path = f"{told['host']}/.s.PGSQL.{told.get('port') or 5432}"
        self._told = told
        self.cut_after_commit = False
        self.cuts = 0
        self._server: asyncio.Server | None = None
        self._ends: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for end in self._ends:
            end.close()

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return make_conninfo(**{**self._told, "host": "127.0.0.1", "port": port})

    async def _joined(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        server, forth = await asyncio.open_unix_connection(self._path)
        self._ends += [back, forth]
        answers = asyncio.create_task(self._copy(server, back))
        while data := await client.read(65536):
            cut = self.cut_after_commit and b"COMMIT\0" in data
            if cut:
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)  # it reads no more
            forth.write(data)
            await forth.drain()
            if cut:
                self.cut_after_commit = False
                self.cuts += 1
                await server.read(1)  # the answer is there: the commit is done
                break
        back.close()
        forth.close()

    @staticmethod
    async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()


def cut_connections(url: str, *, state: str = "idle in transaction") -> int:
    """Let the server end the toys' connections that are in this state; return how many."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'toy' AND state = %s",
            (state,),
        ).fetchall()
    return len(rows)


def somewhere_else() -> Jsonb:
    """Return a host of which nobody can tell whether it is gone."""
    return Jsonb({"node": "elsewhere", "pid": 1, "started": 1})


def a_dead_process() -> Jsonb:
    """Return a host on this machine that is certainly gone."""
    return Jsonb({**here().as_json(), "pid": 2**22 + 1})
