"""What a session remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel

from foundry_ray.core import keys
from foundry_ray.store.columns import StateRow, instant, json_field
from foundry_ray.store.engine import Transaction


class TaskSession(StateRow, table=True):
    """One agent session.

    Attributes:
        status: ``pending``, ``starting``, ``idle``, ``running``, ``needs_you``, ``error``
            or ``closed``.
        cursor: Sequence number of the last journal record in the transcript.
        last_index: Index of the transcript's last event.
        turn_message_id: The message whose agent turn runs now.
        stop_commands: Commands that are answered when the turn has ended.
    """

    __tablename__ = "task_session"

    title: str
    agent: str
    model: str | None = None
    mode: str | None = None
    sandbox_key: str
    status: str = "pending"
    error: dict[str, Any] | None = json_field(nullable=True)
    server_id: str = ""
    agent_session_id: str = ""
    modes: dict[str, Any] | None = json_field(nullable=True)
    models: dict[str, Any] | None = json_field(nullable=True)
    cursor: int = Field(default=0, sa_type=BigInteger)
    last_index: int = Field(default=0, sa_type=BigInteger)
    turn_message_id: str | None = None
    thinking_since: datetime | None = instant(nullable=True)
    stop_commands: list[str] = json_field(default=list)
    stop_wanted: bool = False

    def summary(self, queued: list[TaskSessionMessage]) -> dict[str, Any]:
        """Return the session as lists show it (docs/reference/api.md)."""
        return {
            "id": keys.last_id(self.actor_key),
            "title": self.title,
            "agent": self.agent,
            "model": self.model,
            "mode": self.mode,
            "status": self.status,
            "error": self.error,
            "thinking_since": self.thinking_since.isoformat() if self.thinking_since else None,
            "queued": [message.queued() for message in queued],
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
            "revision": self.revision,
        }


class TaskSessionMessage(StateRow, table=True):
    """A message of a person to the agent.

    Attributes:
        state: ``queued``, ``sent`` (its delivery is asked for), ``delivered``, ``done``,
            ``failed`` or ``cancelled``.
    """

    __tablename__ = "task_session_message"

    id: str = Field(primary_key=True)
    text: str
    author: dict[str, Any] = json_field()
    state: str = "queued"

    def queued(self) -> dict[str, Any]:
        """Return the message as it waits in the queue."""
        return {
            "id": self.id,
            "text": self.text,
            "author": self.author,
            "created_at": self.created_at.isoformat(),
        }


class TaskSessionEvent(SQLModel, table=True):
    """One entry of the transcript: append-only, complete, in the journal's order."""

    __tablename__ = "task_session_event"

    actor_key: str = Field(primary_key=True)
    index: int = Field(primary_key=True, sa_type=BigInteger)
    id: str
    at: datetime = instant()
    sender: str
    author: dict[str, Any] | None = json_field(nullable=True)
    payload: dict[str, Any] = json_field()

    def represent(self) -> dict[str, Any]:
        """Return the event as clients see it."""
        return {
            "index": self.index,
            "id": self.id,
            "at": self.at.isoformat(),
            "sender": self.sender,
            "author": self.author,
            "payload": self.payload,
        }


class TaskSessionPermission(StateRow, table=True):
    """A permission request of the agent.

    Attributes:
        state: ``open``, ``answered`` (by a person) or ``closed`` (the turn ended).
    """

    __tablename__ = "task_session_permission"

    id: str = Field(primary_key=True)
    rpc_id: dict[str, Any] = json_field()
    request: dict[str, Any] = json_field()
    state: str = "open"
    option_id: str | None = None
    answered_by: dict[str, Any] | None = json_field(nullable=True)

    def represent(self) -> dict[str, Any]:
        """Return the request as clients see it."""
        return {
            "id": self.id,
            "tool_call": self.request.get("toolCall"),
            "options": self.request.get("options", []),
            "state": self.state,
            "option_id": self.option_id,
            "answered_by": self.answered_by,
            "created_at": self.created_at.isoformat(),
            "revision": self.revision,
            "updated_at": self.updated_at.isoformat(),
        }


@dataclass
class SessionState:
    """A session, its messages that are not over, and its open permission requests."""

    key: str
    row: TaskSession | None
    messages: dict[str, TaskSessionMessage] = field(default_factory=dict)
    permissions: dict[str, TaskSessionPermission] = field(default_factory=dict)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> SessionState:
        """Read the state of one session; the transcript stays where it is."""
        rows = await transaction.owned(TaskSession, key)
        messages = await transaction.rows(
            TaskSessionMessage,
            "WHERE actor_key = %s AND state IN ('queued', 'sent', 'delivered') ORDER BY id",
            (key,),
        )
        permissions = await transaction.rows(
            TaskSessionPermission, "WHERE actor_key = %s AND state = 'open'", (key,)
        )
        return cls(
            key,
            rows[0] if rows else None,
            {m.id: m for m in messages},
            {p.id: p for p in permissions},
        )

    @property
    def queued(self) -> list[TaskSessionMessage]:
        """Return the messages that wait for their turn, oldest first."""
        return [m for m in self.messages.values() if m.state == "queued"]
