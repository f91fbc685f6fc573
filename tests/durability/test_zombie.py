"""A stopped process is not a dead one: it goes on later, with an epoch that is over.

SIGSTOP at a named point, or while idle; another process takes over and commits; SIGCONT.
Safety is the epoch in every commit. That a stopped holder keeps no lock is the server's
``idle_in_transaction_session_timeout``, which is shorter here.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from foundry_ray.core.messages import Message
from foundry_ray.runtime import points
from foundry_ray.store.engine import Database
from tests.durability.bench import (
    PATIENCE,
    Caller,
    Process,
    fetch,
    processes,
    rows,
    said,
)
from tests.durability.conftest import Evidence
from tests.durability.crash_program import SHY, STEPS, Plan
from tests.durability.history import History
from tests.helpers import eventually
from tests.integration.runtime.kit import Begin, Do, Told

IDLE = "idle"
# Where a process holds an activation, or has just let it go. At ``activating`` it does not
# yet: it goes on as whoever begins anew, and takes over with an epoch of its own.
HELD = [point for point in points.POINTS if point != points.ACTIVATING]
# At these it has the entity's row locked, in an open transaction.
LOCKED = {
    points.TURN_OPEN,
    points.BEFORE_COMMIT,
    points.CLAIM_OPEN,
    points.FAILURE_OPEN,
    points.RELEASING,
}
GUARD = {"idle_in_transaction_session_timeout": "2s"}
STEP_TIMEOUT = 2.0  # seconds; before that nobody else begins a step that a zombie claimed
AT_ONCE = 4  # cases


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url, name="test", size=12)
    await made.open()
    yield made
    await made.close()


class Case:
    """One entity, the process that is stopped while it holds it, and its heir."""

    def __init__(self, database: Database, folder: Path, number: int) -> None:
        self._database = database
        self._root = f"org/{number}"
        self._folder = folder / f"outside-{number}"
        self._folder.mkdir()
        self._key = f"{self._root}/repo/1"
        self._run = f"run-{number}"
        self._caller = Caller.make(f"{self._root}:caller", database, History())
        self._client = self._caller.client

    def _plan(self, name: str, **more: Any) -> Plan:
        return Plan(
            url=self._database.url,
            root=self._root,
            folder=str(self._folder),
            name=f"{self._root}:{name}".replace("/", "-"),
            step_timeout=STEP_TIMEOUT,
            guards=GUARD,
            **more,
        )

    async def _tell(self, *messages: Message) -> None:
        for message in messages:
            await self._client.tell(self._key, message, sender=f"test/{message.kind}")

    async def _say(self, word: str) -> None:
        await self._caller.ask(self._key, Do(word=word), word)

    async def prove(self, point: str, evidence: Evidence) -> None:
        """Stop a holder at the point, let another process take over, let the first go on."""
        with processes() as started:
            await self._tell(Told(word=SHY), Do(word="x 1"), Begin(run_id=self._run))
            # Long enough to be met idle; short where it is to let the entity go.
            at = {"point": point, "at_key": self._key, "idle": 5 if point == IDLE else 0.5}
            plan = self._plan("zombie", only=self._key, send=signal.SIGSTOP, **at)
            zombie = Process(plan)
            started.append(zombie)
            if point == IDLE:
                await eventually(self._done, PATIENCE, every=0.1)
                zombie.send(signal.SIGSTOP)
            await eventually(lambda: zombie.state == "T" or zombie.status is not None, PATIENCE)
            assert zombie.state == "T", f"{point} was not hit: {zombie.log()}"
            locks = await self._locks(zombie)
            assert bool(locks) == (point in LOCKED), locks
            before = await rows(self._database, self._root)

            heir = Process(self._plan("heir"))
            started.append(heir)
            await self._say("after the stop")
            await eventually(self._done, PATIENCE, every=0.1)
            assert zombie.state == "T"
            assert await self._locks(zombie) == [], "a stopped holder keeps no lock"

            taken = await rows(self._database, self._root)
            written = await self._written()
            zombie.send(signal.SIGCONT)
            assert await zombie.ended() == 0, zombie.log()
            assert await self._written() == written, "a zombie commits nothing"

            await self._say("after the zombie")
            words = await said(self._database, self._key)
            self._caller.history.check({self._key: words})
            ran = ["run one", "run one two", "run one two three"]
            told = [SHY, "x 1", "after the stop", "after the zombie"]
            assert sorted(words) == sorted([*ran, *told])
            effects = (self._folder / "effects").read_text().splitlines()
            assert effects == [f"{self._run}.{step}" for step in STEPS]
            after = await rows(self._database, self._root)
            evidence.add(
                point=point, zombie=zombie.pid, heir=heir.pid, locks=locks, exit=zombie.status,
                before=before, taken=taken, after=after,
            )  # fmt: skip
            held = self._holding(before)
            heirs = (held[0] + 1, str(heir.pid))
            assert self._holding(taken) == self._holding(after) == heirs, "nothing is taken back"
            await heir.leave()

    def _holding(self, found: dict[str, list[Any]]) -> tuple[int, str | None]:
        """Return the entity's epoch, and the process that holds it."""
        [(_, epoch, _, pid)] = [row for row in found["rt_entity"] if row[0] == self._key]
        return epoch, pid

    async def _done(self) -> bool:
        """Tell whether all that was sent is done, and the run is over."""
        found = await rows(self._database, self._root)
        return bool(found["rt_entity"]) and not found["rt_mailbox"] and not found["rt_run"]

    async def _locks(self, process: Process) -> list[str]:
        """Return the tables on which a process holds a lock for writing."""
        found = await fetch(
            self._database,
            "SELECT DISTINCT l.relation::regclass::text AS name FROM pg_locks l"
            " JOIN pg_stat_activity a ON a.pid = l.pid WHERE a.application_name = %s"
            " AND l.mode = 'RowExclusiveLock' AND l.relation::regclass::text LIKE 'rt_%%'"
            " AND l.relation IN (SELECT oid FROM pg_class WHERE relkind = 'r')",
            process.plan.name,
        )
        return sorted(row["name"] for row in found)

    async def _written(self) -> list[Any]:
        """Return everything of the entity that a zombie could write."""
        return [
            await fetch(self._database, sql, self._key)
            for sql in (
                "SELECT * FROM rt_entity WHERE key = %s",
                "SELECT * FROM rt_mailbox WHERE target = %s ORDER BY id",
                "SELECT * FROM rt_mailbox WHERE sender = %s ORDER BY id",
                "SELECT * FROM rt_run WHERE entity_key = %s ORDER BY id",
                "SELECT * FROM history_event WHERE actor_key = %s ORDER BY id",
            )
        ]


async def test_a_process_that_was_stopped_commits_nothing_when_it_goes_on(
    database: Database, tmp_path: Path, evidence: Evidence
) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def case(number: int, point: str) -> None:
        async with room:
            try:
                await Case(database, tmp_path, number).prove(point, evidence)
            except BaseException as trouble:
                trouble.add_note(f"stopped at {point}")
                raise

    async with asyncio.TaskGroup() as group:
        for number, point in enumerate((IDLE, *HELD), 1):
            group.create_task(case(number, point))


async def test_in_production_a_stopped_holder_has_ten_seconds(database: Database) -> None:
    [shown] = await fetch(database, "SHOW idle_in_transaction_session_timeout")

    assert list(shown.values()) == ["10s"]
