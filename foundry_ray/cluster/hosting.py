"""The inside of every Ray actor: one activation of the kernel, and the doors to it.

Methods answer in plain data and never raise what a caller has to know: an exception would have
to be unpickled by it. The constructor takes the key only and does nothing, because an actor whose
constructor raises is dead for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import Any

import ray

from foundry_ray import bootstrap
from foundry_ray.cluster import leaving
from foundry_ray.cluster.directory import DONE, ENDED, FAILED, Directory
from foundry_ray.cluster.hints import Hinter
from foundry_ray.cluster.metrics import RayMeter
from foundry_ray.core import keys, logging, settings
from foundry_ray.core.errors import FoundryError, Unavailable
from foundry_ray.core.messages import decode
from foundry_ray.runtime.activation import Activation
from foundry_ray.runtime.failpoints import Failpoints
from foundry_ray.runtime.kernel import Passivated
from foundry_ray.runtime.supervisor import Supervisor
from foundry_ray.runtime.turn import problem
from foundry_ray.store.engine import Database

log = logging.get_logger("cluster")

CONNECTIONS = 2  # per process at most, none while idle
ANSWER_PATIENCE = 20.0  # seconds after which a caller that still waits has to ask again
# Leaving takes milliseconds; a process that cannot leave keeps its name, so it is ended.
LEAVING_PATIENCE = 5.0


def cluster_name() -> str:
    """Return a name of this Ray cluster that no other cluster on the same database has."""
    address = str(ray.get_runtime_context().gcs_address)
    if address.startswith("127."):
        return f"{settings.load().instance_id}@{address}"
    return address


@dataclass
class Hosted:
    """What runs in the process of one actor."""

    activation: Activation
    supervisor: Supervisor | None = None

    def ring(self) -> None:
        """Wake both."""
        self.activation.ring()
        if self.supervisor is not None:
            self.supervisor.ring()


class ActorHost:
    """Base of the Ray actor classes, one of which there is per kind of entity.

    Args:
        key: The entity's key, which is also the actor's name.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._life: asyncio.Task[None] | None = None
        self._hosted: asyncio.Future[Hosted | None] | None = None
        self._over = asyncio.Event()
        self._lives = 0
        self._crashed = False

    # -- doors ---------------------------------------------------------------------------

    async def start(self) -> str:
        """Activate; answer when the entity's state is loaded, or could not be."""
        hosted = await self._host()
        if hosted is None:
            return self._how_it_ended()
        activation = hosted.activation
        activated = asyncio.ensure_future(activation.activated.wait())
        ended = asyncio.ensure_future(activation.ended.wait())
        await asyncio.wait((activated, ended), return_when=asyncio.FIRST_COMPLETED)
        activated.cancel()
        ended.cancel()
        return DONE if activation.activated.is_set() else self._how_it_ended()

    async def ring(self) -> str:
        """Look into the mailbox soon (S25)."""
        hosted = await self._host()
        if hosted is None or hosted.activation.ended.is_set():
            return self._how_it_ended()
        hosted.ring()
        return DONE

    async def answered(self, command_id: str) -> str:
        """Answer when the reply of a command is committed."""
        hosted = await self._host()
        if hosted is None:
            return self._how_it_ended()
        try:
            async with asyncio.timeout(ANSWER_PATIENCE):
                await hosted.activation.answered(command_id)
        except (Unavailable, TimeoutError):
            return FAILED if self._crashed else ENDED
        return DONE

    async def hand(self, kind: str, body: dict[str, Any]) -> dict[str, Any] | str:
        """Take a message directly; answer ``{answer, error}``."""
        hosted = await self._host()
        if hosted is None:
            return self._how_it_ended()
        try:
            answer = await hosted.activation.hand(decode(kind, body))
        except Passivated:
            return ENDED
        except FoundryError as error:
            return {"answer": None, "error": problem(error)}
        return {"answer": answer, "error": None}

    async def drain(self) -> str:
        """Finish the turn, release the entity, leave."""
        hosted = await self._host()
        if hosted is not None:
            hosted.activation.drain()
        return DONE

    async def make_room(self) -> str:
        """Finish the turn, release the entity, leave; unless a step is under way."""
        hosted = await self._host()
        if hosted is not None:
            hosted.activation.make_room()
        return DONE

    async def health(self) -> dict[str, Any] | str:
        """Say what lives here; written by the main loop, so it proves that the loop runs."""
        hosted = await self._host()
        if hosted is None or hosted.activation.ended.is_set():
            return self._how_it_ended()
        activation = hosted.activation
        return {
            "key": self._key,
            "pid": os.getpid(),
            "activated": activation.activated.is_set(),
            "epoch": activation.epoch,
            "moved_at": activation.moved_at.isoformat(),
        }

    async def live(self) -> None:
        """Last as long as the activation, then end this actor; only a method can.

        Whoever starts the actor calls this, and so hears of the end. (A call that the actor makes
        to itself ends it as well, but 1.1 s later: Ray first waits for that very call.)
        """
        self._lives += 1
        await self._host()
        await self._over.wait()
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    # -- life ----------------------------------------------------------------------------

    async def _host(self) -> Hosted | None:
        """Return what is hosted here, begun by the first call; None when it could not begin."""
        if self._hosted is None:
            self._hosted = asyncio.get_running_loop().create_future()
            self._life = asyncio.create_task(self._live(self._hosted), name=self._key)
        # Shielded: a cancelled call must not cancel what others wait for.
        return await asyncio.shield(self._hosted)

    def _how_it_ended(self) -> str:
        return FAILED if self._crashed else ENDED

    async def _live(self, hosted: asyncio.Future[Hosted | None]) -> None:
        """Host the activation from its beginning to its end, then leave."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                activation = await self._open(stack, hosted)
                loop = asyncio.get_running_loop()
                leaving.on_sigterm(lambda: loop.call_soon_threadsafe(activation.drain))
                self._crashed = True  # unless it ends in good order
                await activation.run()
                self._crashed = not activation.activated.is_set()
        except Exception:
            self._crashed = True
            log.exception("activation_crashed", actor_key=self._key)
        finally:
            if not hosted.done():
                hosted.set_result(None)
        self._over.set()
        if self._lives == 0:  # who started this actor died before it could call
            ray.get_runtime_context().current_actor.live.remote()
        asyncio.get_running_loop().call_later(LEAVING_PATIENCE, os._exit, 1)

    async def _open(
        self, stack: contextlib.AsyncExitStack, hosted: asyncio.Future[Hosted | None]
    ) -> Activation:
        """Make the kernel of this process and the activation; *stack* closes it all."""
        # Here, because the actor classes are made from this one.
        from foundry_ray.cluster.actors import directory

        logging.configure()
        loaded = settings.load()
        database = Database(bootstrap.database_url(loaded), name=self._key, size=CONNECTIONS)
        await database.open()
        stack.push_async_callback(database.close)
        outside = bootstrap.adapters(loaded)
        stack.push_async_callback(outside.aclose)
        waker = directory(loaded, orderly=keys.root_of(self._key) == self._key)
        stack.callback(waker.close)
        hinter = Hinter(database)
        stack.push_async_callback(hinter.close)
        kernel = bootstrap.kernel(outside, database, waker, hinter.hint)
        kernel.lease_holder = cluster_name()
        kernel.meter = RayMeter()
        if loaded.failpoints_dir is not None:
            kernel.point = Failpoints(loaded.failpoints_dir, self._key)
        activation = Activation(kernel, self._key)
        supervisor = None
        if activation.actor_class.supervises:
            supervisor = Supervisor(activation, waker)
            sweeping = asyncio.create_task(supervisor.run(), name=f"{self._key}:supervisor")
            stack.callback(sweeping.cancel)
        hosted.set_result(Hosted(activation, supervisor))
        return activation


__all__ = ["ActorHost", "Directory", "Hosted", "cluster_name"]
