"""A turn collects what leaves it; a workflow names what is next: pure."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from foundry_ray.actors.repository.tables import RepositoryRef
from foundry_ray.core.errors import NotFound, Unavailable, WorkflowUnknown, WrongState
from foundry_ray.core.messages import ChildFailed, Failure, IssueReported, IssueResolved
from foundry_ray.core.retry import RetryPolicy
from foundry_ray.runtime.feed import Cursor
from foundry_ray.runtime.refs import raise_stored, request_hash
from foundry_ray.runtime.turn import Turn, problem
from foundry_ray.runtime.workflow import (
    Done,
    Go,
    Next,
    Nothing,
    Run,
    StepContext,
    Wait,
    Workflow,
    Workflows,
)
from foundry_ray.runtime.workflow import step as make_step
from foundry_ray.testing.clock import START

KEY = "org/1/repo/2"
NEWS = IssueResolved(entity=KEY, workflow="w")


@make_step("first", timeout=timedelta(seconds=1))
async def first(tools: None, input: Nothing, context: StepContext) -> Nothing:
    return input


@make_step("second", timeout=timedelta(seconds=2), retry=RetryPolicy(max_attempts=1))
async def second(tools: None, input: Failure, context: StepContext) -> Nothing:
    return Nothing()


class Two(Workflow[list[str]]):
    kind = "two"
    steps = (first, second)

    def begin(self, state: list[str], run: Run, turn: Turn) -> Next:
        return Go(first, Nothing())

    def next(self, state: list[str], run: Run, result: Any, turn: Turn) -> Next:
        state.append(run.step)
        return Wait() if run.step == "first" else Done()

    def on_error(self, state: list[str], run: Run, error: Any, turn: Turn) -> None:
        state.append(f"{run.step}: {error.code}")


def a_turn(state: list[str] | None = None, **told: Any) -> Turn:
    said: list[str] = [] if state is None else state
    return Turn(KEY, START, workflows=Workflows((Two,)), state=said, **told)


def a_row() -> RepositoryRef:
    return RepositoryRef(
        actor_key=KEY, revision=0, created_at=START, updated_at=START, name="n", sha="s"
    )


def test_a_step_is_undone_by_one_with_the_same_input() -> None:
    async def work(tools: None, input: Failure, context: StepContext) -> Nothing:
        return Nothing()

    decorate = make_step("third", timeout=timedelta(seconds=1), undo=first)

    with pytest.raises(TypeError, match="first cannot undo third"):
        decorate(work)
    assert make_step("third", timeout=timedelta(seconds=1), undo=second)(work).undo is second


def test_a_step_knows_its_types_and_patience() -> None:
    assert (first.name, first.input_type, first.result_type) == ("first", Nothing, Nothing)
    assert (second.input_type, second.retry.max_attempts) == (Failure, 1)
    assert Two().step_named("second") is second
    with pytest.raises(WorkflowUnknown):
        Two().step_named("third")


def test_a_workflow_without_an_error_hook_cannot_be_made() -> None:
    class Careless(Workflow[None]):
        kind = "careless"
        steps = ()

        def begin(self, state: None, run: Run, turn: Turn) -> Next:
            return Done()

        def next(self, state: None, run: Run, result: Any, turn: Turn) -> Next:
            return Done()

    with pytest.raises(TypeError, match="on_error"):
        Careless()  # type: ignore[abstract]


def test_mail_goes_only_to_keys_that_can_exist() -> None:
    turn = a_turn()

    turn.tell("org/1", NEWS)

    [mail] = turn.effects.mail
    assert (mail.target, mail.message, mail.sender, mail.due_at) == ("org/1", NEWS, KEY, START)
    with pytest.raises(NotFound):
        turn.tell("org/one", NEWS)


def test_a_reminder_is_mail_to_oneself_for_later() -> None:
    turn = a_turn()

    turn.remind("name", timedelta(seconds=5), NEWS)

    [mail] = turn.effects.mail
    assert (mail.target, mail.timer, mail.due_at) == (KEY, "name", START + timedelta(seconds=5))
    turn.forget("name")
    assert turn.effects.mail == []
    assert turn.effects.forget == ["name"]


def test_a_row_that_is_put_twice_is_written_once() -> None:
    turn, row = a_turn(), a_row()

    turn.put(row)
    turn.put(row)

    assert turn.effects.rows == [("put", row)]
    assert (row.revision, row.updated_at) == (1, START)


def test_replies_go_to_the_command_of_the_turn_or_to_a_deferred_one() -> None:
    turn = a_turn(command_id="now")

    turn.reply({"a": 1}, command_id="earlier")
    assert not turn.replied
    turn.reply(NEWS, status=201)
    assert turn.replied

    said = [(reply.command_id, reply.status, reply.body) for reply in turn.effects.replies]
    assert said == [("earlier", 200, {"a": 1}), ("now", 201, NEWS.model_dump(mode="json"))]


def test_a_message_that_nobody_waits_for_is_not_replied_to() -> None:
    turn = a_turn()

    turn.reply({"a": 1})
    turn.refuse(WrongState())

    assert turn.effects.replies == []


def test_a_deferred_command_keeps_its_id_for_later() -> None:
    turn = a_turn(command_id="c")

    assert turn.defer() == "c"
    assert turn.deferred


def test_a_refusal_comes_back_as_the_error_it_was() -> None:
    error = WrongState("Not now.", hint="Later.", words=["a"], odd=object())

    with pytest.raises(WrongState) as again:
        raise_stored(problem(error))

    assert (again.value.message, again.value.hint) == ("Not now.", "Later.")
    assert again.value.context == {"words": ["a"]}


def test_a_request_is_known_by_what_it_says_and_to_whom() -> None:
    assert request_hash(NEWS, "org/1") == request_hash(NEWS, "org/1")
    assert request_hash(NEWS, "org/1") != request_hash(NEWS, "org/2")


# -- runs -----------------------------------------------------------------------------


def test_a_run_goes_from_step_to_wait_to_end() -> None:
    state: list[str] = []
    turn = a_turn(state)
    run_id = turn.start("two", Nothing())
    run = turn.run(run_id)
    assert run is not None
    assert (run.step, run.step_input) == ("first", {})

    turn.advance(run, Nothing())
    turn.go(run_id, Go(second, _failure()))
    assert (run.step, run.attempt) == ("second", 0)
    turn.advance(run, Nothing())

    assert state == ["first", "second"]
    assert turn.run(run_id) is None
    kinds = [type(change.next) for change in turn.effects.runs]
    assert kinds == [Go, Wait, Go, Done]


def _failure() -> Failure:
    return Failure(
        fingerprint="f", code="c", message="m", entity=KEY, workflow="w", attempt=1, will_retry=True
    )


def test_a_failed_run_is_parked_reported_and_told_to_the_parent() -> None:
    state: list[str] = []
    turn = a_turn(state)
    run_id = turn.start("two", Nothing())

    turn.fail(run_id, Unavailable("Away."))

    run = turn.run(run_id)
    assert run is not None
    assert run.parked
    assert run.reported
    assert state == ["first: unavailable"]
    reported, failed = turn.effects.mail
    assert isinstance(reported.message, IssueReported)
    assert reported.message.failure.fingerprint == "two:first:unavailable"
    assert isinstance(failed.message, ChildFailed)
    turn.fail("unknown", Unavailable())


def test_a_parked_run_is_retried_at_its_step_with_its_input() -> None:
    turn = a_turn()
    run_id = turn.start("two", Nothing())
    turn.go(run_id, Go(second, _failure()))
    turn.fail(run_id, Unavailable())

    turn.retry(run_id)

    run = turn.run(run_id)
    assert run is not None
    assert not run.parked
    following = turn.effects.runs[-1].next
    assert following == Go(second, _failure())


def test_cancelling_a_run_that_was_reported_says_that_it_is_solved() -> None:
    turn = a_turn()
    quiet, loud = turn.start("two", Nothing()), turn.start("two", Nothing())
    turn.fail(loud, Unavailable())
    turn.effects.mail.clear()

    for run_id in (quiet, loud, "unknown", None):
        turn.cancel(run_id)

    assert turn.effects.cancelled == [quiet, loud]
    [mail] = turn.effects.mail
    assert mail.message == IssueResolved(entity=KEY, workflow="two")


# -- cursors ---------------------------------------------------------------------------


def test_a_cursor_survives_its_text() -> None:
    assert Cursor.parse(str(Cursor(7, 2**62))) == Cursor(7, 2**62)
    assert Cursor(1, 9) < Cursor(2, 1)


@pytest.mark.parametrize("text", ["", "1", "1.", ".1", "a.b", "1.2.3"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Cursor.parse(text)
