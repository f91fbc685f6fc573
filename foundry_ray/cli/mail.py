"""How the command line asks entities: it writes the command and waits for its reply row.

It never creates an actor: the supervisor's sweep finds what is due within a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from foundry_ray.cli.database import database_url
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.messages import Message
from foundry_ray.core.settings import Settings
from foundry_ray.runtime.refs import Client
from foundry_ray.store.engine import Database

T = TypeVar("T")

LOOK_EVERY = 0.1  # seconds between two looks at the reply row
PATIENCE = timedelta(seconds=20)


class PatientWaker:
    """Rings nobody; waits for the reply row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ring(self, key: str) -> None:
        """Leave the mail to the supervisor's sweep."""

    async def answered(self, key: str, command_id: str) -> None:
        """Return when the reply is written."""
        while True:
            async with self._database.transaction() as transaction:
                row = await transaction.one(
                    "SELECT 1 FROM rt_inbox_seen WHERE command_id = %s AND reply IS NOT NULL",
                    (command_id,),
                )
            if row is not None:
                return
            await asyncio.sleep(LOOK_EVERY)

    async def hand(self, key: str, message: Message) -> Any:
        """Refuse: only processes of the cluster hand over."""
        raise Unavailable("The command line hands nothing over.")

    def drain(self, key: str) -> None:
        """Leave draining to supervisors."""

    def end(self, key: str) -> None:
        """Leave ending to supervisors."""


def with_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run *work* with a connection to the running instance's database."""

    async def run() -> T:
        database = Database(database_url(settings), name="foundry-cli")
        await database.open()
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


async def ask(database: Database, key: str, command: Message) -> Any:
    """Send a command and return its answer.

    Raises:
        Unavailable: Nobody answered; is Foundry up?
    """
    from foundry_ray.bootstrap import BY_KIND  # slow to import

    client = Client(database, PatientWaker(database), SystemClock(), actors=BY_KIND)
    answer = await client.ask(key, command, scope="cli", patience=PATIENCE)
    if not answer.answered:
        raise Unavailable(
            f"{key} has not answered in {PATIENCE.total_seconds():.0f} s; the command stays.",
            hint="`foundry status` tells whether Foundry is up",
        )
    return answer.body
