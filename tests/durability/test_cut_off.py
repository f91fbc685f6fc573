"""Network namespaces: a node loses Ray and keeps PostgreSQL, or keeps Ray and loses PostgreSQL.

The far node has two wires, one for Ray and one for PostgreSQL, and a host name of its own: nobody
here can prove that one of its processes is gone. Needs root and ``ip``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from foundry_ray.core import keys
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.messages import ChildFailed
from foundry_ray.runtime import mailbox
from foundry_ray.store.embedded import EmbeddedPostgres
from foundry_ray.store.engine import Database
from tests.durability.conftest import Evidence
from tests.durability.ray_world import ROOT, RayWorld, Witness, rays, witnessed_database
from tests.helpers import eventually
from tests.integration.every_message.kit import failure

SPACE = f"fd{os.getpid() % 100000}"  # of the namespace, and what its wires' names begin with
FAR_NAME = f"far-{SPACE}"
RAY_WIRE, ROWS_WIRE = f"{SPACE}r", f"{SPACE}p"
NETS = {RAY_WIRE: "10.213.71", ROWS_WIRE: "10.213.72"}
# GCS misses a node after some seconds; usually it takes it a quarter of a minute or more.
SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "6",
}
PATIENCE = 120.0  # seconds

pytestmark = pytest.mark.usefixtures("wires")


def ip(*words: str) -> None:
    """Run ``ip``."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def plug(wire: str, state: str) -> None:
    """Plug one of the far node's wires in (``up``) or out (``down``)."""
    ip("link", "set", wire, state)


@pytest.fixture(scope="module")
def wires() -> Iterator[None]:
    """A namespace with two wires to it."""
    assert os.geteuid() == 0, "network namespaces need root"
    assert shutil.which("ip"), "network namespaces need ip: apt-get install iproute2"
    ip("netns", "add", SPACE)
    try:
        ip("-n", SPACE, "link", "set", "lo", "up")
        for wire, net in NETS.items():
            ip("link", "add", wire, "type", "veth", "peer", "name", "far", "netns", SPACE)
            ip("-n", SPACE, "link", "set", "far", "name", wire)
            ip("addr", "add", f"{net}.1/24", "dev", wire)
            ip("-n", SPACE, "addr", "add", f"{net}.2/24", "dev", wire)
            ip("link", "set", wire, "up")
            ip("-n", SPACE, "link", "set", wire, "up")
        yield
    finally:
        ip("netns", "del", SPACE)  # its ends of the wires go with it, and so do ours


class Far:
    """The node in the namespace."""

    def __init__(self, near: RayWorld, database_url: str) -> None:
        environment = {**near.environment, "FOUNDRY_DATABASE_URL": database_url}
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        ray += [f"--address={near.where['address']}", f"--node-ip-address={NETS[RAY_WIRE]}.2"]
        ray += ["--num-cpus=2", "--object-store-memory=80000000", "--disable-usage-stats"]
        name = [sys.executable, "-c", "import os, socket, sys; socket.sethostname(sys.argv[1]);"
                " os.execv(sys.argv[2], sys.argv[2:])", FAR_NAME]  # fmt: skip
        with (near.folder / "far.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", SPACE, "unshare", "--uts", *name, *ray],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def close(self) -> None:
        """See it ended; whoever ends the Ray ends it too."""
        self._process.wait(30)


class Cable:
    """The way to PostgreSQL by TCP, for who has no socket file."""

    def __init__(self, url: str) -> None:
        self._told = conninfo_to_dict(url)
        self._path = f"{self._told['host']}/.s.PGSQL.{self._told.get('port') or 5432}"
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Cable:
        self._server = await asyncio.start_server(self._join, f"{NETS[ROWS_WIRE]}.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        host, port = self._server.sockets[0].getsockname()
        return make_conninfo(**{**self._told, "host": host, "port": port})

    async def _join(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        server, forth = await asyncio.open_unix_connection(self._path)
        for source, sink in ((client, forth), (server, back)):
            task = asyncio.create_task(self._copy(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(sink):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()


class Place:
    """Two nodes, one of them far, and the mail that is put into mailboxes."""

    def __init__(self, near: RayWorld, database: Database, witness: Witness) -> None:
        self.near = near
        self.database = database
        self.witness = witness
        self._sent: dict[str, list[str]] = {}

    def is_far(self, key: str) -> bool:
        """Return whether an entity's activation is at the far node, as its row says."""
        where = self.witness.entity(key)["host"]
        return where is not None and where["node"].startswith(FAR_NAME)

    async def find_far(self, first: int) -> str:
        """Start organizations until one of them lives at the far node; return its key."""
        for number in range(first, first + 20):
            key = keys.organization(number)
            await self.put(key)
            await self.near.do("ring", key=key)
            await eventually(partial(self.witness.pid, key), PATIENCE)
            if self.is_far(key):
                return key
        raise AssertionError("Ray starts nothing at the far node")

    async def put(self, key: str) -> None:
        """Put a message into a mailbox and ring nobody: an organization looks by itself."""
        sent = self._sent.setdefault(key, [])
        sent.append(f"{key} {len(sent)}")
        marked = failure(key).model_copy(update={"message": sent[-1]})
        message = ChildFailed(child=key, failure=marked)
        async with self.database.transaction() as transaction:
            now = SystemClock().now()
            await mailbox.put(transaction, key, message, sender="test", now=now)

    async def put_on(self, key: str, enough: asyncio.Event) -> None:
        """Put one message after the other until it is enough."""
        while not enough.is_set():
            await self.put(key)
            await asyncio.sleep(0.1)

    def taken(self, key: str) -> list[dict[str, Any]]:
        """Return every commit that took a message of an entity, in order."""
        return self.witness.query(
            "SELECT m.old -> 'body' -> 'failure' ->> 'message' AS word,"
            " (e.new ->> 'epoch')::int AS epoch, e.new -> 'host' ->> 'node' AS node"
            " FROM witness m JOIN witness e ON e.xid = m.xid AND e.name = 'rt_entity'"
            " WHERE m.name = 'rt_mailbox' AND m.new IS NULL AND m.old ->> 'target' = %s"
            " AND m.old ->> 'kind' = 'runtime.child_failed' ORDER BY m.id",
            key,
        )

    async def all_taken(self, key: str) -> dict[str, Any]:
        """Wait for the last message; see that each was taken once, in order, by one at a time."""
        await eventually(lambda: len(self.taken(key)) >= len(self._sent[key]), PATIENCE, every=0.2)
        taken = self.taken(key)
        assert [one["word"] for one in taken] == self._sent[key]
        epochs = [one["epoch"] for one in taken]
        assert epochs == sorted(epochs)
        far = [one["epoch"] for one in taken if one["node"].startswith(FAR_NAME)]
        near = [one["epoch"] for one in taken if not one["node"].startswith(FAR_NAME)]
        assert far and near, "nobody took over"
        assert min(near) > max(far)
        return {"taken": len(taken), "by_far": len(far), "by_near": len(near)}


@pytest.fixture
async def place(postgres: EmbeddedPostgres) -> AsyncIterator[Place]:
    """A Ray here, with ``app``, and then a node in the namespace."""
    url = witnessed_database(postgres)
    witness = Witness(url)
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(rays())
        cable = await stack.enter_async_context(Cable(url))
        near = RayWorld(folder, url, nodes=1, ip=f"{NETS[RAY_WIRE]}.1", more=SOON)
        stack.callback(near.destroy)
        await asyncio.to_thread(near.ready)
        await eventually(lambda: witness.pid(keys.APP), PATIENCE)
        far = Far(near, cable.url)
        stack.callback(far.close)
        stack.callback(near.kill_all)
        await eventually(lambda: count_nodes(near), PATIENCE)
        database = Database(url, name="test", size=2)
        await database.open()
        stack.push_async_callback(database.close)
        yield Place(near, database, witness)


async def count_nodes(near: RayWorld) -> bool:
    return int(await near.do("nodes")) == 2


async def test_a_node_without_ray_commits_until_it_is_replaced_and_never_afterwards(
    place: Place, evidence: Evidence
) -> None:
    key = await place.find_far(600)
    enough = asyncio.Event()
    putting = asyncio.create_task(place.put_on(key, enough))
    await eventually(lambda: len(place.taken(key)) > 5, PATIENCE)

    before, known = place.witness.entity(key), len(place.taken(key))
    began = time.monotonic()
    plug(RAY_WIRE, "down")
    try:
        await eventually(lambda: not place.is_far(key), PATIENCE, every=0.1)
        seconds = round(time.monotonic() - began, 2)
        taken_over = len(place.taken(key))
        await eventually(lambda: len(place.taken(key)) > taken_over + 10, PATIENCE)
    finally:
        plug(RAY_WIRE, "up")
    enough.set()
    await putting
    counts = await place.all_taken(key)
    cut_off = [one for one in place.taken(key)[known:] if one["node"].startswith(FAR_NAME)]
    assert cut_off, "it had the fence, and did not go on"
    evidence.add(
        cut="Ray", key=key, from_to=[before["epoch"], place.witness.entity(key)["epoch"]],
        taken_without_ray=len(cut_off), taken_over_after=seconds, **counts,
        **place.witness.check_one_at_a_time(),
    )  # fmt: skip


async def test_a_node_without_postgresql_is_replaced_and_commits_nothing_twice(
    place: Place, evidence: Evidence
) -> None:
    key = await place.find_far(700)
    enough = asyncio.Event()
    putting = asyncio.create_task(place.put_on(key, enough))
    await eventually(lambda: len(place.taken(key)) > 5, PATIENCE)

    before = place.witness.entity(key)
    began = time.monotonic()
    plug(ROWS_WIRE, "down")
    try:
        await eventually(lambda: not place.is_far(key), PATIENCE, every=0.1)
        seconds = round(time.monotonic() - began, 2)
        taken_over = len(place.taken(key))
        await eventually(lambda: len(place.taken(key)) > taken_over + 10, PATIENCE)
    finally:
        plug(ROWS_WIRE, "up")
    enough.set()
    await putting
    counts = await place.all_taken(key)
    evidence.add(
        cut="PostgreSQL", key=key, from_to=[before["epoch"], place.witness.entity(key)["epoch"]],
        taken_over_after=seconds, **counts, **place.witness.check_one_at_a_time(),
    )  # fmt: skip
