"""PostgreSQL is away for most of a minute; who has tried all the time has it back in seconds."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_ray.store.embedded import EmbeddedPostgres
from foundry_ray.store.engine import Database, StoreUnavailable
from tests.durability.conftest import Evidence
from tests.helpers import eventually

OUTAGE = 40  # seconds
BACK_WITHIN = 12  # seconds


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of its own."""
    folder = Path(tempfile.mkdtemp(prefix="foundry-dur-"))
    folder.chmod(0o711)
    made = EmbeddedPostgres(folder)
    try:
        made.start()
        yield made
    finally:
        made.destroy()
        shutil.rmtree(folder)


async def test_a_server_that_was_away_for_long_is_missed_for_seconds_only(
    server: EmbeddedPostgres, evidence: Evidence
) -> None:
    database = Database(server.url(), size=2)
    await database.open()
    failures = 0
    answered = asyncio.Event()

    async def ask() -> None:
        async with database.transaction() as transaction:
            await transaction.one("SELECT 1 AS one")

    async def keep_asking() -> None:
        nonlocal failures
        while not answered.is_set():
            try:
                await ask()
                answered.set()
            except StoreUnavailable:
                failures += 1
                await asyncio.sleep(0.5)  # as an activation does

    try:
        await ask()
        await asyncio.to_thread(server.stop)
        away = time.monotonic()
        asking = asyncio.create_task(keep_asking())
        await eventually(lambda: time.monotonic() - away > OUTAGE, timeout=2 * OUTAGE, every=0.5)
        await asyncio.to_thread(server.start)
        back = time.monotonic()

        await asyncio.wait_for(answered.wait(), 3 * OUTAGE)

        missed = time.monotonic() - back
        await asking
        evidence.add(away_s=round(back - away, 1), failures=failures, missed_s=round(missed, 1))
        assert failures >= 3
        assert missed < BACK_WITHIN
    finally:
        await database.close()
