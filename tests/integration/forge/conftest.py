"""One forge for all tests of this folder, and one of its own for a test that asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from foundry_ray.testing.forge.process import ForgeProcess, start_forge

from .world import World


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared_forge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForgeProcess]:
    forge = await start_forge(tmp_path_factory.mktemp("forge"))
    yield forge
    assert await forge.stop() == 0


@pytest.fixture
def world(shared_forge: ForgeProcess) -> Iterator[World]:
    found = World(shared_forge)
    yield found
    found.close()


@pytest_asyncio.fixture
async def own_forge(tmp_path: Path) -> AsyncIterator[ForgeProcess]:
    forge = await start_forge(tmp_path / "data")
    yield forge
    assert await forge.stop() == 0
