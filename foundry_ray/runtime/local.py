"""Hosts activations in the present process and event loop.

Used for the whole actor system in one loop (tests), and as the inside of each
process that hosts activations.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from foundry_ray.core.errors import Unavailable
from foundry_ray.core.messages import Message
from foundry_ray.runtime.activation import Activation
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.supervision import due_below, due_everywhere
from foundry_ray.runtime.supervisor import Supervisor


class LocalHost:
    """A waker whose activations all live here.

    Args:
        supervise: Let ``app`` and organizations sweep by themselves, as in a cluster.
    """

    def __init__(self, *, supervise: bool = False) -> None:
        self.kernel: Kernel | None = None
        self._supervise = supervise
        self._supervisors: dict[str, Supervisor] = {}
        self._live: dict[str, tuple[Activation, asyncio.Task[None]]] = {}
        self._starting: dict[str, asyncio.Event] = {}
        self.on_crash: Callable[[str, BaseException], None] | None = None

    def live(self) -> list[str]:
        """Return the keys that have an activation now."""
        return sorted(self._live)

    def ring(self, key: str) -> None:
        """Wake or start the activation of *key*."""
        self._activation(key).ring()
        if key in self._supervisors:
            self._supervisors[key].ring()

    async def answered(self, key: str, command_id: str) -> None:
        """Return when the reply of *command_id* is committed."""
        await self._activation(key).answered(command_id)

    async def hand(self, key: str, message: Message) -> Any:
        """Give *message* directly to the activation of *key*."""
        return await self._activation(key).hand(message)

    def drain(self, key: str) -> None:
        """Let the activation of *key* finish its turn and end, if there is one."""
        found = self._live.get(key)
        if found is not None:
            found[0].drain()

    def end(self, key: str) -> None:
        """End an activation as its process's death would: nothing is released."""
        found = self._live.pop(key, None)
        if found is not None:
            found[1].cancel()

    def _activation(self, key: str) -> Activation:
        found = self._live.get(key)
        if found is not None and not found[0].ended.is_set():
            return found[0]
        if self.kernel is None:
            raise Unavailable("The host has ended.")
        activation = Activation(self.kernel, key)
        task = asyncio.create_task(activation.run(), name=key)
        self._live[key] = (activation, task)
        task.add_done_callback(lambda done: self._over(key, activation, done))
        if self._supervise and activation.actor_class.supervises:
            supervisor = self._supervisors[key] = Supervisor(activation)
            loop = asyncio.create_task(supervisor.run(), name=f"{key}:supervisor")
            task.add_done_callback(lambda _: loop.cancel())
        return activation

    def _over(self, key: str, activation: Activation, done: asyncio.Task[None]) -> None:
        found = self._live.get(key)
        if found is not None and found[0] is activation:
            del self._live[key]
        if not done.cancelled() and (trouble := done.exception()) and self.on_crash:
            self.on_crash(key, trouble)

    async def sweep(self) -> None:
        """Ring every entity that has due work, once."""
        assert self.kernel is not None
        now = self.kernel.clock.now()
        async with self.kernel.database.transaction() as transaction:
            roots, _ = await due_everywhere(transaction, now)
            found = [due for root in roots for due in await due_below(transaction, root, now)]
        for due in found:
            self.ring(due.key)

    async def close(self) -> None:
        """Drain: every activation finishes its turn and releases its entity."""
        live = list(self._live.values())
        for activation, _ in live:
            activation.drain()
        _, late = await asyncio.wait([t for _, t in live], timeout=5) if live else ((), ())
        for task in late:
            task.cancel()
        for _, task in live:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        self.kernel = None
