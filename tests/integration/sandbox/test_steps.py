"""Steps in a sandbox whose sandbox-agent dies: whoever needs it starts it again."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from foundry_ray.actors.sandbox_instance import steps
from foundry_ray.actors.sandbox_instance.steps import SandboxTools
from foundry_ray.actors.sandbox_instance.steps import place as places
from foundry_ray.bootstrap import connect
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import SandboxStartFailed
from foundry_ray.providers.local import list_local
from tests.helpers import eventually
from tests.integration.sandbox.conftest import INSTANCE, Place, make_place


@dataclass
class Context:
    """What a step is given besides its tools."""

    place: Place
    key: str = "org/1/sandbox/local/b1"
    attempt: int = 1

    async def secret(self, secret_id: str) -> SecretStr:
        assert secret_id == f"{self.key}#token"
        return SecretStr(self.place.token)


async def a_dead_one(root: Path) -> tuple[SandboxTools, dict[str, str], Any]:
    """Make a sandbox and kill its sandbox-agent."""
    place = await make_place(root)
    [record] = list_local(root)
    assert record.pid is not None
    os.kill(record.pid, signal.SIGKILL)
    await eventually(lambda: not list_local(root)[0].is_serving)
    tools = SandboxTools(
        providers={"local": place.provider},
        connect=connect,
        instance_id=INSTANCE,
        clock=SystemClock(),
        environment={},
    )
    return tools, {"provider": "local", "sandbox_id": place.sandbox_id}, Context(place)


async def test_a_dead_sandbox_agent_is_started_again_by_the_step_that_needs_it(
    root: Path,
) -> None:
    tools, here, context = await a_dead_one(root)

    await steps.check_health.work(tools, places.Place(**here), context)

    assert list_local(root)[0].is_serving


async def test_a_prompt_does_not_start_one_that_has_no_agent_session(root: Path) -> None:
    tools, here, context = await a_dead_one(root)
    given = steps.PromptInput(
        **here, server_id="s1", agent_session_id="a1", message_id="m1", text="say no"
    )

    delivered = await steps.send_prompt.work(tools, given, context)

    assert not delivered.delivered
    assert not list_local(root)[0].is_serving


async def test_one_of_a_stopped_sandbox_stays_down(root: Path) -> None:
    tools, here, context = await a_dead_one(root)
    await tools.providers["local"].stop(here["sandbox_id"])

    with pytest.raises(SandboxStartFailed):
        await steps.check_health.work(tools, places.Place(**here), context)


async def test_a_clone_that_died_with_its_sandbox_agent_is_lost_and_not_failed(
    root: Path,
) -> None:
    tools, here, context = await a_dead_one(root)

    watched = await steps.watch_clone.work(tools, steps.WatchInput(**here, process_id="1"), context)

    assert watched.lost
