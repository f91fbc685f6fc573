"""A Ray of several nodes on this machine and a client on it, as a program of its own.

Run as ``python -m tests.durability.ray_program NODES FOLDER IP`` with Foundry's and Ray's
environment. It reads orders, lines of JSON with an ``id`` and a ``verb``, and answers each with a
line. It is a program because a process can be on one Ray only, and a Ray has to die as a whole.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from foundry_ray import bootstrap
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.cli.chaos.history import Operation
from foundry_ray.cluster.actors import directory
from foundry_ray.core import settings
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.messages import Person, decode
from foundry_ray.runtime.refs import Client
from foundry_ray.serve.deployment import AppWatch
from foundry_ray.store.engine import Database

NAMESPACE = "foundry"
PATIENCE = timedelta(seconds=3)  # for one answer; then the same command is sent again
PAUSE = 0.02  # seconds between two commands of a client
STORE = 80 * 1024 * 1024


class Office:
    """What the program is asked to do; each method is a verb."""

    def __init__(self, nodes: int, folder: Path, ip: str) -> None:
        where = {"node_ip_address": ip, "num_cpus": 2, "object_store_memory": STORE}
        head = {
            "temp_dir": str(folder / "ray"),
            "include_dashboard": False,
            "include_log_monitor": False,
        }
        self._cluster = Cluster(initialize_head=True, head_node_args={**where, **head})
        self._nodes = [self._cluster.head_node]
        self._nodes += [self._cluster.add_node(**where) for _ in range(nodes - 1)]
        ray.init(self._cluster.address, namespace=NAMESPACE, log_to_driver=False)
        loaded = settings.load()
        assert loaded.database_url is not None
        self._database = Database(loaded.database_url.get_secret_value(), name="office", size=4)
        self._directory = directory(loaded)
        self._client = Client(
            self._database, self._directory, SystemClock(), actors=bootstrap.BY_KIND
        )
        self._watch = AppWatch(self._directory)
        self._journal = (folder / "operations.jsonl").open("a", buffering=1)
        self._load: list[asyncio.Task[None]] = []
        self._enough = asyncio.Event()

    async def open(self) -> None:
        """Connect, and look after ``app`` as every Serve replica does."""
        await self._database.open()
        self._watching = asyncio.create_task(self._watch.run())

    async def where(self) -> dict[str, Any]:
        """Return the address, and the pids of GCS and raylets, the head's first."""

        def pid(node: Any, name: str) -> int:
            return int(node.all_processes[name][0].process.pid)

        return {
            "address": self._cluster.address,
            "gcs": pid(self._cluster.head_node, "gcs_server"),
            "raylets": [pid(node, "raylet") for node in self._nodes],
        }

    async def names(self) -> list[str]:
        """Return who has an actor."""
        found = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        return [one["name"] for one in found if one["namespace"] == NAMESPACE]

    async def nodes(self) -> int:
        """Return how many nodes are alive, as GCS sees it."""
        found = await asyncio.to_thread(ray.nodes)
        return sum(bool(node["Alive"]) for node in found)

    async def tell(self, key: str, kind: str, body: dict[str, Any]) -> None:
        """Send a message durably, and ring."""
        await self._client.tell(key, decode(kind, body))

    async def ring(self, key: str) -> None:
        """Ring, and so start whoever is not there."""
        self._directory.ring(key)

    async def kill(self, key: str) -> None:
        """Let Ray kill an actor."""
        await asyncio.to_thread(lambda: ray.kill(ray.get_actor(key, namespace=NAMESPACE)))

    async def exit(self, key: str) -> None:
        """Let an actor finish its turn and call ``exit_actor``."""

        def ask() -> None:
            ray.get_actor(key, namespace=NAMESPACE).drain.remote()  # perhaps without an answer

        await asyncio.to_thread(ask)

    async def write(self, clients: list[str], targets: list[str]) -> None:
        """Let *clients* write words into histories, until told that it is enough.

        What they did and were told stands in ``operations.jsonl``, which outlives this program.
        """
        self._enough.clear()
        self._load = [asyncio.create_task(self._write(one, targets)) for one in clients]

    async def _write(self, client: str, targets: list[str]) -> None:
        for number in itertools.count(1):
            if self._enough.is_set():
                return
            word, target = f"{client}-{number}", targets[number % len(targets)]
            operation = Operation(client, target, word, time.monotonic())
            self._note(operation)
            message = RecordEvent(actor=Person(), what="test", summary=word)
            while operation.returned is None:
                try:
                    answer = await self._client.ask(
                        target, message, scope=client, idempotency_key=word, patience=PATIENCE
                    )
                except FoundryError:
                    await asyncio.sleep(0.1)
                else:
                    if answer.answered:
                        operation.acknowledge(answer.body)
            self._note(operation)
            await asyncio.sleep(PAUSE)

    def _note(self, operation: Operation) -> None:
        self._journal.write(json.dumps(asdict(operation)) + "\n")

    async def enough(self) -> None:
        """Let the clients finish what they sent."""
        self._enough.set()
        await asyncio.gather(*self._load)


async def serve(office: Office) -> None:
    """Obey until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray also prints
    await office.open()
    print(json.dumps({"id": 0, "answer": await office.where()}), file=answers, flush=True)

    async def obey(order: Mapping[str, Any]) -> None:
        number, verb = order["id"], order["verb"]
        told = {name: value for name, value in order.items() if name not in ("id", "verb")}
        try:
            said = {"id": number, "answer": await getattr(office, verb)(**told)}
        except Exception as trouble:  # whoever asked hears of it
            said = {"id": number, "error": repr(trouble)}
        print(json.dumps(said), file=answers, flush=True)

    working = set()
    while line := await asyncio.to_thread(sys.stdin.readline):
        task = asyncio.create_task(obey(json.loads(line)))
        working.add(task)
        task.add_done_callback(working.discard)


def main() -> None:
    """Start Ray, obey, end Ray."""
    office = Office(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    asyncio.run(serve(office))
    os._exit(0)  # who started this ends what carries its instance


if __name__ == "__main__":
    main()
