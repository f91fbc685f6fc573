"""Messages to repositories, their histories and their tasks."""

from __future__ import annotations

from foundry_ray.actors.github_state.messages import PublishPullRequest
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.actors.history.tables import HistoryEvent
from foundry_ray.actors.organization.messages import RepositoryIndexed, TaskIndexed
from foundry_ray.actors.repository.messages import (
    CreateTask,
    PullRequestChanged,
    RefsChanged,
    ReleaseBranch,
    RepositoryDescribed,
    ReserveBranch,
    TaskChanged,
)
from foundry_ray.actors.repository.tables import Repository, RepositoryRef, RepositoryTask
from foundry_ray.actors.sandbox_instance.messages import (
    DeleteSandbox,
    ProvisionSandbox,
    PushBranch,
    RetrySandbox,
    StopSandbox,
)
from foundry_ray.actors.task.messages import (
    Archive,
    BranchReserved,
    ChangesTaken,
    CreateSession,
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
from foundry_ray.actors.task.tables import Task, TaskChanges, TaskPatch, TaskSandbox
from foundry_ray.actors.task_session.messages import CloseSession, StartSession
from foundry_ray.core.facts import Changes, FileChange, PullRequestFacts, RefFacts
from foundry_ray.testing.clock import START
from tests.integration.every_message.kit import (
    ADA,
    DEMO,
    GITHUB,
    HISTORY,
    ORG,
    REPO,
    SANDBOX,
    SESSION,
    TASK,
    TROUBLE,
    Case,
    feed,
    kept,
    mail,
    replied,
    row,
)

DEMO_ROW = kept(Repository, REPO, **DEMO.model_dump())
INDEXED = kept(
    RepositoryTask, REPO, id="t1", branch="door", status="provisioning", view={}, summary={}
)
PULL_REQUEST = PullRequestFacts(
    number=12,
    repository_id="9001",
    head_repository_id="9001",
    head_ref="door",
    head_sha="a" * 40,
    base_ref="main",
    title="Add a door",
    state="open",
    url="https://github.test/acme/demo/pull/12",
    author_login="ada",
    updated_at=START,
)
REPOSITORY_CASES = (
    Case(
        "repository",
        RepositoryDescribed(facts=DEMO),
        (
            row(Repository, id="9001", full_name="acme/demo", gone=False),
            mail(ORG, RepositoryIndexed, repository_id="9001", full_name="acme/demo"),
            feed("organization:500", "repository", full_name="acme/demo"),
        ),
    ),
    Case(
        "repository",
        RefsChanged(refs=[RefFacts(name="main", sha="b" * 40)]),
        (row(RepositoryRef, name="main", sha="b" * 40),),
    ),
    Case(
        "repository",
        PullRequestChanged(pull_request=PULL_REQUEST, action="opened", guid="g1", by=ADA),
        (
            mail(TASK, TaskPullRequestChanged, pull_request={"number": 12}),
            mail(HISTORY, RecordEvent, what="pull_request_opened", task_id="t1"),
        ),
        rows=(DEMO_ROW, INDEXED),
    ),
    Case(
        "repository",
        CreateTask(prompt="Say hello", agent="scripted", provider="local", by=ADA),
        (
            row(RepositoryTask, branch="foundry/say-hello", status="provisioning"),
            mail(..., StartTask, branch="foundry/say-hello", prompt="Say hello"),
            mail(..., ProvisionSandbox, branch="foundry/say-hello", clone_url=DEMO.clone_url),
            mail(..., StartSession, prompt="Say hello", agent="scripted"),
            mail(ORG, TaskIndexed, repository_id="9001", title="Say hello"),
            mail(HISTORY, RecordEvent, what="task_created"),
            feed("organization:500", "task", title="Say hello", status="provisioning"),
            replied(201, {"title": "Say hello", "branch": "foundry/say-hello"}),
        ),
        rows=(DEMO_ROW,),
        way="ask",
    ),
    Case(
        "repository",
        TaskChanged(task_id="t1", status="ready", summary={"status": "ready"}),
        (row(RepositoryTask, id="t1", status="ready", summary={"status": "ready"}),),
        rows=(DEMO_ROW, INDEXED),
    ),
    Case(
        "repository",
        ReserveBranch(task_id="t1", branch="window"),
        (
            row(RepositoryTask, id="t1", branch="window"),
            mail(TASK, BranchReserved, branch="window", error=None),
        ),
        rows=(DEMO_ROW, INDEXED),
    ),
    Case(
        "repository",
        ReleaseBranch(task_id="t1"),
        (row(RepositoryTask, id="t1", branch=None),),
        rows=(DEMO_ROW, INDEXED),
    ),
)

HISTORY_CASES = (
    Case(
        "history",
        RecordEvent(actor=ADA, what="branch_pushed", task_id="t1", summary="pushed door"),
        (
            row(HistoryEvent, actor_key=HISTORY, kind="branch_pushed", actor={"login": "ada"}),
            feed("repository:500/9001", "history", kind="branch_pushed", task_id="t1"),
        ),
    ),
)

START_TASK = StartTask(
    prompt="Say hello",
    title="Say hello",
    branch="door",
    base_branch="main",
    on_branch=None,
    agent="scripted",
    model=None,
    sandbox_key=SANDBOX,
    session_id="s1",
    owner=ADA,
)
READY = PhaseChanged(phase="ready", state="done")
BEGUN, LIVE = (START_TASK,), (START_TASK, READY)
CHANGES = Changes(
    base="b" * 40,
    head="a" * 40,
    files=[FileChange(path="door.py", status="added", added=3, removed=0, binary=False)],
    unpushed=True,
)
TASK_CASES = (
    Case(
        "task",
        START_TASK,
        (
            row(Task, actor_key=TASK, branch="door", status="provisioning"),
            row(TaskSandbox, id="b1", state="creating", active=True),
            mail(REPO, TaskChanged, task_id="t1", status="provisioning"),
            feed("organization:500", "task", id="t1"),
            feed("repository:500/9001", "task", id="t1"),
            feed("task:500/t1", "task", prompt="Say hello"),
        ),
    ),
    Case(
        "task",
        READY,
        (
            row(Task, status="ready", provisioning={"phase": "ready", "error": None}),
            row(TaskSandbox, id="b1", state="started"),
            mail(HISTORY, RecordEvent, what="task_ready"),
            mail(REPO, TaskChanged, status="ready"),
            feed("task:500/t1", "task", status="ready"),
        ),
        before=BEGUN,
    ),
    Case(
        "task",
        RetryTask(by=ADA),
        (
            row(Task, status="provisioning", provisioning={"error": None}),
            mail(SANDBOX, RetrySandbox, branch=None),
            mail(HISTORY, RecordEvent, what="task_retried"),
            replied(202, {"status": "provisioning"}),
        ),
        before=(START_TASK, PhaseChanged(phase="cloning", state="failed", error=TROUBLE)),
        way="ask",
    ),
    Case(
        "task",
        BranchReserved(branch="window"),
        (row(Task, branch="window"), mail(SANDBOX, RetrySandbox, branch="window")),
        before=BEGUN,
    ),
    Case(
        "task",
        SessionChanged(session_id="s1", status="running", summary={"status": "running"}),
        (
            row(Task, status="running", sessions={"s1": {"status": "running"}}),
            mail(REPO, TaskChanged, status="running"),
        ),
        before=LIVE,
    ),
    Case(
        "task",
        CreateSession(title="Another", by=ADA),
        (
            row(Task, active_session_id=..., sessions=...),
            mail(..., StartSession, title="Another", prompt=None),
            mail(HISTORY, RecordEvent, what="session_created"),
            feed("task:500/t1", "session", title="Another", status="pending"),
            replied(201, {"title": "Another", "agent": "scripted"}),
        ),
        before=LIVE,
        way="ask",
    ),
    Case(
        "task",
        ChangesTaken(changes=CHANGES, patches={"door.py": "+++"}),
        (
            row(TaskChanges, head="a" * 40),
            row(TaskPatch, path="door.py", patch="+++"),
            row(Task, has_unpushed=True, diff={"added": 3, "files": 1}),
            feed("task:500/t1", "changes", head="a" * 40),
        ),
        before=LIVE,
    ),
    Case(
        "task",
        Push(by=ADA),
        (
            row(Task, operations={"push": {"state": "running"}}),
            mail(SANDBOX, PushBranch, by={"login": "ada"}),
            replied(202, {"operations": {"push": {"state": "running"}}}),
        ),
        before=LIVE,
        way="ask",
    ),
    Case(
        "task",
        Pushed(sha="a" * 40, by=ADA),
        (
            row(Task, operations={"push": {"state": "done", "sha": "a" * 40}}),
            mail(HISTORY, RecordEvent, what="branch_pushed"),
            mail(GITHUB, PublishPullRequest, task_key=TASK, head="door", base="main"),
        ),
        before=(*LIVE, Publish(by=ADA)),
    ),
    Case(
        "task",
        PushFailed(error=TROUBLE),
        (row(Task, operations={"push": {"state": "failed", "error": {"code": "unavailable"}}}),),
        before=(*LIVE, Push(by=ADA)),
    ),
    Case(
        "task",
        Publish(title="Add a door", by=ADA),
        (
            row(
                Task,
                operations={"pull_request": {"state": "running"}},
                publish_wanted={"title": "Add a door"},
            ),
            mail(SANDBOX, PushBranch, by={"login": "ada"}),
            replied(202, {"operations": {"pull_request": {"state": "running"}}}),
        ),
        before=LIVE,
        way="ask",
    ),
    Case(
        "task",
        PublishFailed(error=TROUBLE),
        (
            row(Task, operations={"pull_request": {"state": "failed"}}),
            feed("task:500/t1", "task", operations={"pull_request": {"state": "failed"}}),
        ),
        before=(*LIVE, Publish(by=ADA)),
    ),
    Case(
        "task",
        TaskPullRequestChanged(pull_request=PULL_REQUEST),
        (
            row(Task, pull_request={"number": 12, "state": "open"}),
            feed("organization:500", "task", pull_request={"number": 12}),
        ),
        before=LIVE,
    ),
    Case(
        "task",
        Archive(by=ADA),
        (
            row(Task, life="archiving", status="archiving"),
            mail(SESSION, CloseSession),
            mail(SANDBOX, StopSandbox),
            mail(HISTORY, RecordEvent, what="task_archived"),
            replied(202, {"status": "archiving"}),
        ),
        before=LIVE,
        way="ask",
    ),
    Case(
        "task",
        Kill(by=ADA),
        (
            row(Task, life="killing", status="killing"),
            mail(SESSION, CloseSession),
            mail(SANDBOX, DeleteSandbox),
            mail(HISTORY, RecordEvent, what="task_killed"),
            replied(202, {"status": "killing"}),
        ),
        before=LIVE,
        way="ask",
    ),
    Case(
        "task",
        SandboxEnded(state="deleted"),
        (
            row(Task, life="killed", status="killed"),
            row(TaskSandbox, id="b1", state="deleted", active=False),
            mail(REPO, ReleaseBranch, task_id="t1"),
        ),
        before=(*LIVE, Kill(by=ADA)),
    ),
)

CASES = (*REPOSITORY_CASES, *HISTORY_CASES, *TASK_CASES)
