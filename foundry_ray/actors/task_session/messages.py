"""What others may say to a session."""

from __future__ import annotations

from typing import Any, Literal

from foundry_ray.core.facts import Trouble
from foundry_ray.core.messages import Command, Event, Lane, Person, Value


class StartSession(Command):
    """Begin a session of a task, before any stop; with a prompt, that is its first message."""

    lane = Lane.CONTROL
    kind: Literal["task_session.start"] = "task_session.start"
    title: str
    agent: str
    model: str | None
    sandbox_key: str
    prompt: str | None
    by: Person


class SendMessage(Command):
    """Give the agent a message: at once, or after the turn that runs now."""

    kind: Literal["task_session.send_message"] = "task_session.send_message"
    text: str
    by: Person


class StopTurn(Command):
    """Cancel the running agent turn; answered when it is cancelled."""

    lane = Lane.CONTROL
    kind: Literal["task_session.stop"] = "task_session.stop"
    by: Person


class AnswerPermission(Command):
    """Answer a permission request of the agent."""

    lane = Lane.CONTROL
    kind: Literal["task_session.answer_permission"] = "task_session.answer_permission"
    permission_id: str
    option_id: str
    by: Person


class AgentSessionOpened(Event):
    """The agent runs behind the shim and has a session for us."""

    kind: Literal["task_session.agent_session_opened"] = "task_session.agent_session_opened"
    server_id: str
    agent_session_id: str
    modes: dict[str, Any] | None = None
    models: dict[str, Any] | None = None


class AgentSessionFailed(Event):
    """The agent's session could not be opened."""

    kind: Literal["task_session.agent_session_failed"] = "task_session.agent_session_failed"
    error: Trouble


class PromptDelivered(Event):
    """The journal holds the prompt."""

    kind: Literal["task_session.prompt_delivered"] = "task_session.prompt_delivered"
    message_id: str


class PromptFailed(Event):
    """The prompt could not be delivered."""

    kind: Literal["task_session.prompt_failed"] = "task_session.prompt_failed"
    message_id: str
    error: Trouble


class TurnLost(Event):
    """The reader of the running turn found its shim or sandbox gone."""

    kind: Literal["task_session.turn_lost"] = "task_session.turn_lost"
    message_id: str


class Record(Value):
    """One journal record (see the sandbox-agent port)."""

    seq: int
    at_ms: int
    direction: Literal["in", "out", "end", "note"]
    message_id: str | None = None
    payload: dict[str, Any]


class AppendRecords(Command):
    """Journal records from a sequence number on; handed over directly, answered with the cursor."""

    kind: Literal["task_session.append"] = "task_session.append"
    records: list[Record]


class CloseSession(Command):
    """End the session with its task."""

    lane = Lane.CONTROL
    kind: Literal["task_session.close"] = "task_session.close"
