"""Sandbox instance: what is done in which order."""

from __future__ import annotations

from typing import Any

import pytest

from foundry_ray.actors.github_state.messages import MintCredential
from foundry_ray.actors.sandbox_instance import steps
from foundry_ray.actors.sandbox_instance.actor import SandboxInstanceActor
from foundry_ray.actors.sandbox_instance.messages import (
    AnswerAgent,
    CancelPrompt,
    CredentialReady,
    CredentialRefused,
    DeleteSandbox,
    DeliverPrompt,
    OpenAgentSession,
    ProvisionSandbox,
    PushBranch,
    RetrySandbox,
    StopSandbox,
    TakeChanges,
)
from foundry_ray.actors.sandbox_instance.tables import SandboxState
from foundry_ray.actors.task.messages import (
    ChangesTaken,
    PhaseChanged,
    Pushed,
    PushFailed,
    SandboxEnded,
)
from foundry_ray.actors.task_session.messages import (
    AgentSessionOpened,
    PromptDelivered,
    PromptFailed,
)
from foundry_ray.core import keys
from foundry_ray.core.errors import PushRejected, Unavailable
from foundry_ray.core.facts import Changes, Trouble
from foundry_ray.core.messages import IssueReported
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Nothing
from tests.unit.actors.kit import ANN, Scene, all_of, begun, only, told

KEY = keys.sandbox(1, "local", "b1")
TASK = keys.task(keys.repository(1, 2), "t1")
SESSION = keys.session(TASK, "s1")
PROVISION = ProvisionSandbox(
    task_key=TASK,
    clone_url="https://github.com/acme/app.git",
    branch="mine",
    base_branch="main",
    on_branch=None,
    owner=ANN,
)
CREATED = steps.Created(
    provider_id="p1", state="started", home="/h", work_dir="/h/w", sealed_token="sealed"
)
OPEN = OpenAgentSession(session_key=SESSION, agent="scripted")
AGENT = steps.AgentOpened(agent_session_id="a1")
REFUSED = Trouble(code="permission_denied", message="You may not.")


def fresh() -> Scene:
    return Scene(SandboxInstanceActor, KEY, SandboxState(KEY, None, {}))


def with_health() -> Scene:
    """Return a sandbox that waits for its first credential."""
    scene = fresh()
    scene.when(PROVISION)
    for result in (CREATED, Nothing(), steps.Preview(url="u"), Nothing()):
        scene.finish(result)
    return scene


def ready() -> Scene:
    scene = with_health()
    scene.when(CredentialReady(purpose="clone", secret_id="c1"))
    for result in (
        steps.Started(process_id="1"),
        steps.Watched(finished=True, tail=""),
        Nothing(),
    ):
        scene.finish(result)
    return scene


def with_agent() -> Scene:
    scene = ready()
    scene.when(OPEN)
    scene.finish(AGENT)
    return scene


def phases(turn: Turn) -> list[tuple[str, str]]:
    return [(m.phase, m.state) for m in all_of(turn, PhaseChanged)]


# -- provisioning -----------------------------------------------------------------------


def test_provisioning_goes_down_its_phases_one_step_each() -> None:
    scene = fresh()
    way: list[tuple[list[str], list[tuple[str, str]]]] = []

    def note(turn: Turn) -> None:
        way.append((begun(turn), phases(turn)))

    note(scene.when(PROVISION))
    for result in (CREATED, Nothing(), steps.Preview(url="u"), Nothing()):
        note(scene.finish(result))
    asked = only(scene.turn, MintCredential)
    note(scene.when(CredentialReady(purpose="clone", secret_id="c1")))
    note(scene.finish(steps.Started(process_id="1")))
    note(scene.finish(steps.Watched(finished=False, tail="10 %")))
    note(scene.finish(steps.Watched(finished=True, tail="")))
    note(scene.finish(Nothing()))

    assert way == [
        (["create-sandbox"], [("creating_sandbox", "running")]),
        (["start-agent-server"], [("starting_agent_server", "running")]),
        (["find-preview"], [("waiting_preview", "running")]),
        (["check-health"], [("waiting_health", "running")]),
        ([], [("cloning", "running")]),
        (["start-clone"], [("cloning", "running")]),
        (["watch-clone"], []),
        (["watch-clone"], [("cloning", "running")]),
        (["check-out"], [("checking_out", "running")]),
        ([], [("checking_out", "done")]),
    ]
    assert (asked.access, asked.reply_to, asked.person) == ("read", KEY, ANN)
    assert scene.state.row.state == "ready"
    assert scene.runs == {}
    assert scene.when(PROVISION).effects.rows == [], "a second request changes nothing"


def test_a_token_leaves_a_step_sealed_and_lies_in_a_row_of_its_own() -> None:
    scene = fresh()
    scene.when(PROVISION)

    turn = scene.finish(CREATED)

    secrets = [row for _, row in turn.effects.rows if hasattr(row, "sealed")]
    assert [(row.id, row.sealed) for row in secrets] == [(f"{KEY}#token", "sealed")]


def test_an_agent_session_is_opened_as_soon_as_the_work_tree_is_there() -> None:
    scene = fresh()
    scene.when(PROVISION)
    assert begun(scene.when(OPEN)) == []
    del scene
    scene = with_health()
    scene.when(OPEN, CredentialReady(purpose="clone", secret_id="c1"))
    scene.finish(steps.Started(process_id="1"))
    scene.finish(steps.Watched(finished=True, tail=""))

    assert begun(scene.finish(Nothing())) == ["open-agent-session"]
    turn = scene.finish(AGENT)

    opened = only(turn, AgentSessionOpened)
    assert (opened.server_id, opened.agent_session_id) == ("s1", "a1")
    assert ("ready", "done") in phases(turn)
    assert begun(scene.when(OPEN)) == [], "asked for twice, opened once"


def test_a_refused_credential_fails_the_phase_and_a_retry_asks_again() -> None:
    scene = with_health()

    turn = scene.when(CredentialRefused(purpose="clone", error=REFUSED))
    assert phases(turn) == [("cloning", "failed")]
    assert only(turn, IssueReported).failure.code == "permission_denied"
    assert scene.state.row.state == "error"
    turn = scene.when(RetrySandbox())

    assert begun(turn) == ["check-health"]
    only(scene.finish(Nothing()), MintCredential)


def park(scene: Scene, error: Any) -> Turn:
    """Let the one step under way fail for good, as the kernel does."""
    [run] = scene.runs.values()
    scene.turn = scene._turn(None)
    scene.turn.fail(run.id, error)
    return scene.turn


def test_a_retry_after_a_failed_clone_asks_for_a_new_credential() -> None:
    scene = with_health()
    scene.when(CredentialReady(purpose="clone", secret_id="c1"))
    park(scene, Unavailable("Away."))

    turn = scene.when(RetrySandbox(branch="other"))

    assert begun(turn) == []
    only(turn, MintCredential)
    turn = scene.when(CredentialReady(purpose="clone", secret_id="c2"))
    assert begun(turn) == ["start-clone"]
    assert scene.state.row.branch == "other"


def test_a_credential_for_what_is_over_starts_nothing() -> None:
    scene = ready()

    for message in (
        CredentialReady(purpose="clone", secret_id="c"),
        CredentialReady(purpose="push/unknown", secret_id="c"),
        CredentialRefused(purpose="clone", error=REFUSED),
        CredentialRefused(purpose="push/unknown", error=REFUSED),
    ):
        turn = scene.when(message)
        assert (begun(turn), told(turn)) == ([], [])


def test_a_clone_that_was_lost_begins_again_with_a_new_credential() -> None:
    scene = with_health()
    scene.when(CredentialReady(purpose="clone", secret_id="c1"))
    scene.finish(steps.Started(process_id="1"))

    turn = scene.finish(steps.Watched(finished=False, tail="", lost=True))

    assert only(turn, MintCredential).purpose == "clone"
    again = scene.when(CredentialReady(purpose="clone", secret_id="c2"))
    assert begun(again) == ["start-clone"]


# -- agents ------------------------------------------------------------------------------


DELIVER = DeliverPrompt(session_key=SESSION, message_id="m1", text="hello")


def test_a_delivered_prompt_is_told_to_its_session() -> None:
    scene = with_agent()
    assert begun(scene.when(DELIVER)) == ["send-prompt"]

    turn = scene.finish(steps.Delivered(delivered=True))

    assert told(turn) == [(SESSION, PromptDelivered(message_id="m1"))]
    assert scene.runs == {}


def test_an_agent_that_is_gone_is_brought_back_before_the_prompt_is_sent_again() -> None:
    scene = with_agent()
    scene.when(DELIVER)

    way = []
    for result in (steps.Delivered(delivered=False), Nothing(), Nothing(), AGENT):
        way += begun(scene.finish(result))

    assert way == ["start-agent-server", "check-health", "open-agent-session", "send-prompt"]
    [run] = scene.runs.values()
    assert run.step_input["message_id"] == "m1"


def test_a_prompt_that_cannot_be_delivered_is_told_and_its_run_ends() -> None:
    scene = with_agent()
    scene.when(DELIVER)

    turn = park(scene, Unavailable("Away."))

    assert only(turn, PromptFailed).error.code == "unavailable"
    assert scene.runs == {}


def test_cancels_and_answers_are_steps() -> None:
    scene = with_agent()

    assert begun(scene.when(CancelPrompt(session_key=SESSION))) == ["cancel-prompt"]
    answer = AnswerAgent(session_key=SESSION, rpc_id=0, option_id="yes")
    assert begun(scene.when(answer)) == ["answer-agent"]
    assert begun(fresh().when(CancelPrompt(session_key=SESSION))) == []


# -- changes and push ---------------------------------------------------------------------


def test_askers_for_changes_share_one_more_comparison() -> None:
    scene = ready()
    assert begun(scene.when(TakeChanges())) == ["read-changes"]
    assert begun(scene.when(TakeChanges())) == []
    assert begun(scene.when(TakeChanges())) == []
    read = steps.ChangesRead(changes=Changes(base="b", head="h", files=[]), patches={})

    turn = scene.finish(read)
    only(turn, ChangesTaken)
    assert begun(turn) == ["read-changes"]
    turn = scene.finish(read)

    only(turn, ChangesTaken)
    assert (begun(turn), scene.runs) == ([], {})
    assert begun(fresh_without_tree().when(TakeChanges())) == []


def fresh_without_tree() -> Scene:
    return with_health()


def test_a_push_asks_for_a_credential_that_may_write() -> None:
    scene = ready()

    turn = scene.when(PushBranch(by=ANN))
    asked = only(turn, MintCredential)
    assert (asked.access, asked.person) == ("write", ANN)
    assert told(scene.when(PushBranch(by=ANN))) == [], "a second asker shares it"
    turn = scene.when(CredentialReady(purpose=asked.purpose, secret_id="c"))
    assert begun(turn) == ["push-branch"]
    turn = scene.finish(steps.BranchPushed(sha="abc"))

    assert only(turn, Pushed) == Pushed(sha="abc", by=ANN)
    assert (KEY, TakeChanges()) in told(turn)
    assert scene.runs == {}


@pytest.mark.parametrize("how", ["refused", "rejected"])
def test_a_push_that_fails_is_told_and_can_be_asked_for_again(how: str) -> None:
    scene = ready()
    asked = only(scene.when(PushBranch(by=ANN)), MintCredential)

    if how == "refused":
        turn = scene.when(CredentialRefused(purpose=asked.purpose, error=REFUSED))
    else:
        scene.when(CredentialReady(purpose=asked.purpose, secret_id="c"))
        turn = park(scene, PushRejected())

    code = {"refused": "permission_denied", "rejected": "push_rejected"}[how]
    assert only(turn, PushFailed).error.code == code
    only(scene.when(PushBranch(by=ANN)), MintCredential)


# -- end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "step", "state"),
    [(StopSandbox(), "stop-sandbox", "stopped"), (DeleteSandbox(), "delete-sandbox", "deleted")],
)
def test_an_end_cancels_what_runs_and_is_told(message: Any, step: str, state: str) -> None:
    scene = with_agent()
    scene.when(TakeChanges(), PushBranch(by=ANN))
    assert len(scene.runs) == 2

    turn = scene.when(message)

    assert len(turn.effects.cancelled) == 2
    assert begun(turn) == [step]
    turn = scene.finish(Nothing())
    assert told(turn) == [(TASK, SandboxEnded.model_validate({"state": state}))]
    assert scene.state.row.state == state


@pytest.mark.parametrize("message", [StopSandbox(), DeleteSandbox()])
def test_what_is_half_made_is_destroyed_and_its_task_hears_of_it(message: Any) -> None:
    scene = with_health()  # it waits for a credential, which comes too late
    (scene.state.row.run_id,) = scene.runs

    turn = scene.when(message)
    assert begun(turn) == ["delete-sandbox"]
    for late in (
        CredentialReady(purpose="clone", secret_id="c1"),
        CredentialRefused(purpose="clone", error=REFUSED),
        message,
    ):
        turn = scene.when(late)
        assert (begun(turn), told(turn)) == ([], [])
    turn = scene.finish(Nothing())

    assert told(turn) == [(TASK, SandboxEnded(state="deleted"))]
    assert (scene.state.row.state, scene.state.row.run_id, scene.runs) == ("deleted", None, {})


def test_what_could_not_be_destroyed_is_tried_again_when_asked() -> None:
    scene = with_health()
    scene.when(DeleteSandbox())
    [run] = scene.runs.values()
    run.parked = True  # as the kernel leaves it

    assert begun(scene.when(DeleteSandbox())) == ["delete-sandbox"]


def test_an_end_before_the_beginning_is_tried_again_and_not_forgotten() -> None:
    """Forgetting it would leave a sandbox that nobody wants."""
    for message in (StopSandbox(), DeleteSandbox()):
        with fresh().refuses(Unavailable, message):
            pass
