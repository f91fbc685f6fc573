"""300 entities have mail at once, and only twelve may live: by turns, nobody left out.

Counted from outside: rows and processes say who lives, the kernel says how much memory they
take, and clients read through the API all the while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from foundry_ray import bootstrap
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.cli.places import Places
from foundry_ray.cli.processes import NodeFile, members, title
from foundry_ray.core import keys
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.messages import Person
from foundry_ray.runtime import host
from tests.durability.conftest import Evidence, enter, running
from tests.durability.outside import instance, query
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually

LIMIT = 12
ROOTS = 2  # `app` and the organization come on top
BURST = 300
MEMORY_MIB = 4096
READ_SECONDS = 1.0
PATIENCE = 720.0
HOSTS = {actor.__name__ for actor in bootstrap.ACTORS}


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Foundry]:
    """A Foundry with few places, where nobody leaves by itself."""
    monkeypatch.setenv("FOUNDRY_MAX_ACTIVATIONS", str(LIMIT))
    monkeypatch.setattr("tests.e2e.conftest.IDLE_FACTOR", "1")
    with running() as made:
        yield made


def send(foundry: Foundry, organization: str) -> None:
    """Put one message into each of the mailboxes, in one transaction, and ring nobody."""
    now = SystemClock().now()
    url = Places(foundry.data_dir).database_url.read_text().strip()
    with psycopg.connect(url) as connection:
        for number in range(BURST):
            key = keys.history(keys.repository(organization, 900000 + number))
            message = RecordEvent(actor=Person(), what="test", summary="burst")
            connection.execute(
                "INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, due_at,"
                " created_at, attempts) VALUES (%s, %s, 'test', 0, %s, %s, %s, %s, 0)",
                (key, keys.root_of(key), message.kind, Jsonb(message.model_dump(mode="json")),
                 now, now),
            )  # fmt: skip


class Seen:
    """What was measured while the burst ran."""

    def __init__(self, foundry: Foundry) -> None:
        self.foundry = foundry
        self.live = self.processes = self.actors = 0
        self.memory = self.ray_memory = 0.0
        self.reads: list[float] = []

    async def count(self) -> None:
        """Count the activations and their processes, some times a second."""
        node_file = NodeFile.read(Places(self.foundry.data_dir).node_file)
        assert node_file is not None
        [ray] = [one.record for one in node_file.services if one.name == "Ray"]
        while True:
            rows = await asyncio.to_thread(
                query, self.foundry, "SELECT host FROM rt_entity WHERE host IS NOT NULL"
            )
            self.live = max(self.live, sum(not host.proven_gone(row["host"]) for row in rows))
            found = await asyncio.to_thread(members, ray, self.foundry.settings.instance_id)
            named = [title(one.pid) for one in found]
            self.processes = max(self.processes, sum(map(_hosts, named)))
            await asyncio.sleep(0.3)

    async def list_actors(self) -> None:
        """Ask Ray, now and then: its command line takes seconds."""
        while True:
            self.actors = max(self.actors, len(await asyncio.to_thread(self.foundry.actors)))
            await asyncio.sleep(15)

    async def weigh(self) -> None:
        """Add up the memory of all processes; shared pages count once."""
        while True:
            total, ray = await asyncio.to_thread(weight, self.foundry)
            self.memory, self.ray_memory = max(self.memory, total), max(self.ray_memory, ray)
            await asyncio.sleep(5)

    async def read(self, acme: Acme) -> None:
        """Read through the API, four times a second."""
        paths = ("/tasks", "/repositories", "/runtime-issues", "")
        while True:
            for path in paths:
                begun = time.monotonic()
                await acme.call("GET", path)
                self.reads.append(time.monotonic() - begun)
                await asyncio.sleep(0.25)


def _hosts(name: str) -> bool:
    """Tell by the title that Ray gives to a process whether an activation lives there."""
    return name.removeprefix("ray::").partition(".")[0] in HOSTS


def weight(foundry: Foundry) -> tuple[float, float]:
    """Return the memory of the instance in MiB, and how much of it Ray's processes take."""
    total = ray = 0
    for record in instance(foundry, sandboxes=True):
        try:
            lines = Path(f"/proc/{record.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        share = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        total += share
        ray += share if title(record.pid).startswith("ray::") else 0
    return total / 1024, ray / 1024


async def test_a_burst_of_300_on_twelve_places(crowded: Foundry, evidence: Evidence) -> None:
    async with enter(crowded) as acme:
        seen = Seen(crowded)
        begun = SystemClock().now()
        await asyncio.to_thread(send, crowded, acme.organization)
        watching = [
            asyncio.create_task(work)
            for work in (seen.count(), seen.list_actors(), seen.weigh(), seen.read(acme))
        ]

        async def done() -> dict[str, Any]:
            for task in watching:
                if task.done():
                    task.result()
            [row] = await asyncio.to_thread(
                query,
                crowded,
                "SELECT count(*) AS done, max(at) AS last FROM history_event"
                " WHERE summary = 'burst'",
            )
            assert row["done"] == BURST, row["done"]
            return row

        row = await eventually(done, timeout=PATIENCE, every=1)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    [mail] = query(crowded, "SELECT count(*) AS left FROM rt_mailbox WHERE sender = 'test'")
    reads = sorted(seen.reads)
    p99 = reads[int(len(reads) * 0.99)]
    evidence.add(
        entities=BURST, limit=LIMIT, most_live=seen.live, most_listed_by_ray=seen.actors,
        most_processes_leaving_ones_included=seen.processes,
        longest_wait_seconds=round((row["last"] - begun).total_seconds(), 1),
        memory_mib=round(seen.memory), of_that_workers_mib=round(seen.ray_memory),
        reads=len(reads), read_p50_seconds=round(reads[len(reads) // 2], 3),
        read_p99_seconds=round(p99, 3), read_max_seconds=round(reads[-1], 3),
    )  # fmt: skip
    assert mail["left"] == 0
    assert LIMIT <= seen.live <= LIMIT + ROOTS
    assert 0 < seen.actors <= LIMIT + ROOTS
    assert seen.memory <= MEMORY_MIB
    assert p99 <= READ_SECONDS
