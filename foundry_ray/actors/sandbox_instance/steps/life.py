"""From nothing to a healthy sandbox, and to its end."""

from __future__ import annotations

from datetime import timedelta

from pydantic import SecretStr

from foundry_ray.actors.sandbox_instance.steps.place import (
    PATIENT,
    Place,
    SandboxTools,
    inside,
    reach,
)
from foundry_ray.core.errors import (
    NotFound,
)
from foundry_ray.core.messages import Value
from foundry_ray.core.secrets import random_token
from foundry_ray.providers.base import SandboxSpec
from foundry_ray.runtime.workflow import Nothing, StepContext, step


@step("stop-sandbox", timeout=timedelta(minutes=1), retry=PATIENT)
async def stop_sandbox(tools: SandboxTools, input: Place, context: StepContext) -> Nothing:
    """End the sandbox's processes; files stay."""
    await tools.providers[input.provider].stop(input.sandbox_id)
    return Nothing()


@step("delete-sandbox", timeout=timedelta(minutes=1), retry=PATIENT)
async def delete_sandbox(tools: SandboxTools, input: Place, context: StepContext) -> Nothing:
    """Destroy the sandbox; one that is gone counts as destroyed."""
    await tools.providers[input.provider].delete(input.sandbox_id)
    return Nothing()


class Created(Value):
    """A sandbox exists; its bearer token lies sealed in the result."""

    provider_id: str
    state: str
    home: str
    work_dir: str
    sealed_token: str


@step("create-sandbox", timeout=timedelta(minutes=3), retry=PATIENT, undo=delete_sandbox)
async def create_sandbox(tools: SandboxTools, input: Place, context: StepContext) -> Created:
    """Create the sandbox, or find the one an earlier try made, and make up its token."""
    provider = tools.providers[input.provider]
    facts = await provider.create(
        SandboxSpec(
            sandbox_id=input.sandbox_id,
            instance_id=tools.instance_id,
            labels={"foundry_sandbox": context.key},
            environment=tools.environment,
        )
    )
    try:
        token = await context.secret(f"{context.key}#token")
    except NotFound:
        token = SecretStr(random_token())
    return Created(
        provider_id=facts.provider_id,
        state=facts.state,
        home=facts.home,
        work_dir=facts.work_dir,
        sealed_token=context.seal(token, f"{context.key}#token"),
    )


@step("start-agent-server", timeout=timedelta(minutes=2), retry=PATIENT)
async def start_agent_server(tools: SandboxTools, input: Place, context: StepContext) -> Nothing:
    """Start sandbox-agent in the sandbox, or adopt the one that runs (S35)."""
    provider = tools.providers[input.provider]
    await provider.start(input.sandbox_id)
    token = await context.secret(f"{context.key}#token")
    await provider.start_sandbox_agent(input.sandbox_id, token.get_secret_value())
    return Nothing()


class Preview(Value):
    """Where sandbox-agent answers."""

    url: str


@step("find-preview", timeout=timedelta(seconds=20), retry=PATIENT)
async def find_preview(tools: SandboxTools, input: Place, context: StepContext) -> Preview:
    """Look up the preview endpoint (S32)."""
    token = await context.secret(f"{context.key}#token")
    return Preview(url=(await reach(tools, input, token)).url)


@step("check-health", timeout=timedelta(seconds=20), retry=PATIENT)
async def check_health(tools: SandboxTools, input: Place, context: StepContext) -> Nothing:
    """Ask sandbox-agent whether it is well."""
    async with inside(tools, input, context) as agent:
        await agent.health()
    return Nothing()
