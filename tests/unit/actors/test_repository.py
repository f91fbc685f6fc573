"""Repository: given its branches and tasks, when a message comes, then..."""

from __future__ import annotations

from typing import Any

import pytest

from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.actors.organization.messages import RepositoryIndexed, TaskIndexed
from foundry_ray.actors.repository.actor import PROMPT_LIMIT, RepositoryActor
from foundry_ray.actors.repository.messages import (
    CreateTask,
    PullRequestChanged,
    RefsChanged,
    ReleaseBranch,
    RepositoryDescribed,
    ReserveBranch,
    TaskChanged,
)
from foundry_ray.actors.repository.tables import RepositoryState
from foundry_ray.actors.sandbox_instance.messages import ProvisionSandbox
from foundry_ray.actors.task.messages import BranchReserved, StartTask, TaskPullRequestChanged
from foundry_ray.actors.task_session.messages import StartSession
from foundry_ray.core import keys
from foundry_ray.core.errors import (
    BranchTaken,
    FoundryError,
    InvalidBranch,
    InvalidInput,
    NotFound,
    PromptEmpty,
    TooLarge,
    WrongState,
)
from foundry_ray.core.facts import PullRequestFacts, RefFacts, RepositoryFacts
from tests.unit.actors.kit import ANN, BOB, NOW, Scene, all_of, only, reply, shown, told

KEY = keys.repository(1, 2)
FACTS = RepositoryFacts(
    id="2",
    full_name="acme/app",
    name="app",
    default_branch="main",
    private=True,
    archived=False,
    clone_url="https://github.com/acme/app.git",
    html_url="https://github.com/acme/app",
)


def described(**changes: Any) -> Scene:
    scene = Scene(RepositoryActor, KEY, RepositoryState(KEY, None, {}, {}))
    scene.when(
        RepositoryDescribed(facts=FACTS.model_copy(update=changes)),
        RefsChanged(refs=[RefFacts(name="main", sha="1"), RefFacts(name="taken", sha="2")]),
    )
    return scene


def create(**told: Any) -> CreateTask:
    plain = {"prompt": "Fix the build", "agent": "scripted", "provider": "local", "by": ANN}
    return CreateTask.model_validate({**plain, **told})


def test_a_task_begins_with_its_branch_sandbox_and_session_at_once() -> None:
    scene = described()

    turn = scene.when(create())

    view = reply(turn)
    assert (view["title"], view["branch"], view["status"]) == (
        "Fix the build",
        "foundry/fix-the-build",
        "provisioning",
    )
    task = keys.task(KEY, view["id"])
    start = only(turn, StartTask)
    provision = only(turn, ProvisionSandbox)
    session = only(turn, StartSession)
    targets = {type(message): target for target, message in told(turn)}
    assert targets[StartTask] == task
    assert targets[ProvisionSandbox] == start.sandbox_key == session.sandbox_key
    assert targets[StartSession] == keys.session(task, start.session_id)
    assert provision.task_key == task
    assert (provision.branch, provision.base_branch) == ("foundry/fix-the-build", "main")
    assert session.prompt == start.prompt == "Fix the build"
    assert only(turn, TaskIndexed).task_id == view["id"]
    assert only(turn, RecordEvent).what == "task_created"
    [reserved] = scene.state.tasks.values()
    assert reserved.branch == "foundry/fix-the-build"
    [item] = shown(turn, "task")
    assert item.data == reserved.summary
    assert turn.effects.replies[0].status == 201


def test_what_makes_a_sandbox_overtakes_what_ends_it_by_no_lane() -> None:
    """A kill that comes at once must not be handled before the start."""
    from foundry_ray.actors.sandbox_instance.messages import DeleteSandbox, StopSandbox
    from foundry_ray.actors.task.messages import Kill
    from foundry_ray.actors.task_session.messages import CloseSession, StopTurn

    assert StartTask.lane <= Kill.lane
    assert ProvisionSandbox.lane <= min(StopSandbox.lane, DeleteSandbox.lane)
    assert StartSession.lane <= min(StopTurn.lane, CloseSession.lane)


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"prompt": "  \n"}, PromptEmpty),
        ({"prompt": "x" * (PROMPT_LIMIT + 1)}, TooLarge),
        ({"prompt": "é" * (PROMPT_LIMIT // 2 + 1)}, TooLarge),
        ({"agent": "nobody"}, InvalidInput),
        ({"on_branch": "unknown"}, InvalidInput),
        ({"branch": "a..b"}, InvalidBranch),
        ({"branch": "taken"}, BranchTaken),
        ({"branch": "taken/deeper"}, BranchTaken),
    ],
)
def test_a_task_that_cannot_be_is_refused(told: dict[str, Any], error: type[FoundryError]) -> None:
    with described().refuses(error, create(**told)):
        pass


def test_a_repository_that_is_unknown_gone_or_archived_takes_no_task() -> None:
    unknown = Scene(RepositoryActor, KEY, RepositoryState(KEY, None, {}, {}))
    gone = described()
    gone.when(RepositoryDescribed(facts=None))

    for scene, error in (
        (unknown, NotFound),
        (gone, NotFound),
        (described(archived=True), WrongState),
    ):
        with scene.refuses(error, create()):
            pass


def test_two_tasks_of_one_title_get_two_branches() -> None:
    scene = described()

    scene.when(create(), create())

    branches = [task.branch for task in scene.state.tasks.values()]
    assert len(set(branches)) == 2
    with scene.refuses(BranchTaken, create(branch=branches[0])):
        pass


def test_a_branch_may_be_chosen_and_begin_from_another() -> None:
    turn = described().when(create(branch="mine", on_branch="taken", title=" My title "))

    start = only(turn, StartTask)
    assert (start.branch, start.on_branch, start.base_branch, start.title) == (
        "mine",
        "taken",
        "main",
        "My title",
    )
    assert reply(turn)["base_branch"] == "taken"


def test_another_branch_is_reserved_or_refused_to_the_task() -> None:
    scene = described()
    scene.when(create())
    [task] = scene.state.tasks.values()

    good = only(scene.when(ReserveBranch(task_id=task.id, branch="mine")), BranchReserved)
    assert (good.branch, good.error, task.branch) == ("mine", None, "mine")
    bad = only(scene.when(ReserveBranch(task_id=task.id, branch="taken")), BranchReserved)
    assert bad.error is not None
    assert (bad.error.code, task.branch) == ("branch_taken", "mine")


def test_a_branch_that_is_given_back_can_be_had_again() -> None:
    scene = described()
    scene.when(create(branch="mine"))
    [task] = scene.state.tasks.values()

    scene.when(ReleaseBranch(task_id=task.id))

    assert task.branch is None
    scene.when(create(branch="mine", by=BOB))


def test_branches_of_the_remote_come_and_go() -> None:
    scene = described()

    scene.when(RefsChanged(refs=[RefFacts(name="new", sha="3"), RefFacts(name="taken", sha="")]))
    assert sorted(scene.state.refs) == ["main", "new"]
    turn = scene.when(RefsChanged(refs=[RefFacts(name="main", sha="1")]))
    assert turn.effects.rows == [], "nothing changed, nothing is written"
    scene.when(RefsChanged(refs=[RefFacts(name="only", sha="4")], whole=True))
    assert sorted(scene.state.refs) == ["only"]


def pull_request(**told: Any) -> PullRequestFacts:
    plain = {
        "number": 5,
        "repository_id": "2",
        "head_repository_id": "2",
        "head_ref": "mine",
        "head_sha": "abc",
        "base_ref": "main",
        "title": "t",
        "state": "open",
        "url": "u",
        "author_login": "ann",
        "updated_at": NOW,
    }
    return PullRequestFacts.model_validate({**plain, **told})


def test_a_pull_request_goes_to_the_task_of_its_branch() -> None:
    scene = described()
    scene.when(create(branch="mine"))
    [task] = scene.state.tasks.values()

    turn = scene.when(PullRequestChanged(pull_request=pull_request(), action="opened", guid="g"))

    assert told(turn)[0] == (
        keys.task(KEY, task.id),
        TaskPullRequestChanged(pull_request=pull_request()),
    )
    recorded = only(turn, RecordEvent)
    assert (recorded.what, recorded.data["delivery"]) == ("pull_request_opened", "g")


def test_a_closed_pull_request_that_was_merged_is_recorded_as_merged() -> None:
    scene = described()
    scene.when(create(branch="mine"))

    turn = scene.when(
        PullRequestChanged(pull_request=pull_request(state="merged"), action="closed")
    )

    assert only(turn, RecordEvent).what == "pull_request_merged"


@pytest.mark.parametrize(
    "facts",
    [
        pull_request(head_repository_id="99"),  # a fork's branch of the same name
        pull_request(head_repository_id=None),  # of a fork that is gone
        pull_request(head_ref="another"),
    ],
)
def test_a_pull_request_of_nobodys_branch_is_passed_over(facts: PullRequestFacts) -> None:
    scene = described()
    scene.when(create(branch="mine"))

    assert told(scene.when(PullRequestChanged(pull_request=facts, action="opened"))) == []


def test_a_repository_that_is_gone_leaves_the_index_and_keeps_its_tasks() -> None:
    scene = described()
    scene.when(create())

    turn = scene.when(RepositoryDescribed(facts=None))

    assert only(turn, RepositoryIndexed).full_name == ""
    assert len(scene.state.tasks) == 1
    assert told(scene.when(RepositoryDescribed(facts=None))) == []
    assert only(scene.when(RepositoryDescribed(facts=FACTS)), RepositoryIndexed).full_name


def test_a_tasks_newest_summary_is_kept() -> None:
    scene = described()
    scene.when(create())
    [task] = scene.state.tasks.values()

    scene.when(TaskChanged(task_id=task.id, status="ready", summary={"a": 1}))
    scene.when(TaskChanged(task_id="unknown", status="x", summary={}))

    assert (task.status, task.summary) == ("ready", {"a": 1})
    assert all_of(scene.turn, StartTask) == []
