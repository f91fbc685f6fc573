from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from tests.integration.runtime.kit import World, world


@pytest.fixture(autouse=True)
def plain_log() -> Iterator[None]:
    """Tracebacks without pictures: many tests here break handlers on purpose."""
    before = structlog.get_config()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ]
    )
    yield
    structlog.configure(**before)


@pytest.fixture
async def toys(database_url: str) -> AsyncIterator[World]:
    """One process with toy entities, on a database and a clock of the test's own."""
    async with world(database_url) as one:
        yield one
