"""One live activation of an entity: takes turns, works on steps, and ends when idle.

It is a cache that may commit only while it holds the current epoch. Whatever
happens to it, the rows say what is still to do. Its parts: ``doors`` (what others
want of it), ``holding`` (epoch, state, runs), ``turns`` and ``steps``.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import structlog

from foundry_ray.core import keys
from foundry_ray.core.logging import bound, get_logger
from foundry_ray.core.messages import Message
from foundry_ray.runtime import mailbox, points
from foundry_ray.runtime.actor import Actor
from foundry_ray.runtime.commit import Fenced
from foundry_ray.runtime.doors import Doors
from foundry_ray.runtime.holding import Holding
from foundry_ray.runtime.kernel import Kernel, LeaseElsewhere
from foundry_ray.runtime.steps import Steps
from foundry_ray.runtime.turns import Turns
from foundry_ray.store.engine import CommitConflict, StoreUnavailable

log = get_logger("runtime")

# A store that is away is asked again this often; turns wait meanwhile, nothing is lost.
STORE_PATIENCE = timedelta(seconds=0.5)
# How long an activation waits for its cluster's turn; ``app`` waits for ever.
LEASE_PATIENCE = timedelta(seconds=15)
# How long a drain waits for steps; what takes longer is done again by whoever comes next.
DRAIN_PATIENCE = timedelta(seconds=2)
# How often a successor looks whether a process that was stopped is gone at last.
PREDECESSOR_PERIOD = timedelta(seconds=0.5)


class Activation:
    """The live part of one entity; run :meth:`run` as a task of its own."""

    def __init__(self, kernel: Kernel, key: str) -> None:
        self.key = key
        self.kernel = kernel
        self.doors = Doors(key, kernel.database)
        self.holding = Holding(kernel, key)
        self.turns = Turns(self.holding, self.doors)
        self.steps = Steps(self.holding, self.turns, self.doors)

    # -- what others see and want --------------------------------------------------------

    @property
    def actor_class(self) -> type[Actor[Any]]:
        """The entity's kind."""
        return self.holding.actor_class

    @property
    def epoch(self) -> int:
        """Ours; 0 before the first activation."""
        return self.holding.epoch

    @property
    def moved_at(self) -> datetime:
        """When something was last committed here."""
        return self.holding.moved_at

    @property
    def activated(self) -> asyncio.Event:
        """Set when the state is loaded for the first time."""
        return self.doors.activated

    @property
    def ended(self) -> asyncio.Event:
        """Set when this is over."""
        return self.doors.ended

    def ring(self) -> None:
        """Look into the mailbox soon."""
        self.doors.ring()

    async def answered(self, command_id: str) -> None:
        """Return when the reply of *command_id* is committed; Passivated if this ends before."""
        await self.doors.answered(command_id)

    async def hand(self, message: Message) -> Any:
        """Handle *message* in a turn of its own and return the answer."""
        return await self.doors.hand(message)

    def drain(self) -> None:
        """Finish the turn, and the steps that take a moment; release, end."""
        self.doors.drain(self.kernel.clock.now() + DRAIN_PATIENCE)

    def make_room(self) -> None:
        """Leave to somebody who waits for a place; but not while a step is under way."""
        if not self.holding.working:
            self.drain()

    # -- life ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Activate, take turns until idle, fenced or drained, then release."""
        try:
            structlog.contextvars.clear_contextvars()  # who rang first has no part in the rest
            with bound(actor_key=self.key):
                await self._live()
        finally:
            self.end()

    async def _live(self) -> None:
        holding = self.holding
        while True:
            try:
                if holding.actor is None:
                    await self.activate()
                    self.kernel.point(points.ACTIVATED)
                elif holding.undone:
                    await holding.reload()
                if await self.once():
                    return
            except Fenced:
                log.info("activation_fenced", epoch=self.epoch)
                return
            except LeaseElsewhere:
                waited = self.kernel.clock.now() - self.moved_at
                if self.doors.draining or (self.key != keys.APP and waited > LEASE_PATIENCE):
                    log.info("lease_elsewhere")
                    return
                await asyncio.sleep(STORE_PATIENCE.total_seconds())
            except CommitConflict as conflict:
                log.info("turn_repeated", reason=conflict.context.get("reason"))
                holding.undone = True
            except StoreUnavailable as trouble:
                # The outcome of the last commit is unknown: begin again from the rows.
                log.warning("store_away", reason=trouble.context.get("reason"))
                holding.forget()
                self.doors.rung.clear()
                await self.doors.nap(STORE_PATIENCE)

    async def activate(self) -> None:
        """Take the entity over: a new epoch, the state from the rows."""
        self.steps.stop()
        await self.holding.take()
        structlog.contextvars.bind_contextvars(epoch=self.epoch)
        await self.doors.answer_committed()
        await self.steps.resume_known()
        if not self.activated.is_set():
            self.kernel.meter.live(self.actor_class.actor_type, 1)
        self.activated.set()
        log.info("activated", epoch=self.epoch)

    async def once(self) -> bool:
        """Do one thing; return True when the activation is over."""
        doors, steps = self.doors, self.steps
        doors.rung.clear()
        if steps.outcomes:
            await steps.finish(steps.outcomes[0])
            steps.outcomes.popleft()
            return False
        if doors.handed:
            await self.turns.take(doors.handed.popleft())
            return False
        now = self.kernel.clock.now()
        if doors.leave_by and (not self.holding.working or now >= doors.leave_by):
            await steps.give_up()
            return await self._release()
        await self.holding.inherit_late()
        choice = await self.choose(now)
        if not doors.draining:
            for letter in choice.steps:
                await steps.begin(letter)
            if choice.message is not None:
                await self.turns.handle(choice.message)
                return False
        idle = self.actor_class.idle_after
        patience = idle * self.kernel.idle_factor if idle is not None else timedelta(hours=1)
        until = doors.leave_by or choice.look_again
        if until is not None and self.holding.waits_for_predecessor:
            until = min(until, now + PREDECESSOR_PERIOD)
        wait = patience if until is None else min(patience, max(until - now, timedelta(0)))
        if await doors.nap(wait) or self.holding.working or idle is None:
            return False
        if until is not None and until - now <= patience:
            return False
        return await self._release()

    async def choose(self, now: datetime) -> mailbox.Choice:
        """Choose among the first pending rows; look further while all of them must wait."""
        batch = mailbox.BATCH
        while True:
            async with self.kernel.database.transaction() as transaction:
                letters = await mailbox.pending(transaction, self.key, batch)
            holding = self.holding
            choice = mailbox.choose(letters, now, holding.working.keys(), holding.held)
            steps = sum(letter.run_id is not None for letter in letters)
            whole = max(steps, len(letters) - steps) < batch
            if whole or choice.message is not None or choice.steps:
                return choice
            batch *= 4

    async def _release(self) -> bool:
        """Passivate if nothing is due; return whether this is over."""
        doors = self.doors
        if not await self.holding.release(at_once=doors.draining):
            return False
        if (doors.handed or doors.rung.is_set()) and not doors.draining:
            self.holding.forget()  # somebody came meanwhile; it is activated anew
            return False
        log.info("passivated", epoch=self.epoch)
        return True

    def end(self) -> None:
        """Stop at once, as the death of the process would; nothing is released."""
        if self.activated.is_set() and not self.ended.is_set():
            self.kernel.meter.live(self.actor_class.actor_type, -1)
        self.doors.close()
        self.steps.stop()
