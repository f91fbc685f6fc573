"""Messages to sessions and their readers."""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.sandbox_instance.messages import (
    AnswerAgent,
    CancelPrompt,
    DeliverPrompt,
    OpenAgentSession,
    TakeChanges,
)
from foundry_ray.actors.session_status_sync.messages import EndFollowing, FollowTurn
from foundry_ray.actors.session_status_sync.steps import follow_journal
from foundry_ray.actors.session_status_sync.tables import SessionStatusSync
from foundry_ray.actors.session_status_sync.workflows import Follow
from foundry_ray.actors.task.messages import SessionChanged
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
    TaskSession,
    TaskSessionEvent,
    TaskSessionMessage,
    TaskSessionPermission,
)
from foundry_ray.runtime.tables import RtRun
from foundry_ray.testing.clock import START
from tests.integration.every_message.kit import (
    ADA,
    SANDBOX,
    SESSION,
    SYNC,
    TASK,
    TROUBLE,
    Case,
    feed,
    gone,
    kept,
    mail,
    replied,
    row,
    run,
)

TOPIC = "session:500/t1/s1"


def session(status: str, **values: Any) -> TaskSession:
    """Return a session whose agent is there."""
    return kept(
        TaskSession,
        SESSION,
        title="Say hello",
        agent="scripted",
        sandbox_key=SANDBOX,
        server_id="s1",
        agent_session_id="one",
        status=status,
        **values,
    )


def message(state: str) -> TaskSessionMessage:
    """Return the session's first message."""
    return kept(
        TaskSessionMessage, SESSION, id="m1", text="Say hello", author={"id": "41"}, state=state
    )


RUNNING = (session("running", turn_message_id="m1", thinking_since=START), message("sent"))
ASKING = (
    session("needs_you", turn_message_id="m1", thinking_since=START),
    message("delivered"),
    kept(
        TaskSessionPermission,
        SESSION,
        id="3",
        rpc_id={"id": 5},
        request={"options": [{"optionId": "yes"}]},
    ),
)
START_SESSION = StartSession(
    title="Say hello",
    agent="scripted",
    model=None,
    sandbox_key=SANDBOX,
    prompt="Say hello",
    by=ADA,
)
SESSION_CASES = (
    Case(
        "task_session",
        START_SESSION,
        (
            row(TaskSession, actor_key=SESSION, status="pending"),
            row(TaskSessionMessage, text="Say hello", state="queued"),
            mail(SANDBOX, OpenAgentSession, session_key=SESSION, agent="scripted"),
            mail(TASK, SessionChanged, session_id="s1", status="pending"),
            feed(TOPIC, "session", id="s1", status="pending"),
            feed("task:500/t1", "session", id="s1", status="pending"),
        ),
    ),
    Case(
        "task_session",
        AgentSessionOpened(server_id="s1", agent_session_id="one"),
        (
            row(TaskSession, status="running", agent_session_id="one", turn_message_id=...),
            row(TaskSessionMessage, state="sent"),
            mail(SANDBOX, DeliverPrompt, session_key=SESSION, text="Say hello"),
            mail(SYNC, FollowTurn, sandbox_key=SANDBOX, server_id="s1", from_seq=1),
            mail(TASK, SessionChanged, status="running"),
        ),
        before=(START_SESSION,),
    ),
    Case(
        "task_session",
        AgentSessionFailed(error=TROUBLE),
        (
            row(TaskSession, status="error", error={"code": "unavailable"}),
            mail(TASK, SessionChanged, status="error"),
        ),
        before=(START_SESSION,),
    ),
    Case(
        "task_session",
        SendMessage(text="Go on", by=ADA),
        (
            row(TaskSessionMessage, text="Go on", state="sent", author={"login": "ada"}),
            row(TaskSession, status="running", turn_message_id=...),
            mail(SANDBOX, DeliverPrompt, text="Go on"),
            mail(SYNC, FollowTurn, sandbox_key=SANDBOX),
            replied(202, {"message_id": ..., "state": "sent"}),
        ),
        rows=(session("idle"),),
        way="ask",
    ),
    Case(
        "task_session",
        StopTurn(by=ADA),
        (row(TaskSession, stop_wanted=True), mail(SANDBOX, CancelPrompt, session_key=SESSION)),
        rows=RUNNING,
    ),
    Case(
        "task_session",
        AnswerPermission(permission_id="3", option_id="yes", by=ADA),
        (
            row(TaskSessionPermission, id="3", state="answered", option_id="yes"),
            row(TaskSession, status="running"),
            mail(SANDBOX, AnswerAgent, rpc_id=5, option_id="yes"),
            feed(TOPIC, "permission", id="3", state="answered"),
            replied(200, {"id": "3", "option_id": "yes", "answered_by": {"login": "ada"}}),
        ),
        rows=ASKING,
        way="ask",
    ),
    Case(
        "task_session",
        AppendRecords(
            records=[
                Record(seq=1, at_ms=0, direction="out", payload={"method": "session/update"}),
                Record(seq=2, at_ms=0, direction="end", message_id="m1", payload={}),
            ]
        ),
        (
            row(TaskSessionEvent, index=1, payload={"method": "session/update"}),
            row(TaskSessionEvent, index=2, payload={"method": "_foundry/turn_ended"}),
            row(TaskSessionMessage, id="m1", state="done"),
            row(TaskSession, cursor=2, status="idle", turn_message_id=None),
            mail(SANDBOX, TakeChanges),
            feed(TOPIC, "append", events=...),
        ),
        rows=RUNNING,
        way="hand",
    ),
    Case(
        "task_session",
        PromptDelivered(message_id="m1"),
        (row(TaskSessionMessage, id="m1", state="delivered"),),
        rows=RUNNING,
    ),
    Case(
        "task_session",
        PromptFailed(message_id="m1", error=TROUBLE),
        (
            row(TaskSessionMessage, id="m1", state="failed"),
            row(TaskSession, status="error", turn_message_id=None),
            mail(SYNC, EndFollowing),
        ),
        rows=RUNNING,
    ),
    Case(
        "task_session",
        TurnLost(message_id="m1"),
        (mail(SANDBOX, DeliverPrompt, message_id="m1", text="Say hello"),),
        rows=RUNNING,
    ),
    Case(
        "task_session",
        CloseSession(),
        (
            row(TaskSession, status="closed", turn_message_id=None),
            row(TaskSessionMessage, id="m1", state="cancelled"),
            mail(SYNC, EndFollowing),
            mail(TASK, SessionChanged, status="closed"),
        ),
        rows=RUNNING,
    ),
)

FOLLOW = FollowTurn(sandbox_key=SANDBOX, server_id="s1", from_seq=1, message_id="m1")
SYNC_CASES = (
    Case(
        "session_status_sync",
        FOLLOW,
        (
            row(SessionStatusSync, actor_key=SYNC, message_id="m1", run_id=...),
            run(Follow, follow_journal, input={"from_seq": 1, "server_id": "s1"}),
        ),
    ),
    Case(
        "session_status_sync",
        EndFollowing(),
        (
            row(SessionStatusSync, message_id=None, run_id=None),
            gone(RtRun, entity_key=SYNC, kind=Follow.kind),
        ),
        before=(FOLLOW,),
    ),
)

CASES = (*SESSION_CASES, *SYNC_CASES)
