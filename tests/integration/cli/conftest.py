"""Toy entities on a real PostgreSQL, and the command line that an operator types."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foundry_ray.cli import make_app
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import FoundryError
from foundry_ray.testing.clock import FakeClock
from tests.integration.runtime.conftest import plain_log  # noqa: F401 - a fixture
from tests.integration.runtime.kit import World, world

HOUR = 3600.0


@pytest.fixture
async def toys(database_url: str) -> AsyncIterator[World]:
    """One process with toy entities; its clock is ahead of the operator's.

    So what it puts off is later for the operator too, and what the operator makes due at
    once is due for it.
    """
    clock = FakeClock(SystemClock().now())
    clock.advance(HOUR)
    async with world(database_url, clock) as one:
        yield one


@dataclass
class Operator:
    """Types commands, as ``foundry`` would run them."""

    environment: dict[str, str]

    async def __call__(self, *words: str) -> str:
        """Run a command in this process; return what it printed, or raise its error."""
        # It has a loop of its own.
        result = await asyncio.to_thread(
            CliRunner().invoke, make_app(), words, env=self.environment
        )
        if isinstance(result.exception, FoundryError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    async def json(self, *words: str) -> Any:
        return json.loads(await self(*words, "--json"))

    async def process(self, *words: str) -> tuple[int, str, str]:
        """Run a command as a process of its own; return its exit code and what it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "foundry_ray.cli", *words,
            env=self.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
def foundry(database_url: str, tmp_path: Path) -> Operator:
    """The command line on the same database as the toys."""
    return Operator({"FOUNDRY_DATABASE_URL": database_url, "FOUNDRY_DATA_DIR": str(tmp_path)})
