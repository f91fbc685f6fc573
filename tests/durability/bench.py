"""The test's side: processes of the crash program, clients that no process hosts, rows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from foundry_ray.cli.mail import PatientWaker
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.messages import Message
from foundry_ray.runtime.host import started
from foundry_ray.runtime.refs import Answer, Client
from foundry_ray.store.engine import Database
from tests.durability.crash_program import Plan
from tests.durability.history import History
from tests.helpers import eventually
from tests.integration.runtime.kit import ACTORS, words

CHECKOUT = Path(__file__).parents[2]
# Everything here takes a second or two; this much is for machines that do other things, too.
PATIENCE = 120  # seconds
PATIENT = timedelta(seconds=10)  # for one answer


def seed() -> int:
    """Return what random choices begin with: ``FOUNDRY_SEED``, or a new one."""
    return int(os.environ.get("FOUNDRY_SEED") or random.SystemRandom().randrange(2**32))


# -- processes --------------------------------------------------------------------------


class Process:
    """A running crash program."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._log = Path(plan.folder) / f"{plan.name}.log"
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.durability.crash_program"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=CHECKOUT,
            )
        self.pid = self._child.pid
        assert self._child.stdin is not None
        self._child.stdin.write(plan.to_json())
        self._child.stdin.flush()

    @property
    def status(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        return self._child.poll()

    @property
    def state(self) -> str:
        """The kernel's letter for what it does now: T is stopped; "" when it is gone."""
        if self.status is not None:
            return ""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._child.send_signal(number)

    async def ended(self, timeout: float = PATIENCE) -> int:
        """Wait for its end and return the status."""
        await eventually(lambda: self.status is not None, timeout)
        assert self.status is not None
        return self.status

    async def leave(self) -> dict[str, int]:
        """Let it leave in good order; return how often it passed each point."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        assert await self.ended() == 0, self.log()
        return dict(self.said()["passed"])

    def said(self) -> dict[str, Any]:
        """Return the last thing that it wrote down."""
        report = Path(self.plan.folder) / f"{self.plan.name}.jsonl"
        facts: dict[str, Any] = json.loads(report.read_text().splitlines()[-1])
        return facts

    def log(self) -> str:
        """Return the end of its log."""
        return self._log.read_text()[-4000:]

    def destroy(self) -> None:
        """End it if it runs."""
        if self.status is None:
            self._child.kill()
            self._child.wait()
        assert self._child.stdin is not None
        self._child.stdin.close()


@contextmanager
def processes() -> Iterator[list[Process]]:
    """Give a list for the processes of a test; none of them outlives it."""
    started: list[Process] = []
    try:
        yield started
    finally:
        for process in started:
            process.destroy()


# -- clients ----------------------------------------------------------------------------


@dataclass
class Caller:
    """A client that sends one command after the other and writes down what it was told."""

    name: str
    client: Client
    history: History

    @classmethod
    def make(cls, name: str, database: Database, history: History) -> Caller:
        """Return a client on this database."""
        return cls(
            name, Client(database, PatientWaker(database), SystemClock(), actors=ACTORS), history
        )

    async def ask(
        self, target: str, command: Message, word: str, *, effect: str = "", again: bool = True
    ) -> None:
        """Send a command that makes an entity write a word down, and note what is told.

        Args:
            word: Said by no other command.
            effect: The entity that writes it down, if it is not the target.
            again: If not, give up at the first trouble, and know nothing.
        """
        operation = self.history.invoke(self.name, effect or target, word)
        answer = await (self._until_answered if again else self._try)(target, command, word)
        if answer is not None:
            operation.acknowledge(answer.body)

    async def do(self, target: str, command: Message, key: str) -> Any:
        """Send another command, until it is answered; return the answer."""
        return (await self._until_answered(target, command, key)).body

    async def _until_answered(self, target: str, command: Message, key: str) -> Answer:
        """After a failure, send it again under the same name."""

        async def attempt() -> Answer | None:
            return await self._try(target, command, key)

        answer: Answer | None = await eventually(attempt, PATIENCE, every=0.1)
        assert answer is not None
        return answer

    async def _try(self, target: str, command: Message, key: str) -> Answer | None:
        try:
            answer = await self.client.ask(
                target, command, scope=self.name, idempotency_key=key, patience=PATIENT
            )
        except Unavailable:
            return None
        return answer if answer.answered else None


# -- rows -------------------------------------------------------------------------------


async def fetch(database: Database, sql: str, *values: Any) -> list[dict[str, Any]]:
    """Return the rows of a query."""
    async with database.transaction() as transaction:
        return [dict(row) for row in await transaction.fetch(sql, values)]


async def rows(database: Database, root: str) -> dict[str, list[Any]]:
    """Return what the kernel knows of one tree, in short."""
    below = f"{root}/%"
    entities = await fetch(
        database,
        "SELECT key, epoch, revision, host ->> 'pid' AS pid FROM rt_entity"
        " WHERE root = %s ORDER BY key",
        root,
    )
    mail = await fetch(
        database,
        "SELECT id, target, kind, attempts, parked_at IS NOT NULL AS parked FROM rt_mailbox"
        " WHERE root = %s ORDER BY id",
        root,
    )
    runs = await fetch(
        database,
        "SELECT id, step, state, attempt, claimed_epoch FROM rt_run WHERE entity_key LIKE %s"
        " ORDER BY id",
        below,
    )
    return {
        "rt_entity": [list(row.values()) for row in entities],
        "rt_mailbox": [list(row.values()) for row in mail],
        "rt_run": [list(row.values()) for row in runs],
    }


async def said(database: Database, key: str) -> list[str]:
    """Return the words of an entity, in order."""
    async with database.transaction() as transaction:
        return await words(transaction, key)


async def quiet(database: Database, root: str, *, released: bool) -> None:
    """Wait until nothing below the root waits or is under way.

    Args:
        released: And no activation is left.
    """

    async def nothing() -> bool:
        found = await rows(database, root)
        # Whoever died while it let go stands there as host until the entity has mail again.
        free = all(pid is None or started(int(pid)) is None for *_, pid in found["rt_entity"])
        assert not found["rt_mailbox"], found
        assert not found["rt_run"], found
        assert free or not released, found
        return True

    await eventually(nothing, PATIENCE, every=0.1)
