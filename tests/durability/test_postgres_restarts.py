"""PostgreSQL is killed again and again while clients are at work, with fsync on."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from foundry_ray.store import migrate
from foundry_ray.store.embedded import EmbeddedPostgres
from foundry_ray.store.engine import Database, StoreUnavailable
from tests.durability.bench import PATIENCE, Caller, Process, fetch, processes, quiet, said, seed
from tests.durability.conftest import Evidence
from tests.durability.crash_program import Plan
from tests.durability.history import History
from tests.helpers import eventually
from tests.integration.runtime.kit import Do, PassOn

ROOT = "org/1"
TARGETS = [f"{ROOT}/repo/{n}" for n in (1, 2, 3)]
CLIENTS = 4
OUTAGES = 5


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this test's own, as careful as in production."""
    folder = Path(tempfile.mkdtemp(prefix="foundry-dur-"))
    folder.chmod(0o711)  # root's server account passes through
    server = EmbeddedPostgres(folder)
    try:
        server.start()
        migrate.upgrade(server.url())
        yield server
    finally:
        server.destroy()
        shutil.rmtree(folder)


@pytest.fixture
async def database(durable: EmbeddedPostgres) -> AsyncIterator[Database]:
    made = Database(durable.url(), name="clients", size=8)
    await made.open()
    yield made
    await made.close()


# -- three ways to die -------------------------------------------------------------------


async def kill_the_server(server: EmbeddedPostgres, database: Database) -> int:
    """SIGKILL: it has no time for anything."""
    return await _end(server, signal.SIGKILL)


async def stop_it_at_once(server: EmbeddedPostgres, database: Database) -> int:
    """SIGQUIT, as ``pg_ctl -m immediate`` sends it: no checkpoint, no farewell."""
    return await _end(server, signal.SIGQUIT)


async def kill_a_backend(server: EmbeddedPostgres, database: Database) -> int:
    """SIGKILL for one of the kernel's own connections: the server begins anew by itself."""
    found: list[int] = []

    async def look() -> bool:
        found.extend(await _backends(database))
        return bool(found)

    await eventually(look, PATIENCE)
    os.kill(found[0], signal.SIGKILL)
    return found[0]


async def _backends(database: Database) -> list[int]:
    try:
        rows = await fetch(
            database, "SELECT pid FROM pg_stat_activity WHERE application_name = 'kernel'"
        )
    except StoreUnavailable:
        return []
    return [row["pid"] for row in rows]


async def _end(server: EmbeddedPostgres, number: int) -> int:
    pid = server.pid
    assert pid is not None
    os.kill(pid, number)
    await eventually(lambda: server.record is None, PATIENCE)
    await asyncio.to_thread(server.start)
    return pid


Way = Callable[[EmbeddedPostgres, Database], Awaitable[int]]
WAYS: dict[str, Way] = {
    "SIGKILL to the server": kill_the_server,
    "immediate stop": stop_it_at_once,
    "SIGKILL to a backend": kill_a_backend,
}


# -- the load ------------------------------------------------------------------------------


async def work(caller: Caller, choice: random.Random, over: asyncio.Event) -> None:
    """Send one command after the other; some are never repeated and may be lost or not."""
    number = 0
    while not over.is_set():
        number += 1
        word, again = f"{caller.name} {number}", choice.random() < 0.7
        # What one entity passes on arrives in order; so they all pass on by the same one.
        if choice.random() < 0.3:
            passed_on = PassOn(words=[word], to=[TARGETS[2]])
            await caller.ask(TARGETS[0], passed_on, word, effect=TARGETS[2], again=again)
        else:
            await caller.ask(choice.choice(TARGETS[:2]), Do(word=word), word, again=again)


async def more(history: History, commands: int) -> None:
    """Wait until so many more commands are acknowledged."""
    enough = len(history.acknowledged) + commands
    await eventually(lambda: len(history.acknowledged) >= enough, PATIENCE)


async def test_what_was_acknowledged_outlives_every_end_of_postgresql(
    durable: EmbeddedPostgres, database: Database, tmp_path: Path, evidence: Evidence
) -> None:
    begin = seed()
    evidence.add(seed=begin)
    choice = random.Random(begin)
    ways = [*WAYS, *choice.choices(list(WAYS), k=OUTAGES - len(WAYS))]
    history, over = History(), asyncio.Event()

    with processes() as started:
        plan = Plan(url=durable.url(), root=ROOT, folder=str(tmp_path), name="kernel")
        kernel = Process(plan)
        started.append(kernel)
        async with asyncio.TaskGroup() as group:
            for n in range(CLIENTS):
                caller = Caller.make(f"client-{n}", database, history)
                group.create_task(work(caller, random.Random(choice.random()), over))
            for way in choice.sample(ways, len(ways)):
                await more(history, choice.randint(10, 40))
                pid = await WAYS[way](durable, database)
                evidence.add(
                    way=way, pid=pid, acknowledged=len(history.acknowledged),
                    open=len(history.operations) - len(history.acknowledged),
                )  # fmt: skip
            await more(history, 20)
            over.set()
        await quiet(database, ROOT, released=False)
        assert kernel.status is None, kernel.log()
        await kernel.leave()

    final = {target: await said(database, target) for target in TARGETS}
    evidence.add(
        sent=len(history.operations), acknowledged=len(history.acknowledged),
        words={target: len(words) for target, words in final.items()},
    )  # fmt: skip
    sent = {operation.word for operation in history.operations}
    assert {word for words in final.values() for word in words} <= sent
    history.check(final)
