"""A real sandbox-agent with the scripted agent, shared by the tests of one module."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from foundry_ray.core.ids import new_id
from foundry_ray.integrations.sandbox_agent.client import SandboxAgentClient
from foundry_ray.integrations.sandbox_agent.install import launcher_files
from foundry_ray.providers.base import SandboxFacts, SandboxSpec
from foundry_ray.providers.local import LocalProvider, end_all

INSTANCE = "test-instance"
SCRIPTED = [sys.executable, "-m", "foundry_ray.testing.scripted_agent"]


@dataclass
class Place:
    """A sandbox that is served."""

    provider: LocalProvider
    sandbox_id: str
    token: str
    facts: SandboxFacts

    @property
    def folder(self) -> Path:
        """Where Foundry's own files are in the sandbox."""
        return Path(self.facts.home) / ".foundry"

    async def client(self) -> SandboxAgentClient:
        """Return a new client of the sandbox."""
        endpoint = await self.provider.preview_endpoint(self.sandbox_id)
        return SandboxAgentClient(endpoint.url, token=self.token, home=self.facts.home)

    def witnessed(self) -> list[str]:
        """Return the message ids that reached an agent, each as often as it did."""
        witness = self.folder / "witness.jsonl"
        lines = witness.read_text().splitlines() if witness.exists() else []
        return [line.split('"')[3] for line in lines]


def provider_at(root: Path) -> LocalProvider:
    """Return a local provider whose homes have the scripted agent."""
    files = launcher_files(sys.executable, {"scripted": SCRIPTED})
    return LocalProvider(root, instance_id=INSTANCE, files=files)


async def make_place(root: Path) -> Place:
    """Make a sandbox and have it served."""
    provider, sandbox_id, token = provider_at(root), f"sb-{new_id()}", new_id()
    facts = await provider.create(SandboxSpec(sandbox_id=sandbox_id, instance_id=INSTANCE))
    await provider.start_sandbox_agent(sandbox_id, token)
    return Place(provider, sandbox_id, token, facts)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A directory for sandboxes; what runs in them is ended after the test."""
    yield tmp_path / "sandboxes"
    asyncio.run(end_all(tmp_path / "sandboxes"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A served sandbox for the tests of this module, which use server ids of their own."""
    root = tmp_path_factory.mktemp("shared") / "sandboxes"
    made = asyncio.run(make_place(root))
    yield made
    asyncio.run(end_all(root))


@pytest.fixture
async def client(place: Place) -> AsyncIterator[SandboxAgentClient]:
    """A client of the shared sandbox."""
    async with await place.client() as made:
        yield made


@pytest.fixture
def server_id() -> str:
    """A server id that nobody else uses."""
    return f"srv-{new_id()}"
