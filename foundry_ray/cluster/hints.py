"""Tells the streams that there are new feed rows, after the commit that wrote them."""

from __future__ import annotations

import asyncio
import contextlib

from foundry_ray.core.logging import get_logger
from foundry_ray.runtime.feed import CHANNEL
from foundry_ray.store.engine import Database, StoreUnavailable

log = get_logger("cluster")


class Hinter:
    """Sends one NOTIFY for however many commits came since the last one.

    In a transaction of its own: a NOTIFY inside a turn would make all turns of the
    installation commit one after the other. A hint may be lost; streams also look by
    themselves.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def hint(self) -> None:
        """Say that feed rows were committed; never waits."""
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="hints")

    async def close(self) -> None:
        """Stop; a hint that is not sent yet is lost."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _work(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                async with self._database.transaction() as transaction:
                    await transaction.execute(f"NOTIFY {CHANNEL}")
            except StoreUnavailable as trouble:
                log.info("hint_lost", reason=trouble.context.get("reason"))
