"""The three Ray Serve applications: ``api``, ``streams`` and ``webhooks``.

Each replica makes its own services when it starts; importing this module only describes them.
Every replica looks after ``app``: as long as one of them lives, ``app`` lives or comes back, and
``app`` brings back all the rest.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import ray
from fastapi import FastAPI
from ray import serve

from foundry_ray import bootstrap
from foundry_ray.cluster.actors import directory
from foundry_ray.cluster.directory import Directory
from foundry_ray.core import keys, logging, settings
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import Unavailable
from foundry_ray.runtime.refs import Client
from foundry_ray.serve import app as applications
from foundry_ray.serve.services import Services
from foundry_ray.store.engine import Database

log = logging.get_logger("serve")

LOOK_EVERY = 1.0  # seconds between two looks at `app`
# Seconds between two looks of Serve at a replica; with its own 10 a dead one is missed so long.
REPLICA_LOOK = 2.0
# Seconds without an answer after which an `app` that answered before is taken for blocked.
# It answers without its database, and a new one has its own time to start.
SILENCE = 6.0


class AppWatch:
    """Sees to it that ``app`` lives, from one replica."""

    def __init__(self, finder: Directory) -> None:
        self._directory = finder
        self._pid = 0
        self.healthy = False

    async def run(self) -> None:
        """Look again and again; looking starts ``app`` when it is not there."""
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    said = await self._directory.health(keys.APP)
                self._pid = int(said["pid"])
                self.healthy = bool(said["activated"])
            except Unavailable:
                self.healthy = False
            except TimeoutError:
                self.healthy = False
                self._end_silent()
            await asyncio.sleep(LOOK_EVERY)

    def _end_silent(self) -> None:
        """End an ``app`` that is there and says nothing; Ray itself never does."""
        if self._pid and Path(f"/proc/{self._pid}").exists():
            log.warning("app_silent", pid=self._pid)
            self._directory.end(keys.APP)
        self._pid = 0

    async def check(self) -> str:
        """Say whether ``app`` is activated, as of the last look."""
        return "ok" if self.healthy else "not active"


async def _ray() -> str:
    nodes = await asyncio.to_thread(ray.nodes)
    return "ok" if any(node["Alive"] for node in nodes) else "no node is alive"


class _Replica:
    """One process of an application; the ASGI application is made here, not where it is deployed.

    Attributes:
        connections: To PostgreSQL, at most; none is opened before it is needed.
    """

    connections: ClassVar[int] = 8

    def make(self, services: Services) -> FastAPI:
        """Return the application that works with these services."""
        raise NotImplementedError  # each application says how

    async def __serve_build_asgi_app__(self) -> FastAPI:
        logging.configure()
        loaded = settings.load()
        clock = SystemClock()
        name = type(self).__name__.lower()
        database = Database(bootstrap.database_url(loaded), name=name, size=self.connections)
        await database.open()
        waker = directory(loaded)
        watch = AppWatch(waker)
        # Kept, because the loop itself holds tasks only weakly.
        self._watching = asyncio.create_task(watch.run(), name="app-watch")
        return self.make(
            Services(
                settings=loaded,
                database=database,
                client=Client(
                    database,
                    waker,
                    clock,
                    limit=loaded.mailbox_limit,
                    actors=bootstrap.BY_KIND,
                ),
                outside=bootstrap.adapters(loaded, clock),
                clock=clock,
                checks={"ray": _ray, "app_actor": watch.check},
            )
        )


class Api(_Replica):
    """Everything but streams and webhooks."""

    def make(self, services: Services) -> FastAPI:
        """Return the API."""
        return applications.api_app(services)


class Streams(_Replica):
    """Live updates."""

    def make(self, services: Services) -> FastAPI:
        """Return the streams."""
        return applications.streams_app(services)


class Webhooks(_Replica):
    """The door for GitHub's webhooks."""

    def make(self, services: Services) -> FastAPI:
        """Return the door."""
        return applications.webhooks_app(services)


def _application(replica: type[_Replica], *, replicas: int, requests_at_once: int) -> Any:
    deployment: Any = serve.deployment(
        serve.ingress()(replica),
        name=replica.__name__,
        num_replicas=replicas,
        max_ongoing_requests=requests_at_once,
        ray_actor_options={"num_cpus": 0},
        max_surge_percent=100,
        health_check_period_s=REPLICA_LOOK,
    )
    return deployment.bind()


api = _application(Api, replicas=2, requests_at_once=100)
# An open stream is a request that lasts, so it holds a place.
streams = _application(Streams, replicas=1, requests_at_once=2000)
webhooks = _application(Webhooks, replicas=1, requests_at_once=200)
