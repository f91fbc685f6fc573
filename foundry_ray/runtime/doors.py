"""The doors of an activation: how others ring, hand over, wait for an answer, and end it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from foundry_ray.core.messages import Message
from foundry_ray.runtime.kernel import Passivated
from foundry_ray.store.engine import Database


@dataclass
class Handed:
    """A message handed over directly, and who waits for its answer."""

    message: Message
    future: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Doors:
    """What others want of one activation; its loop looks here between two turns.

    Attributes:
        activated: Set when the entity's state is loaded for the first time.
        ended: Set when the activation is over; nothing that comes now is heard.
        rung: Set by whoever wants the loop to look.
        leave_by: Since it is to end: until when steps may take; None before that.
        handed: Messages handed over directly, in order.
    """

    def __init__(self, key: str, database: Database) -> None:
        self._key = key
        self._database = database
        self.activated = asyncio.Event()
        self.ended = asyncio.Event()
        self.rung = asyncio.Event()
        self.leave_by: datetime | None = None
        self.handed: deque[Handed] = deque()
        self._waiters: dict[str, list[asyncio.Event]] = {}

    # -- from outside ------------------------------------------------------------------

    def ring(self) -> None:
        """Let the loop look into the mailbox soon."""
        self.rung.set()

    def drain(self, leave_by: datetime) -> None:
        """Let the activation finish its turn, release and end; steps have until then."""
        self.leave_by = self.leave_by or leave_by
        self.ring()

    @property
    def draining(self) -> bool:
        """Whether the activation is to finish its turn, release and end."""
        return self.leave_by is not None

    async def hand(self, message: Message) -> Any:
        """Hand *message* over and return the answer of its turn."""
        if self.ended.is_set():
            raise Passivated(key=self._key)
        handed = Handed(message)
        self.handed.append(handed)
        self.ring()
        return await handed.future

    async def answered(self, command_id: str) -> None:
        """Return when the reply of *command_id* is committed; Passivated if this ends before."""
        event = asyncio.Event()
        self._waiters.setdefault(command_id, []).append(event)
        self.ring()
        try:
            if command_id in await self._replied([command_id]):
                return
            ended = asyncio.ensure_future(self.ended.wait())
            replied = asyncio.ensure_future(event.wait())
            try:
                await asyncio.wait((ended, replied), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                replied.cancel()
            if not event.is_set():
                raise Passivated(key=self._key)
        finally:
            waiters = self._waiters[command_id]
            waiters.remove(event)
            if not waiters:
                del self._waiters[command_id]

    def waiting(self, command_id: str) -> int:
        """Return how many wait for the answer of *command_id*."""
        return len(self._waiters.get(command_id, ()))

    # -- from inside -------------------------------------------------------------------

    def answer(self, command_id: str) -> None:
        """Let go who waits for this reply, which is committed."""
        for event in self._waiters.get(command_id, ()):
            event.set()

    async def answer_committed(self) -> None:
        """Let go who waits for a reply whose commit was unknown and turned out to be there."""
        if self._waiters:
            for command_id in await self._replied(self._waiters):
                self.answer(command_id)

    async def nap(self, wait: timedelta) -> bool:
        """Wait for a ring; return whether one came."""
        try:
            async with asyncio.timeout(wait.total_seconds()):
                await self.rung.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Say that the activation is over; whoever still waits finds the next one."""
        self.ended.set()
        for handed in self.handed:
            if not handed.future.done():
                handed.future.set_exception(Passivated(key=self._key))
        self.handed.clear()

    async def _replied(self, command_ids: Iterable[str]) -> list[str]:
        async with self._database.transaction() as transaction:
            rows = await transaction.fetch(
                "SELECT command_id FROM rt_inbox_seen"
                " WHERE command_id = ANY(%s) AND replied_at IS NOT NULL",
                (list(command_ids),),
            )
        return [row["command_id"] for row in rows]
