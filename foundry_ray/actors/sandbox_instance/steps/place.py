"""Which sandbox, and how its sandbox-agent is reached."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from pydantic import SecretStr

from foundry_ray.core.clock import Clock
from foundry_ray.core.errors import SandboxStartFailed
from foundry_ray.core.messages import Value
from foundry_ray.core.retry import RetryPolicy
from foundry_ray.integrations.sandbox_agent.base import SandboxAgent
from foundry_ray.providers.base import Endpoint, SandboxProvider
from foundry_ray.runtime.workflow import StepContext

# A provider that is away for five minutes is waited for; work goes on within 20 seconds of
# its return.
PATIENT = RetryPolicy(
    max_attempts=40, first_delay=timedelta(seconds=0.2), max_delay=timedelta(seconds=20)
)


@dataclass(frozen=True)
class SandboxTools:
    """What the steps work with.

    Attributes:
        connect: Makes the client of the sandbox-agent behind an endpoint.
        environment: What agents need, such as model keys; never a secret of Foundry.
    """

    providers: Mapping[str, SandboxProvider]
    connect: Callable[[Endpoint, SecretStr, str], SandboxAgent]
    instance_id: str
    clock: Clock
    environment: Mapping[str, str]


class Place(Value):
    """Which sandbox."""

    provider: str
    sandbox_id: str


async def reach(tools: SandboxTools, place: Place, token: SecretStr) -> Endpoint:
    """Return where sandbox-agent answers; one that has died is started again (S35)."""
    provider = tools.providers[place.provider]
    try:
        return await provider.preview_endpoint(place.sandbox_id)
    except SandboxStartFailed:
        await provider.start_sandbox_agent(place.sandbox_id, token.get_secret_value())
        return await provider.preview_endpoint(place.sandbox_id)


@asynccontextmanager
async def inside(
    tools: SandboxTools, place: Place, context: StepContext, *, revive: bool = True
) -> AsyncIterator[SandboxAgent]:
    """Connect to the sandbox's sandbox-agent.

    Args:
        tools: What steps work with.
        place: Which sandbox.
        context: Of the step.
        revive: Start a sandbox-agent that has died; else ``SandboxStartFailed``.
    """
    provider = tools.providers[place.provider]
    facts = await provider.get(place.sandbox_id)
    token = await context.secret(f"{context.key}#token")
    if revive:
        endpoint = await reach(tools, place, token)
    else:
        endpoint = await provider.preview_endpoint(place.sandbox_id)
    async with tools.connect(endpoint, token, facts.home) as agent:
        yield agent
