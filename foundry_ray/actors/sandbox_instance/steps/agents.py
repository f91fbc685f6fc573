"""Agents inside the sandbox: sessions, prompts, cancels, answers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from foundry_ray.actors.sandbox_instance.steps.place import PATIENT, Place, SandboxTools, inside
from foundry_ray.core.errors import (
    AgentExited,
    NotFound,
    SandboxStartFailed,
    Unavailable,
)
from foundry_ray.core.messages import Value
from foundry_ray.integrations.sandbox_agent.base import AgentSession, SandboxAgent
from foundry_ray.runtime.workflow import Nothing, StepContext, step


class AgentInput(Place):
    """Which agent process, in which directory."""

    server_id: str
    agent: str
    work_dir: str
    agent_session_id: str = ""


class AgentOpened(Value):
    """An agent session exists."""

    agent_session_id: str
    modes: dict[str, Any] | None = None
    models: dict[str, Any] | None = None


@step("open-agent-session", timeout=timedelta(minutes=2), retry=PATIENT)
async def open_agent_session(
    tools: SandboxTools, input: AgentInput, context: StepContext
) -> AgentOpened:
    """Start the agent and open a session, or take up the one that it had.

    Raises:
        AgentMissing: Install the agent in the sandbox's image.
        AgentExited: The agent ended at once; context ``stderr`` has its last words.
    """
    try:
        async with inside(tools, input, context) as agent:
            opened = await _open(agent, input)
    except AgentExited as gone:
        if "exit_code" in gone.context:
            raise
        # Not the agent ended but what it runs under, which the next attempt starts again.
        raise Unavailable("The agent's surroundings ended.", hint=gone.hint) from gone
    return AgentOpened(agent_session_id=opened.session_id, modes=opened.modes, models=opened.models)


async def _open(agent: SandboxAgent, input: AgentInput) -> AgentSession:
    loads = await agent.open_agent(input.server_id, input.agent)
    if input.agent_session_id and loads:
        try:
            return await agent.load_session(input.server_id, input.agent_session_id, input.work_dir)
        except NotFound:
            pass  # the agent does not know it any more: begin a new one
    return await agent.new_session(input.server_id, input.work_dir)


class PromptInput(Place):
    """Which message goes to which agent session."""

    server_id: str
    agent_session_id: str
    message_id: str
    text: str


class Delivered(Value):
    """Whether the journal holds the message; if not, the agent must be opened again."""

    delivered: bool


@step("send-prompt", timeout=timedelta(minutes=1), retry=PATIENT)
async def send_prompt(tools: SandboxTools, input: PromptInput, context: StepContext) -> Delivered:
    """Give the agent the message; the shim drops one that it has journalled already."""
    try:
        async with inside(tools, input, context, revive=False) as agent:
            await agent.prompt(
                input.server_id,
                input.agent_session_id,
                input.message_id,
                [{"type": "text", "text": input.text}],
            )
    except (AgentExited, SandboxStartFailed):
        return Delivered(delivered=False)
    except Unavailable:
        if context.attempt < 2:
            raise
        return Delivered(delivered=False)  # perhaps sandbox-agent is gone: start it again
    return Delivered(delivered=True)


class SessionInput(Place):
    """Which agent session."""

    server_id: str
    agent_session_id: str


@step("cancel-prompt", timeout=timedelta(seconds=20), retry=PATIENT)
async def cancel_prompt(tools: SandboxTools, input: SessionInput, context: StepContext) -> Nothing:
    """Ask the agent to end its turn; one that is gone has ended it."""
    try:
        async with inside(tools, input, context, revive=False) as agent:
            await agent.cancel(input.server_id, input.agent_session_id)
    except (AgentExited, SandboxStartFailed):
        return Nothing()  # nothing runs there; the journal's reader tells how the turn ended
    return Nothing()


class AnswerInput(Place):
    """Which answer goes to which request of the agent."""

    server_id: str
    rpc_id: str | int
    option_id: str | None


@step("answer-agent", timeout=timedelta(seconds=20), retry=PATIENT)
async def answer_agent(tools: SandboxTools, input: AnswerInput, context: StepContext) -> Nothing:
    """Answer the agent's request; the shim drops a second answer."""
    outcome: dict[str, Any] = (
        {"outcome": "cancelled"}
        if input.option_id is None
        else {"outcome": "selected", "optionId": input.option_id}
    )
    try:
        async with inside(tools, input, context, revive=False) as agent:
            await agent.answer(input.server_id, input.rpc_id, {"outcome": outcome})
    except (AgentExited, SandboxStartFailed):
        return Nothing()  # who asked is gone; the journal's reader tells how the turn ended
    return Nothing()
