"""A sandbox that is not wanted any more while it is being made: nothing of it is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from foundry_ray import bootstrap
from foundry_ray.actors.sandbox_instance.messages import (
    DeleteSandbox,
    ProvisionSandbox,
    StopSandbox,
)
from foundry_ray.actors.sandbox_instance.steps import SandboxTools
from foundry_ray.core import keys
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.messages import Message, Person
from foundry_ray.core.secrets import Sealer
from foundry_ray.integrations.sandbox_agent.client import SandboxAgentClient
from foundry_ray.providers.base import Endpoint
from foundry_ray.providers.processes import Mark, members
from foundry_ray.runtime import points
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.refs import Client
from foundry_ray.store.engine import Database
from tests.helpers import eventually
from tests.integration.every_message.world import Alone
from tests.integration.sandbox.conftest import INSTANCE, provider_at

KEY = keys.sandbox(1, "local", "b1")
TASK = keys.task(keys.repository(1, 2), "t1")
PROVISION = ProvisionSandbox(
    task_key=TASK,
    clone_url="https://github.com/acme/app.git",
    branch="mine",
    base_branch="main",
    on_branch=None,
    owner=Person(kind="user", id="7", login="ann"),
)


@dataclass
class Maker:
    """The actor of one sandbox on a real kernel, with a real provider.

    Attributes:
        at: The claim of this how-manieth step is the moment of which ``moment`` tells.
    """

    database: Database
    host: Alone
    client: Client
    root: Path
    at: int = 0
    claimed: int = 0
    moment: asyncio.Event | None = None

    def point(self, name: str) -> None:
        self.claimed += name == points.STEP_CLAIMED
        if self.moment is not None and self.claimed == self.at:
            self.moment.set()

    async def reach(self, step: int) -> None:
        """Begin to make the sandbox; return as soon as its how-manieth step is under way."""
        self.at, self.moment = step, asyncio.Event()
        await self.client.tell(KEY, PROVISION)
        async with asyncio.timeout(20):
            await self.moment.wait()

    async def ends(self) -> list[Any]:
        """Return what the task was told of the end."""
        async with self.database.transaction() as transaction:
            rows = await transaction.fetch(
                "SELECT body ->> 'state' AS state FROM rt_mailbox"
                " WHERE target = %s AND kind = 'task.sandbox_ended'",
                (TASK,),
            )
        return [row["state"] for row in rows]


@pytest.fixture
async def maker(database_url: str, root: Path) -> AsyncIterator[Maker]:
    """The actor of one sandbox, whose task and organization only get their mail."""
    database = Database(database_url, name="maker", size=3)
    await database.open()
    host, clock = Alone(KEY), SystemClock()
    made = Maker(database, host, Client(database, host, clock, actors=bootstrap.BY_KIND), root)

    def connect(endpoint: Endpoint, token: SecretStr, home: str) -> SandboxAgentClient:
        return SandboxAgentClient(endpoint.url, token=token.get_secret_value(), home=home)

    tools = SandboxTools(
        providers={"local": provider_at(root)},
        connect=connect,
        instance_id=INSTANCE,
        clock=clock,
        environment={},
    )
    host.kernel = Kernel(
        database=database,
        clock=clock,
        sealer=Sealer(b"k" * 32),
        waker=host,
        tools={"sandbox_instance": tools},
        actors=bootstrap.BY_KIND,
        point=made.point,
    )
    yield made
    await host.close()
    await database.close()


@pytest.mark.parametrize("crash", [False, True], ids=["alive", "crashed"])
@pytest.mark.parametrize(
    ("step", "end"),
    [(1, DeleteSandbox()), (2, DeleteSandbox()), (2, StopSandbox())],
    ids=["delete-while-created", "delete-while-started", "stop-while-started"],
)
async def test_what_is_given_up_while_it_is_made_leaves_nothing_behind(
    maker: Maker, step: int, end: Message, crash: bool
) -> None:
    await maker.reach(step)
    if crash:
        maker.host.end(KEY)

    await maker.client.tell(KEY, end)

    await eventually(maker.ends, timeout=20)
    assert await maker.ends() == ["deleted"]
    assert [path.name for path in maker.root.iterdir()] == []
    assert members(Mark("b1", INSTANCE, None)) == set()
    async with maker.database.transaction() as transaction:
        assert await transaction.fetch("SELECT 1 FROM rt_run") == []
