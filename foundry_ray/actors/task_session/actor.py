"""Task session: prompts in order, the transcript, permission requests.

Key ``…/task/<id>/session/<id>``. It never touches a sandbox: it tells the sandbox
instance, and its status sync hands it the journal of the running turn.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from foundry_ray.actors.sandbox_instance.messages import (
    AnswerAgent,
    CancelPrompt,
    DeliverPrompt,
    OpenAgentSession,
    TakeChanges,
)
from foundry_ray.actors.session_status_sync.messages import EndFollowing, FollowTurn
from foundry_ray.actors.task.messages import SessionChanged
from foundry_ray.actors.task_session import rules
from foundry_ray.actors.task_session.messages import (
    AgentSessionFailed,
    AgentSessionOpened,
    AnswerPermission,
    AppendRecords,
    CloseSession,
    PromptDelivered,
    PromptFailed,
    Record,
    SendMessage,
    StartSession,
    StopTurn,
    TurnLost,
)
from foundry_ray.actors.task_session.tables import (
    SessionState,
    TaskSession,
    TaskSessionEvent,
    TaskSessionMessage,
    TaskSessionPermission,
)
from foundry_ray.core import keys, topics
from foundry_ray.core.errors import (
    InvalidInput,
    NotFound,
    PromptEmpty,
    TooLarge,
    Unavailable,
    WrongState,
)
from foundry_ray.core.facts import Trouble
from foundry_ray.core.ids import new_id
from foundry_ray.core.messages import Person
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.store.engine import Transaction


class TaskSessionActor(Actor[SessionState]):
    """One conversation with an agent; one agent turn at a time."""

    actor_type = "task_session"
    idle_after = timedelta(minutes=5)
    tables = (TaskSession, TaskSessionMessage, TaskSessionEvent, TaskSessionPermission)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> SessionState:
        """Read the state of one session."""
        return await SessionState.load(transaction, key)

    @property
    def session(self) -> TaskSession:
        """Return the row; a command that overtook the start of the session is tried again."""
        if self.state.row is None:
            raise Unavailable("The session is about to begin.", hint="Try again at once.")
        return self.state.row

    # -- life ------------------------------------------------------------------------

    @handles
    def start(self, command: StartSession, turn: Turn) -> None:
        """Begin the session; the first prompt is a row before anything is sent (W08)."""
        if self.state.row is not None:
            return
        self.state.row = TaskSession(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            title=command.title,
            agent=command.agent,
            model=command.model,
            sandbox_key=command.sandbox_key,
            stop_commands=[],
        )
        if command.prompt is not None:
            self._queue(command.prompt, command.by, turn)
        turn.tell(command.sandbox_key, OpenAgentSession(session_key=self.key, agent=command.agent))
        self._changed(turn)

    @handles
    def agent_session_opened(self, event: AgentSessionOpened, turn: Turn) -> None:
        """The agent is there: begin the first turn."""
        row = self.session
        row.server_id, row.agent_session_id = event.server_id, event.agent_session_id
        row.modes, row.models = event.modes, event.models
        row.mode = (event.modes or {}).get("currentModeId") or row.mode
        if row.turn_message_id is None and row.status != "closed":
            row.status, row.error = "idle", None
            self._begin_next(turn)
        self._changed(turn)

    @handles
    def agent_session_failed(self, event: AgentSessionFailed, turn: Turn) -> None:
        """Show why there is no agent; the queue stays for a retry."""
        if self.session.status == "closed":
            return
        self.session.status = "error"
        self.session.error = event.error.model_dump(mode="json")
        self._changed(turn)

    @handles
    def close(self, command: CloseSession, turn: Turn) -> None:
        """End the session; who waits for a stop hears that it ended."""
        row = self.session
        if row.status == "closed":
            return
        self._end_turn(turn, "cancelled")
        for message in list(self.state.messages.values()):
            self._over(message, "cancelled", turn)
        row.status = "closed"
        turn.tell(keys.status_sync(self.key), EndFollowing())
        self._changed(turn)

    # -- messages ----------------------------------------------------------------------

    @handles
    def send_message(self, command: SendMessage, turn: Turn) -> None:
        """Queue a message; it is sent at once when nothing runs."""
        row = self.session
        if not command.text.strip():
            raise PromptEmpty
        if len(command.text.encode()) > rules.PROMPT_LIMIT:
            raise TooLarge("A prompt has at most 1 MiB.", limit=rules.PROMPT_LIMIT)
        if row.status == "closed":
            raise WrongState("The session is closed.", hint="Begin a new session of the task.")
        message = self._queue(command.text, command.by, turn)
        if row.agent_session_id:
            self._begin_next(turn)
        self._changed(turn)
        state = "queued" if message.state == "queued" else "sent"
        turn.reply({"message_id": message.id, "state": state}, status=202)

    def _queue(self, text: str, by: Person, turn: Turn) -> TaskSessionMessage:
        message = TaskSessionMessage(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            id=new_id(),
            text=text,
            author=by.model_dump(mode="json", include={"id", "login"}),
        )
        self.state.messages[message.id] = message
        turn.put(message)
        return message

    def _begin_next(self, turn: Turn) -> None:
        row = self.session
        if row.turn_message_id is not None or not self.state.queued:
            return
        message = self.state.queued[0]
        message.state = "sent"
        turn.put(message)
        row.turn_message_id = message.id
        row.status, row.error = "running", None
        row.thinking_since = turn.now
        self._deliver(message, turn)
        self._follow(turn)

    def _deliver(self, message: TaskSessionMessage, turn: Turn) -> None:
        turn.tell(
            self.session.sandbox_key,
            DeliverPrompt(session_key=self.key, message_id=message.id, text=message.text),
        )

    def _follow(self, turn: Turn) -> None:
        row = self.session
        assert row.turn_message_id is not None
        turn.tell(
            keys.status_sync(self.key),
            FollowTurn(
                sandbox_key=row.sandbox_key,
                server_id=row.server_id,
                from_seq=row.cursor + 1,
                message_id=row.turn_message_id,
            ),
        )

    @handles
    def prompt_delivered(self, event: PromptDelivered, turn: Turn) -> None:
        """The journal holds the prompt; a stop that came too early is said again."""
        row = self.session
        message = self.state.messages.get(event.message_id)
        if message is None or row.turn_message_id != event.message_id:
            return
        if message.state == "delivered":  # it was sent again because its reader lost it
            self._follow(turn)
        message.state = "delivered"
        turn.put(message)
        if row.stop_wanted:
            turn.tell(row.sandbox_key, CancelPrompt(session_key=self.key))

    @handles
    def prompt_failed(self, event: PromptFailed, turn: Turn) -> None:
        """The prompt could not be delivered: show it; the next message goes on."""
        row = self.session
        if row.turn_message_id != event.message_id:
            return
        self._end_turn(turn, "failed")
        row.status, row.error = "error", event.error.model_dump(mode="json")
        turn.tell(keys.status_sync(self.key), EndFollowing())
        self._changed(turn)

    @handles
    def turn_lost(self, event: TurnLost, turn: Turn) -> None:
        """The reader lost the agent: send the prompt again, with the same id.

        The shim answers from its journal; it never gives an agent a prompt twice.
        """
        message = self.state.messages.get(event.message_id)
        if message is not None and self.session.turn_message_id == event.message_id:
            self._deliver(message, turn)

    @handles
    def stop(self, command: StopTurn, turn: Turn) -> None:
        """Cancel the running turn; answered when it has ended, at once if none runs."""
        row = self.session
        if row.turn_message_id is None:
            turn.reply(row.summary(self.state.queued))
            return
        waiting = turn.defer()
        if waiting:
            row.stop_commands = [*row.stop_commands, waiting]
        row.stop_wanted = True
        turn.tell(row.sandbox_key, CancelPrompt(session_key=self.key))
        for permission in self.state.permissions.values():
            self._answer(permission, None, turn)
        if row.status == "needs_you":  # nobody is asked any more
            row.status = "running"
            self._changed(turn)
        else:
            turn.put(row)

    # -- permissions -------------------------------------------------------------------

    @handles
    def answer_permission(self, command: AnswerPermission, turn: Turn) -> None:
        """Answer a request of the agent; the first answer counts."""
        permission = self.state.permissions.get(command.permission_id)
        if permission is None:
            raise NotFound("There is no such open permission request.")
        options = [o.get("optionId") for o in permission.request.get("options", [])]
        if command.option_id not in options:
            raise InvalidInput("The agent did not offer this option.", options=options)
        permission.answered_by = command.by.model_dump(mode="json", include={"id", "login"})
        self._answer(permission, command.option_id, turn)
        if not self.state.permissions and self.session.turn_message_id:
            self.session.status = "running"
        self._changed(turn)
        turn.reply(permission.represent())

    def _answer(self, permission: TaskSessionPermission, option_id: str | None, turn: Turn) -> None:
        permission.state = "answered"
        permission.option_id = option_id
        turn.put(permission)
        self.state.permissions = {
            k: p for k, p in self.state.permissions.items() if p is not permission
        }
        turn.tell(
            self.session.sandbox_key,
            AnswerAgent(session_key=self.key, rpc_id=permission.rpc_id["id"], option_id=option_id),
        )
        self._show(permission, turn)

    # -- the transcript ------------------------------------------------------------------

    @handles
    def append(self, command: AppendRecords, turn: Turn) -> dict[str, Any]:
        """Append journal records in their order; answer from where to go on.

        Records that are there already are passed over; a gap is answered with the
        cursor, and the reader sends from there.
        """
        row = self.session
        events: list[TaskSessionEvent] = []
        changed = False
        for record in command.records:
            if record.seq != row.cursor + 1:
                if record.seq <= row.cursor:
                    continue
                break
            row.cursor = record.seq
            changed = self._take(record, turn) or changed
            payload = rules.transcript_payload(record)
            if payload is not None:
                row.last_index += 1
                events.append(self._event(record, payload))
        for event in events:
            turn.insert(event)
        if events:
            turn.publish(
                topics.session(self.key),
                "append",
                str(events[-1].index),
                events[-1].index,
                {"events": [event.represent() for event in events]},
            )
        if changed:
            self._changed(turn)
        else:
            turn.put(row)
        return {"next": row.cursor + 1, "ended": row.turn_message_id is None}

    def _event(self, record: Record, payload: dict[str, Any]) -> TaskSessionEvent:
        author = None
        if record.direction == "in" and record.message_id in self.state.messages:
            author = self.state.messages[record.message_id].author
        return TaskSessionEvent(
            actor_key=self.key,
            index=self.session.last_index,
            id=f"{keys.last_id(self.key)}-{record.seq}",
            at=datetime.fromtimestamp(record.at_ms / 1000, UTC),
            sender="client" if record.direction == "in" else "agent",
            author=author,
            payload=payload,
        )

    def _take(self, record: Record, turn: Turn) -> bool:
        """Let a record change the session; return whether people see a change."""
        row = self.session
        asked = rules.permission_request(record)
        if asked is not None and row.status != "closed":
            identity, rpc_id, request = asked
            permission = TaskSessionPermission(
                actor_key=self.key,
                revision=0,
                created_at=turn.now,
                updated_at=turn.now,
                id=identity,
                rpc_id={"id": rpc_id},
                request=request,
            )
            turn.put(permission)
            self.state.permissions[identity] = permission
            if row.stop_wanted:
                self._answer(permission, None, turn)
            else:
                row.status = "needs_you"
                self._show(permission, turn)
            return True
        if (ended := rules.turn_end(record, row.turn_message_id)) is not None:
            error = ended.get("error")
            self._end_turn(turn, "failed" if error else "done")
            row.status, row.error = "idle", None
            if error:
                row.status = "error"
                row.error = Trouble(
                    code=str(error.get("code", "agent_exited")),
                    message=str(error.get("message") or "The agent ended before it finished."),
                    hint="Send the next message: the agent is started again.",
                ).model_dump(mode="json")
            turn.tell(row.sandbox_key, TakeChanges())
            self._begin_next(turn)
            return True
        return False

    def _end_turn(self, turn: Turn, state: str) -> None:
        row = self.session
        if row.turn_message_id is not None:
            message = self.state.messages.get(row.turn_message_id)
            if message is not None:
                self._over(message, state, turn)
        row.turn_message_id = row.thinking_since = None
        row.stop_wanted = False
        for permission in self.state.permissions.values():
            permission.state = "closed"
            turn.put(permission)
            self._show(permission, turn)
        self.state.permissions = {}
        waiting, row.stop_commands = row.stop_commands, []
        row.status = "idle"
        for command_id in waiting:
            turn.reply(row.summary(self.state.queued), command_id=command_id)

    def _over(self, message: TaskSessionMessage, state: str, turn: Turn) -> None:
        message.state = state
        turn.put(message)
        del self.state.messages[message.id]

    # -- what people see -----------------------------------------------------------------

    def _show(self, permission: TaskSessionPermission, turn: Turn) -> None:
        turn.publish(
            topics.session(self.key),
            "permission",
            permission.id,
            permission.revision,
            permission.represent(),
        )

    def _changed(self, turn: Turn) -> None:
        row = self.session
        turn.put(row)
        summary = row.summary(self.state.queued)
        for topic in (topics.task(self.key), topics.session(self.key)):
            turn.publish(topic, "session", keys.last_id(self.key), row.revision, summary)
        turn.tell(
            keys.parent_of(self.key) or "",
            SessionChanged(session_id=keys.last_id(self.key), status=row.status, summary=summary),
        )
