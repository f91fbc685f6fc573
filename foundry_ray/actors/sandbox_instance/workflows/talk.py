"""Prompts, cancels and answers on their way to an agent."""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.sandbox_instance import steps
from foundry_ray.actors.sandbox_instance.steps import (
    AnswerInput,
    Place,
    PromptInput,
    SessionInput,
)
from foundry_ray.actors.sandbox_instance.tables import SandboxState
from foundry_ray.actors.sandbox_instance.workflows.common import (
    place,
)
from foundry_ray.actors.sandbox_instance.workflows.provision import (
    agent_input,
    opened,
)
from foundry_ray.actors.task_session.messages import (
    PromptDelivered,
    PromptFailed,
)
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.facts import Trouble
from foundry_ray.core.messages import Value
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Run, Workflow


class Delivery(Value):
    """Which message goes to which session."""

    of: str
    message_id: str
    text: str


class Deliver(Workflow[SandboxState]):
    """A message in the agent's journal; the agent is brought back if it is gone."""

    kind = "sandbox_instance.deliver"
    input_type = Delivery
    steps = (
        steps.send_prompt,
        steps.start_agent_server,
        steps.check_health,
        steps.open_agent_session,
    )

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Try the agent that is there."""
        return self._send(state, run)

    def _send(self, state: SandboxState, run: Run) -> Go:
        session = state.sessions[run.input.of]
        return Go(
            steps.send_prompt,
            PromptInput(
                **place(state),
                server_id=session.server_id,
                agent_session_id=session.agent_session_id,
                message_id=run.input.message_id,
                text=run.input.text,
            ),
        )

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """Revive what is gone, then send again with the same message id."""
        here = Place(**place(state))
        match run.step:
            case "send-prompt" if result.delivered:
                turn.tell(run.input.of, PromptDelivered(message_id=run.input.message_id))
                return Done()
            case "send-prompt":
                return Go(steps.start_agent_server, here)
            case "start-agent-server":
                return Go(steps.check_health, here)
            case "check-health":
                return Go(steps.open_agent_session, agent_input(state, run.input.of))
            case _:
                opened(state, run.input.of, result, turn)
                return self._send(state, run)

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Tell the session; it decides whether to send again."""
        turn.tell(
            run.input.of,
            PromptFailed(message_id=run.input.message_id, error=Trouble.of(error)),
        )
        turn.cancel(run.id)


class Cancelling(Value):
    """Which session's turn to cancel."""

    of: str


class Cancel(Workflow[SandboxState]):
    """A cancelled agent turn."""

    kind = "sandbox_instance.cancel"
    input_type = Cancelling
    steps = (steps.cancel_prompt,)

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Ask the agent."""
        session = state.sessions[run.input.of]
        return Go(
            steps.cancel_prompt,
            SessionInput(
                **place(state),
                server_id=session.server_id,
                agent_session_id=session.agent_session_id,
            ),
        )

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """The journal tells how the turn ended."""
        return Done()

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """The stop can be asked for again; the issue says that this one failed."""
        turn.cancel(run.id)


class Answering(Value):
    """Which answer to which request."""

    of: str
    rpc_id: str | int
    option_id: str | None


class Answer(Workflow[SandboxState]):
    """An answered permission request."""

    kind = "sandbox_instance.answer"
    input_type = Answering
    steps = (steps.answer_agent,)

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Give the agent its answer."""
        return Go(
            steps.answer_agent,
            AnswerInput(
                **place(state),
                server_id=state.sessions[run.input.of].server_id,
                rpc_id=run.input.rpc_id,
                option_id=run.input.option_id,
            ),
        )

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """The agent goes on by itself."""
        return Done()

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """The agent waits on; the issue says why, and a stop ends the turn."""
        turn.cancel(run.id)
