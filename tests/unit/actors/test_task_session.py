"""Task session: the queue, the transcript, permissions, stops."""

from __future__ import annotations

from typing import Any

import pytest

from foundry_ray.actors.sandbox_instance.messages import (
    AnswerAgent,
    CancelPrompt,
    DeliverPrompt,
    OpenAgentSession,
    TakeChanges,
)
from foundry_ray.actors.session_status_sync.messages import EndFollowing, FollowTurn
from foundry_ray.actors.task.messages import SessionChanged
from foundry_ray.actors.task_session.actor import TaskSessionActor
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
from foundry_ray.actors.task_session.rules import PROMPT_LIMIT
from foundry_ray.actors.task_session.tables import SessionState
from foundry_ray.core import keys
from foundry_ray.core.errors import (
    InvalidInput,
    NotFound,
    PromptEmpty,
    TooLarge,
    Unavailable,
    WrongState,
)
from foundry_ray.core.facts import Trouble
from foundry_ray.core.messages import Message
from tests.unit.actors.kit import ANN, BOB, Scene, all_of, only, reply, shown, told

KEY = keys.session(keys.task(keys.repository(1, 2), "t1"), "s1")
SANDBOX = keys.sandbox(1, "local", "b1")
OPENED = AgentSessionOpened(server_id="s1", agent_session_id="a1")
BROKEN = Trouble(code="agent_exited", message="It ended.")


def start(prompt: str | None = "first") -> StartSession:
    return StartSession(
        title="t", agent="scripted", model=None, sandbox_key=SANDBOX, prompt=prompt, by=ANN
    )


def a_session(*messages: Message, prompt: str | None = "first") -> Scene:
    scene = Scene(TaskSessionActor, KEY, SessionState(KEY, None))
    scene.when(start(prompt), *messages)
    return scene


def say(text: str) -> SendMessage:
    return SendMessage(text=text, by=BOB)


def running(*messages: Message) -> Scene:
    """Return a session whose first turn runs."""
    scene = a_session(OPENED)
    scene.when(PromptDelivered(message_id=scene.state.row.turn_message_id), *messages)
    return scene


def record(seq: int, direction: str = "out", **told: Any) -> Record:
    plain = {"seq": seq, "at_ms": 1000 * seq, "direction": direction, "payload": {"n": seq}}
    return Record.model_validate({**plain, **told})


def append(*records: Record) -> AppendRecords:
    return AppendRecords(records=list(records))


def end_of(scene: Scene, seq: int, **payload: Any) -> Record:
    return record(
        seq,
        "end",
        message_id=scene.state.row.turn_message_id,
        payload=payload or {"stopReason": "end_turn"},
    )


def written(scene: Scene) -> list[int]:
    """Return the transcript indexes that the last turn appends."""
    return [row.index for kind, row in scene.turn.effects.rows if kind == "insert"]


# -- the queue -------------------------------------------------------------------------


def test_the_first_prompt_waits_for_the_agent() -> None:
    scene = a_session()
    assert only(scene.turn, OpenAgentSession).session_key == KEY
    assert all_of(scene.turn, DeliverPrompt) == []
    assert [m["text"] for m in only(scene.turn, SessionChanged).summary["queued"]] == ["first"]

    turn = scene.when(OPENED)

    delivery = only(turn, DeliverPrompt)
    assert delivery.text == "first"
    assert only(turn, FollowTurn).message_id == delivery.message_id
    assert scene.state.row.status == "running"
    scene.when(start("again"))
    assert scene.turn.effects.rows == [], "a second start changes nothing"


def test_a_message_is_sent_at_once_when_nothing_runs() -> None:
    scene = a_session(OPENED, prompt=None)
    assert scene.state.row.status == "idle"

    turn = scene.when(say("hello"))

    assert only(turn, DeliverPrompt).text == "hello"
    assert reply(turn)["state"] == "sent"
    assert turn.effects.replies[0].status == 202


def test_messages_wait_in_order_while_a_turn_runs() -> None:
    scene = running()
    for text in ("second", "third"):
        assert reply(scene.when(say(text)))["state"] == "queued"
        assert all_of(scene.turn, DeliverPrompt) == []

    turn = scene.when(append(end_of(scene, 1)))
    assert only(turn, DeliverPrompt).text == "second"
    only(turn, TakeChanges)
    turn = scene.when(append(end_of(scene, 2)))
    assert only(turn, DeliverPrompt).text == "third"
    turn = scene.when(append(end_of(scene, 3)))

    assert all_of(turn, DeliverPrompt) == []
    assert scene.state.row.status == "idle"
    assert scene.state.messages == {}


@pytest.mark.parametrize(
    ("text", "error"),
    [("", PromptEmpty), (" \n ", PromptEmpty), ("é" * (PROMPT_LIMIT // 2 + 1), TooLarge)],
)
def test_a_message_that_says_nothing_or_too_much_is_refused(
    text: str, error: type[PromptEmpty | TooLarge]
) -> None:
    with running().refuses(error, say(text)):
        pass


def test_a_prompt_that_cannot_be_delivered_ends_its_turn_and_the_next_goes_on() -> None:
    scene = a_session(OPENED)
    message_id = scene.state.row.turn_message_id

    turn = scene.when(PromptFailed(message_id=message_id, error=BROKEN))

    assert (scene.state.row.status, scene.state.row.error["code"]) == ("error", "agent_exited")
    only(turn, EndFollowing)
    turn = scene.when(PromptFailed(message_id=message_id, error=BROKEN))
    assert turn.effects.rows == [], "old news"
    assert only(scene.when(say("next")), DeliverPrompt).text == "next"
    assert (scene.state.row.status, scene.state.row.error) == ("running", None)


def test_a_lost_turn_is_delivered_again_with_the_same_id() -> None:
    scene = running()
    message_id = scene.state.row.turn_message_id

    turn = scene.when(TurnLost(message_id=message_id))

    assert only(turn, DeliverPrompt).message_id == message_id
    turn = scene.when(PromptDelivered(message_id=message_id))
    assert only(turn, FollowTurn).message_id == message_id, "its reader is gone"
    assert told(scene.when(TurnLost(message_id="another"))) == []


def test_an_agent_that_cannot_be_opened_is_shown_and_the_queue_stays() -> None:
    scene = a_session(AgentSessionFailed(error=BROKEN))

    assert scene.state.row.status == "error"
    assert [m.text for m in scene.state.queued] == ["first"]
    assert only(scene.when(OPENED), DeliverPrompt).text == "first"


# -- the transcript ------------------------------------------------------------------


def test_records_are_appended_in_their_order_and_shown() -> None:
    scene = running()

    turn = scene.when(append(record(1, "in"), record(2), record(3)), command_id=None)

    assert written(scene) == [1, 2, 3]
    [item] = shown(turn, "append")
    assert item.data is not None
    assert [event["payload"]["n"] for event in item.data["events"]] == [1, 2, 3]
    assert [event["sender"] for event in item.data["events"]] == ["client", "agent", "agent"]
    assert scene.state.row.cursor == 3


def answer(scene: Scene, message: AppendRecords) -> Any:
    return reply(scene.when(message))


def test_records_that_are_there_already_are_passed_over() -> None:
    scene = running(append(record(1), record(2)))

    assert answer(scene, append(record(1), record(2), record(3))) == {"next": 4, "ended": False}
    assert written(scene) == [3]
    assert answer(scene, append(record(2))) == {"next": 4, "ended": False}
    assert written(scene) == []


def test_a_gap_is_answered_with_where_to_go_on() -> None:
    scene = running(append(record(1)))

    assert answer(scene, append(record(3), record(4))) == {"next": 2, "ended": False}
    assert written(scene) == []
    assert answer(scene, append(record(2), record(4))) == {"next": 3, "ended": False}
    assert written(scene) == [2]


def test_a_note_moves_the_cursor_and_not_the_transcript() -> None:
    scene = running()

    scene.when(append(record(1, "note"), record(2)))

    assert written(scene) == [1]
    assert (scene.state.row.cursor, scene.state.row.last_index) == (2, 1)


def test_a_prompt_in_the_transcript_names_its_author() -> None:
    scene = running()
    message_id = scene.state.row.turn_message_id

    turn = scene.when(append(record(1, "in", message_id=message_id), record(2)))

    [item] = shown(turn, "append")
    assert item.data is not None
    assert [event["author"] for event in item.data["events"]] == [{"id": "7", "login": "ann"}, None]


def test_the_end_of_a_turn_is_answered_to_its_reader() -> None:
    scene = running()

    assert answer(scene, append(record(1), end_of(scene, 2))) == {"next": 3, "ended": True}
    assert scene.state.row.thinking_since is None


def test_a_turn_that_ended_with_an_error_shows_it_and_the_queue_goes_on() -> None:
    scene = running()
    scene.when(append(end_of(scene, 1, error={"code": "agent_exited", "message": "Gone."})))
    assert (scene.state.row.status, scene.state.row.error["message"]) == ("error", "Gone.")

    scene = running(say("next"))
    turn = scene.when(append(end_of(scene, 1, error={"message": ""})))
    assert only(turn, DeliverPrompt).text == "next"
    assert scene.state.row.status == "running"


# -- permissions -----------------------------------------------------------------------


def ask(seq: int = 1, rpc_id: Any = 0) -> Record:
    options = [{"optionId": "yes"}, {"optionId": "no"}]
    return record(
        seq,
        payload={
            "id": rpc_id,
            "method": "session/request_permission",
            "params": {"options": options, "toolCall": {"title": "rm"}},
        },
    )


def test_a_permission_request_needs_somebody_and_the_first_answer_counts() -> None:
    scene = running(append(ask(rpc_id="abc")))
    assert scene.state.row.status == "needs_you"
    assert only(scene.turn, SessionChanged).status == "needs_you"
    allow = AnswerPermission(permission_id="1", option_id="yes", by=BOB)
    with scene.refuses(InvalidInput, allow.model_copy(update={"option_id": "maybe"})):
        pass

    turn = scene.when(allow)

    sent = only(turn, AnswerAgent)
    assert (sent.rpc_id, sent.option_id) == ("abc", "yes")
    assert reply(turn)["state"] == "answered"
    assert reply(turn)["answered_by"] == {"id": "8", "login": "bob"}
    assert scene.state.row.status == "running"
    with scene.refuses(NotFound, allow):
        pass


def test_the_session_needs_somebody_until_every_request_is_answered() -> None:
    scene = running(append(ask(1, 0), ask(2, 1)))

    scene.when(AnswerPermission(permission_id="1", option_id="no", by=ANN))
    assert scene.state.row.status == "needs_you"
    scene.when(AnswerPermission(permission_id="2", option_id="no", by=ANN))
    assert scene.state.row.status == "running"


def test_requests_that_are_open_at_the_end_of_a_turn_are_closed() -> None:
    scene = running(append(ask()))

    turn = scene.when(append(end_of(scene, 2)))

    [item] = shown(turn, "permission")
    assert item.data is not None
    assert item.data["state"] == "closed"
    assert scene.state.permissions == {}
    assert all_of(turn, AnswerAgent) == []


# -- stops ----------------------------------------------------------------------------


def test_a_stop_is_answered_when_the_turn_has_ended() -> None:
    scene = running()

    turn = scene.when(StopTurn(by=ANN), command_id="stop-1")
    only(turn, CancelPrompt)
    assert turn.effects.replies == []
    scene.when(StopTurn(by=BOB), command_id="stop-2")
    turn = scene.when(append(end_of(scene, 1, stopReason="cancelled")), command_id="append")

    assert reply(turn, "stop-1")["status"] == reply(turn, "stop-2")["status"] == "idle"
    assert scene.state.row.stop_commands == []
    assert not scene.state.row.stop_wanted


def test_a_stop_when_nothing_runs_is_answered_at_once() -> None:
    turn = a_session(OPENED, prompt=None).when(StopTurn(by=ANN))

    assert reply(turn)["status"] == "idle"
    assert told(turn) == []


def test_a_stop_that_came_before_the_delivery_is_said_again_after_it() -> None:
    scene = a_session(OPENED)
    scene.when(StopTurn(by=ANN))

    turn = scene.when(PromptDelivered(message_id=scene.state.row.turn_message_id))

    only(turn, CancelPrompt)


def test_a_stop_answers_open_permission_requests_and_those_to_come() -> None:
    scene = running(append(ask(1, 0)))

    turn = scene.when(StopTurn(by=ANN))
    assert only(turn, AnswerAgent).option_id is None
    turn = scene.when(append(ask(2, 1)))

    assert only(turn, AnswerAgent).rpc_id == 1
    assert scene.state.row.status != "needs_you"


def test_a_closed_session_answers_who_waits_and_takes_nothing_more() -> None:
    scene = running(say("queued"), append(ask()))
    scene.when(StopTurn(by=ANN), command_id="stop")

    turn = scene.when(CloseSession(), command_id=None)

    assert reply(turn, "stop") is not None
    only(turn, EndFollowing)
    assert scene.state.row.status == "closed"
    assert scene.state.messages == {}
    with scene.refuses(WrongState, say("more")):
        pass
    assert scene.when(CloseSession()).effects.rows == []


@pytest.mark.parametrize(
    "late",
    [
        OPENED,
        AgentSessionFailed(error=BROKEN),
        append(ask(1)),
        append(record(1)),
        TurnLost(message_id="m"),
        PromptDelivered(message_id="m"),
        PromptFailed(message_id="m", error=BROKEN),
    ],
    ids=lambda message: message.kind,
)
def test_no_late_news_open_a_closed_session_again(late: Message) -> None:
    scene = running(CloseSession())

    scene.when(late)

    assert scene.state.row.status == "closed"


def test_what_overtakes_the_start_is_tried_again() -> None:
    scene = Scene(TaskSessionActor, KEY, SessionState(KEY, None))

    for message in (say("x"), StopTurn(by=ANN), OPENED, append(record(1))):
        with scene.refuses(Unavailable, message):
            pass
