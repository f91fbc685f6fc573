"""The loop of a supervisor: it runs beside the activation of ``app`` or an organization.

It rings what has due work and no life, ends what does not move, and lets ``app`` keep
the cluster's lease and delete what has had its time. It knows no entity but by its rows.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from foundry_ray.core import keys
from foundry_ray.core.logging import get_logger
from foundry_ray.runtime import supervision
from foundry_ray.runtime.activation import Activation
from foundry_ray.runtime.crowding import Places, Relief
from foundry_ray.runtime.supervision import Due, Watch
from foundry_ray.store.engine import StoreUnavailable

log = get_logger("runtime")

PERIOD = 1.0  # seconds between two sweeps while there is work


class Supervisor:
    """Looks after the tree of one root while its activation lives.

    Args:
        places: Where the number of activations is limited; ``app`` makes room there.
    """

    def __init__(self, activation: Activation, places: Places | None = None) -> None:
        self._activation = activation
        self._kernel = activation.kernel
        self._root = activation.key
        self._watch = Watch()
        self._relief = Relief(places) if places is not None else None
        self._renewed: datetime | None = None
        self._swept_out: datetime | None = None
        self._bell = asyncio.Event()

    def ring(self) -> None:
        """Look soon: something below may have work."""
        self._bell.set()

    async def run(self) -> None:
        """Sweep until cancelled: each second while there is work, else when rung.

        ``app`` is rung by nobody in particular, so it never rests.
        """
        await self._activation.activated.wait()
        while True:
            self._bell.clear()
            busy = True
            try:
                busy = await self.sweep()
            except StoreUnavailable as trouble:
                log.warning("sweep_failed", root=self._root, reason=trouble.context.get("reason"))
            except Exception:  # a bug of ours must not leave a tree without its supervisor
                log.exception("sweep_failed", root=self._root)
            if not busy and self._root != keys.APP:
                await self._bell.wait()
            await asyncio.sleep(PERIOD)

    async def sweep(self) -> bool:
        """Look once; return whether anything below has due work."""
        if self._root == keys.APP:
            if not await self._keep_lease():
                return True
            await self._sweep_out()
        now = self._kernel.clock.now()
        others: list[str] = []
        async with self._kernel.database.transaction() as transaction:
            if self._root == keys.APP:
                roots, found = await supervision.due_everywhere(transaction, now)
                others = [root for root in roots if root != self._root]
            else:
                found = await supervision.due_below(transaction, self._root, now)
        if any(due.key == self._root for due in found):
            self._activation.ring()  # its own mail may have come without a ring
        below = [due for due in found if due.key != self._root]
        for key in self._watch.stuck(below, now):
            self._end(key, below)
        ringing = self._watch.to_ring(below, now)
        # An organization that is rung sweeps its own tree.
        for key in dict.fromkeys([*others, *ringing]):
            self._kernel.waker.ring(key)
        if self._root == keys.APP and self._relief is not None:
            await self._relief.look(self._kernel.database, [*others, self._root], now)
        return bool(below)

    def _end(self, key: str, found: list[Due]) -> None:
        [due] = [due for due in found if due.key == key]
        log.warning("activation_stuck", stuck=key, host=due.host, oldest=str(due.oldest))
        self._kernel.waker.end(key)
        self._kernel.waker.ring(key)

    async def _keep_lease(self) -> bool:
        """Keep the lease; whoever lost it lets everybody go and leaves. Return whether it holds."""
        holder = self._kernel.lease_holder
        if holder is None:
            return True
        now = self._kernel.clock.now()
        fresh = self._renewed and now - self._renewed < supervision.LEASE_RENEWED_EVERY
        async with self._kernel.database.transaction() as transaction:
            if fresh:
                mine = await supervision.has_lease(transaction, holder)
            else:
                mine = await supervision.take_lease(transaction, holder, orphaned=False)
                self._renewed = now
            others = [] if mine else await supervision.hosted(transaction)
        if mine:
            return True
        log.warning("lease_lost", holder=holder, live=len(others))
        for key in others:
            if key != self._root:
                self._kernel.waker.drain(key)
        self._activation.drain()
        return False

    async def _sweep_out(self) -> None:
        now = self._kernel.clock.now()
        if self._swept_out and now - self._swept_out < supervision.SWEPT_OUT_EVERY:
            return
        async with self._kernel.database.transaction() as transaction:
            touched = await supervision.sweep_out(transaction, now)
        # Much is left when a whole batch was there: go on with the next sweep.
        self._swept_out = None if touched >= supervision.SWEPT_AT_ONCE else now
