"""Task: from start to end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from foundry_ray.actors.github_state.messages import PublishPullRequest
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.actors.repository.messages import ReleaseBranch, ReserveBranch, TaskChanged
from foundry_ray.actors.sandbox_instance.messages import (
    DeleteSandbox,
    PushBranch,
    RetrySandbox,
    StopSandbox,
)
from foundry_ray.actors.task.actor import TaskActor
from foundry_ray.actors.task.messages import (
    Archive,
    BranchReserved,
    ChangesTaken,
    Kill,
    PhaseChanged,
    Publish,
    PublishFailed,
    Push,
    Pushed,
    PushFailed,
    RetryTask,
    SandboxEnded,
    SessionChanged,
    StartTask,
    TaskPullRequestChanged,
)
from foundry_ray.actors.task.tables import TaskState
from foundry_ray.actors.task_session.messages import CloseSession
from foundry_ray.core import keys
from foundry_ray.core.errors import Unavailable, WrongState
from foundry_ray.core.facts import Changes, FileChange, Trouble
from foundry_ray.core.messages import Message
from tests.unit.actors.kit import ANN, NOW, Scene, all_of, only, reply, shown
from tests.unit.actors.test_repository import pull_request

REPOSITORY = keys.repository(1, 2)
KEY = keys.task(REPOSITORY, "t1")
SANDBOX = keys.sandbox(1, "local", "b1")
START = StartTask(
    prompt="Fix it\nplease",
    title="Fix it",
    branch="mine",
    base_branch="main",
    on_branch=None,
    agent="scripted",
    model=None,
    sandbox_key=SANDBOX,
    session_id="s1",
    owner=ANN,
)
READY = PhaseChanged(phase="ready", state="done")
BROKEN = Trouble(code="clone_failed", message="No.")
FAILED = PhaseChanged(phase="cloning", state="failed", error=BROKEN)


def a_task(*messages: Message) -> Scene:
    scene = Scene(TaskActor, KEY, TaskState(KEY, None, [], None, set()))
    scene.when(START, *messages)
    return scene


def test_a_task_begins_queued_and_shows_itself_everywhere() -> None:
    scene = a_task()

    turn = scene.turn
    assert scene.state.row.status == "provisioning"
    topics = {item.topic for item in shown(turn, "task")}
    assert topics == {"organization:1", "repository:1/2", "task:1/t1"}
    assert only(turn, TaskChanged).status == "provisioning"
    scene.when(START)
    assert scene.turn.effects.rows == [], "a second start changes nothing"


@pytest.mark.parametrize(
    "message",
    [Push(by=ANN), Publish(by=ANN), Archive(by=ANN), Kill(by=ANN), RetryTask(by=ANN)],
)
def test_a_command_that_overtakes_the_start_is_tried_again(message: Message) -> None:
    scene = Scene(TaskActor, KEY, TaskState(KEY, None, [], None, set()))

    with scene.refuses(Unavailable, message):
        pass


def test_readiness_is_reached_once_and_recorded() -> None:
    scene = a_task()

    turn = scene.when(READY)
    assert scene.state.row.status == "ready"
    assert only(turn, RecordEvent).what == "task_ready"
    assert all_of(scene.when(READY), RecordEvent) == []
    scene.when(PhaseChanged(phase="starting_session", state="running"))
    assert scene.state.row.status == "ready", "a later session does not make it unready"


def test_a_failed_phase_is_an_error_that_can_be_retried() -> None:
    scene = a_task(FAILED)
    assert scene.state.row.status == "error"
    assert only(scene.turn, RecordEvent).what == "provisioning_failed"

    turn = scene.when(RetryTask(by=ANN))

    assert only(turn, RetrySandbox).branch is None
    assert scene.state.row.status == "provisioning"
    assert reply(turn)["provisioning"]["error"] is None


def test_a_retry_with_another_branch_reserves_it_first() -> None:
    scene = a_task(FAILED)

    turn = scene.when(RetryTask(by=ANN, branch="other"))
    assert only(turn, ReserveBranch).branch == "other"
    assert all_of(turn, RetrySandbox) == []
    turn = scene.when(BranchReserved(branch="other"))
    assert only(turn, RetrySandbox).branch == "other"
    assert scene.state.row.branch == "other"


def test_a_branch_that_cannot_be_had_shows_why() -> None:
    scene = a_task(FAILED)
    scene.when(RetryTask(by=ANN, branch="other"))

    turn = scene.when(BranchReserved(branch="other", error=BROKEN))

    assert all_of(turn, RetrySandbox) == []
    assert (scene.state.row.status, scene.state.row.branch) == ("error", "mine")


def test_only_what_has_failed_can_be_retried() -> None:
    for messages in ((), (READY,), (FAILED, Kill(by=ANN))):
        with a_task(*messages).refuses(WrongState, RetryTask(by=ANN)):
            pass


# -- push and pull request -----------------------------------------------------------


@pytest.mark.parametrize("message", [Push(by=ANN), Publish(by=ANN)])
@pytest.mark.parametrize("before", [(), (FAILED,), (READY, Archive(by=ANN)), (READY, Kill(by=ANN))])
def test_only_a_ready_task_pushes_and_publishes(
    message: Message, before: tuple[Message, ...]
) -> None:
    with a_task(*before).refuses(WrongState, message):
        pass


def test_a_push_runs_and_ends_at_a_commit() -> None:
    scene = a_task(READY)

    turn = scene.when(Push(by=ANN))
    assert only(turn, PushBranch).by == ANN
    assert reply(turn)["operations"]["push"]["state"] == "running"
    scene.when(Pushed(sha="abc", by=ANN))

    push = scene.state.row.operations["push"]
    assert (push["state"], push["sha"], scene.state.row.has_unpushed) == ("done", "abc", False)
    assert only(scene.turn, RecordEvent).what == "branch_pushed"
    assert all_of(scene.turn, PublishPullRequest) == []


def test_a_pull_request_is_published_after_the_push() -> None:
    scene = a_task(READY)

    turn = scene.when(Publish(by=ANN, title="My title"))
    assert only(turn, PushBranch).by == ANN
    turn = scene.when(Pushed(sha="abc", by=ANN))

    wanted = only(turn, PublishPullRequest)
    assert (wanted.head, wanted.base, wanted.title) == ("mine", "main", "My title")
    assert (wanted.default_title, wanted.person) == ("Fix it", ANN)
    assert "> Fix it\n> please" in wanted.default_body
    assert scene.state.row.publish_wanted is None
    scene.when(TaskPullRequestChanged(pull_request=pull_request()))
    assert scene.state.row.operations["pull_request"]["state"] == "done"


def test_a_push_that_fails_takes_the_pull_request_with_it() -> None:
    scene = a_task(READY)
    scene.when(Publish(by=ANN), PushFailed(error=BROKEN))

    states = {name: said["state"] for name, said in scene.state.row.operations.items()}
    assert states == {"push": "failed", "pull_request": "failed"}
    assert all_of(scene.when(Pushed(sha="later", by=ANN)), PublishPullRequest) == []


def test_a_pull_request_that_fails_shows_why() -> None:
    scene = a_task(READY)
    scene.when(Publish(by=ANN), Pushed(sha="a", by=ANN), PublishFailed(error=BROKEN))

    assert scene.state.row.operations["pull_request"]["error"]["code"] == "clone_failed"


def test_older_news_of_a_pull_request_change_nothing() -> None:
    scene = a_task(READY)
    news: dict[str, Any] = {"state": "merged", "updated_at": NOW + timedelta(seconds=5)}
    scene.when(TaskPullRequestChanged(pull_request=pull_request(**news)))

    turn = scene.when(TaskPullRequestChanged(pull_request=pull_request(state="open")))

    assert scene.state.row.pull_request["state"] == "merged"
    assert turn.effects.rows == []
    scene.when(TaskPullRequestChanged(pull_request=pull_request(number=6)))
    assert scene.state.row.pull_request["number"] == 6


def test_changes_replace_the_snapshot_and_its_patches() -> None:
    def snapshot(*paths: str) -> ChangesTaken:
        files = [
            FileChange(path=p, status="modified", added=2, removed=1, binary=False) for p in paths
        ]
        changes = Changes(base="b", head="h", files=files, unpushed=True)
        return ChangesTaken(changes=changes, patches=dict.fromkeys(paths, "patch"))

    scene = a_task(READY, snapshot("a", "b"))
    turn = scene.when(snapshot("b", "c"))

    written = [(kind, row.path) for kind, row in turn.effects.rows if hasattr(row, "patch")]
    assert sorted(written[:2]) == [("delete", "a"), ("delete", "b")]
    assert written[2:] == [("insert", "b"), ("insert", "c")]
    assert scene.state.row.diff == {"added": 4, "removed": 2, "files": 2}
    assert scene.state.row.has_unpushed
    [item] = shown(turn, "changes")
    assert item.data is not None
    assert [f["path"] for f in item.data["files"]] == ["b", "c"]


# -- end -----------------------------------------------------------------------------


def sessions(*ids: str) -> list[Message]:
    return [
        SessionChanged(session_id=i, status="running", summary={"id": i, "status": "running"})
        for i in ids
    ]


def test_an_archived_task_closes_its_sessions_and_stops_its_sandbox() -> None:
    scene = a_task(READY, *sessions("s1", "s2"))
    assert scene.state.row.status == "running"

    turn = scene.when(Archive(by=ANN))

    assert reply(turn)["status"] == "archiving"
    assert len(all_of(turn, CloseSession)) == 2
    only(turn, StopSandbox)
    scene.when(SandboxEnded(state="stopped"))
    assert scene.state.row.status == "archived"
    assert all_of(scene.turn, ReleaseBranch) == [], "everything is kept"
    assert all_of(scene.when(Archive(by=ANN)), StopSandbox) == []


def test_a_killed_task_deletes_its_sandbox_and_gives_its_branch_back() -> None:
    scene = a_task()

    turn = scene.when(Kill(by=ANN))
    assert len(all_of(turn, CloseSession)) == 1, "a session that has said nothing yet, too"
    only(turn, DeleteSandbox)
    assert all_of(turn, ReleaseBranch) == []
    turn = scene.when(SandboxEnded(state="deleted"))

    assert scene.state.row.status == "killed"
    assert only(turn, ReleaseBranch).task_id == "t1"
    assert all_of(scene.when(Kill(by=ANN)), DeleteSandbox) == []


def test_a_kill_that_overtakes_an_archiving_ends_only_with_the_deletion() -> None:
    scene = a_task(READY, Archive(by=ANN), Kill(by=ANN))

    scene.when(SandboxEnded(state="stopped"))
    assert scene.state.row.status == "killing"
    scene.when(SandboxEnded(state="deleted"))
    assert scene.state.row.status == "killed"


def test_an_archived_task_can_be_killed_and_a_killed_one_not_archived() -> None:
    scene = a_task(READY, Archive(by=ANN), SandboxEnded(state="stopped"))

    only(scene.when(Kill(by=ANN)), DeleteSandbox)

    with scene.refuses(WrongState, Archive(by=ANN)):
        pass


def test_provisioning_that_is_late_does_not_revive_an_ended_task() -> None:
    scene = a_task(Kill(by=ANN))

    turn = scene.when(READY)

    assert scene.state.row.status == "killing"
    assert turn.effects.rows == []
