"""Task: one branch, from create to archive (S4, S14).

Key ``org/<org>/repo/<repo>/task/<id>``. It coordinates: sandbox, sessions and GitHub
do the work and tell it what came of it (S26).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from foundry_ray.actors.github_state.messages import PublishPullRequest
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.actors.repository.messages import ReleaseBranch, ReserveBranch
from foundry_ray.actors.repository.messages import TaskChanged as IndexTask
from foundry_ray.actors.sandbox_instance.messages import (
    DeleteSandbox,
    PushBranch,
    RetrySandbox,
    StopSandbox,
)
from foundry_ray.actors.task import rules
from foundry_ray.actors.task.messages import (
    Archive,
    BranchReserved,
    ChangesTaken,
    CreateSession,
    Kill,
    OperationView,
    PhaseChanged,
    ProvisioningView,
    Publish,
    PublishFailed,
    PullRequestView,
    Push,
    Pushed,
    PushFailed,
    RetryTask,
    SandboxEnded,
    SessionChanged,
    StartTask,
    TaskPullRequestChanged,
    pending_session,
    queued_phases,
)
from foundry_ray.actors.task.tables import Task, TaskChanges, TaskPatch, TaskSandbox, TaskState
from foundry_ray.actors.task_session.messages import CloseSession, StartSession
from foundry_ray.core import keys, topics
from foundry_ray.core.agents import check_agent
from foundry_ray.core.errors import QuotaExceeded, Unavailable, WrongState
from foundry_ray.core.facts import Trouble
from foundry_ray.core.ids import new_id
from foundry_ray.core.messages import SYSTEM, Person
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.store.engine import Transaction

SESSIONS_PER_TASK = 20


class TaskActor(Actor[TaskState]):
    """Holds what people see of a task, and passes their commands on."""

    actor_type = "task"
    idle_after = timedelta(minutes=5)
    tables = (Task, TaskSandbox, TaskChanges, TaskPatch)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> TaskState:
        """Read the state of one task."""
        return await TaskState.load(transaction, key)

    @property
    def task(self) -> Task:
        """Return the row; a command that overtook the start of the task is tried again."""
        if self.state.row is None:
            raise Unavailable("The task is about to begin.", hint="Try again at once.")
        return self.state.row

    @property
    def id(self) -> str:
        """Return the task's id."""
        return keys.last_id(self.key)

    # -- provisioning ------------------------------------------------------------------

    @handles
    def start(self, command: StartTask, turn: Turn) -> None:
        """Begin; sandbox and session were told in the same commit as this."""
        if self.state.row is not None:
            return
        self.state.row = Task(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            prompt=command.prompt,
            title=command.title,
            branch=command.branch,
            base_branch=command.on_branch or command.base_branch,
            agent=command.agent,
            model=command.model,
            provisioning=ProvisioningView(phases=queued_phases(turn.now)).model_dump(mode="json"),
            sandbox_key=command.sandbox_key,
            active_session_id=command.session_id,
            owner=command.owner.model_dump(mode="json"),
            diff={"added": 0, "removed": 0, "files": 0},
            sessions={},
            operations={},
        )
        sandbox = TaskSandbox(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            id=keys.last_id(command.sandbox_key),
            provider=command.sandbox_key.split("/")[3],
        )
        self.state.sandboxes.append(sandbox)
        turn.put(sandbox)
        self._changed(turn)

    @handles
    def phase_changed(self, event: PhaseChanged, turn: Turn) -> None:
        """Show where provisioning is (S37)."""
        task = self.task
        if task.life != "live":
            return
        before = ProvisioningView.model_validate(task.provisioning)
        if before.phase == "ready" and event.phase == "starting_session":
            return  # a session that comes later does not make the task unready
        after = rules.advance(before, event, turn.now)
        task.provisioning = after.model_dump(mode="json")
        if after.phase == "ready" and before.phase != "ready":
            self._set_sandbox("started", turn)
            self._record(turn, SYSTEM, "task_ready", f"{task.branch} is ready for the agent")
        elif event.error is not None:
            self._record(
                turn,
                SYSTEM,
                "provisioning_failed",
                f"{event.phase}: {event.error.message}",
                code=event.error.code,
            )
        self._changed(turn)

    @handles
    def retry(self, command: RetryTask, turn: Turn) -> None:
        """Resume at the failed step; with a new branch name, that is reserved first."""
        task = self.task
        provisioning = ProvisioningView.model_validate(task.provisioning)
        if task.life != "live" or provisioning.error is None:
            raise WrongState("Nothing of this task's provisioning has failed.")
        task.provisioning = provisioning.model_copy(update={"error": None}).model_dump(mode="json")
        if command.branch is not None and command.branch != task.branch:
            turn.tell(
                keys.parent_of(self.key) or "",
                ReserveBranch(task_id=self.id, branch=command.branch),
            )
        else:
            turn.tell(task.sandbox_key, RetrySandbox())
        self._record(turn, command.by, "task_retried", f"retry at {provisioning.phase}")
        self._changed(turn)
        turn.reply(self.view(), status=202)

    @handles
    def branch_reserved(self, event: BranchReserved, turn: Turn) -> None:
        """Go on with the new branch name, or show why it cannot be had."""
        task = self.task
        if event.error is None:
            task.branch = event.branch
            turn.tell(task.sandbox_key, RetrySandbox(branch=event.branch))
        else:
            shown = ProvisioningView.model_validate(task.provisioning)
            task.provisioning = shown.model_copy(update={"error": event.error}).model_dump(
                mode="json"
            )
        self._changed(turn)

    @handles
    def session_changed(self, event: SessionChanged, turn: Turn) -> None:
        """Keep a session's summary."""
        task = self.task
        task.sessions = {**task.sessions, event.session_id: event.summary}
        self._changed(turn)

    @handles
    def create_session(self, command: CreateSession, turn: Turn) -> None:
        """Begin another session; answered at once, its agent starts in the background (E03)."""
        task = self.task
        if task.life != "live":
            raise WrongState(f"The task is {task.status}.", hint="Create a new task.")
        if len(task.sessions) >= SESSIONS_PER_TASK:
            raise QuotaExceeded(f"A task has at most {SESSIONS_PER_TASK} sessions.")
        agent = command.agent or task.agent
        check_agent(agent)
        session_id = new_id()
        title = (command.title or "").strip() or f"Session {len(task.sessions) + 1}"
        summary = pending_session(session_id, title, agent, command.model, turn.now)
        task.sessions = {**task.sessions, session_id: summary}
        task.active_session_id = session_id
        turn.tell(
            keys.session(self.key, session_id),
            StartSession(
                title=title,
                agent=agent,
                model=command.model,
                sandbox_key=task.sandbox_key,
                prompt=None,
                by=command.by,
            ),
        )
        self._record(turn, command.by, "session_created", f"began {title}", session=session_id)
        turn.publish(topics.task(self.key), "session", session_id, 0, summary)
        self._changed(turn)
        turn.reply(summary, status=201)

    # -- changes, push, pull request -------------------------------------------------------

    @handles
    def changes_taken(self, event: ChangesTaken, turn: Turn) -> None:
        """Keep the snapshot of the branch against its merge base."""
        task, changes = self.task, event.changes
        row = self.state.changes
        if row is None:
            row = TaskChanges(
                actor_key=self.key,
                revision=0,
                created_at=turn.now,
                updated_at=turn.now,
                base="",
                head="",
                files=[],
                as_of=turn.now,
            )
            self.state.changes = row
        row.base, row.head, row.as_of = changes.base, changes.head, turn.now
        row.files = [file.model_dump(mode="json") for file in changes.files]
        turn.put(row)
        for path in self.state.patched:
            turn.delete(TaskPatch(actor_key=self.key, path=path, patch=""))
        for path, patch in event.patches.items():
            turn.insert(TaskPatch(actor_key=self.key, path=path, patch=patch))
        self.state.patched = set(event.patches)
        task.diff = changes.totals()
        task.has_unpushed = changes.unpushed
        turn.publish(
            topics.task(self.key),
            "changes",
            self.id,
            row.revision,
            {"base": row.base, "head": row.head, "files": row.files, "as_of": turn.now.isoformat()},
        )
        self._changed(turn)

    @handles
    def push(self, command: Push, turn: Turn) -> None:
        """Push the branch with the person's rights."""
        self._ready("push")
        self._push(command.by, turn)
        self._changed(turn)
        turn.reply(self.view(), status=202)

    def _push(self, by: Person, turn: Turn) -> None:
        self._operation("push", "running", turn)
        turn.tell(self.task.sandbox_key, PushBranch(by=by))

    @handles
    def pushed(self, event: Pushed, turn: Turn) -> None:
        """The remote has the branch; go on to the pull request if one is wanted."""
        task = self.task
        self._operation("push", "done", turn, sha=event.sha)
        task.has_unpushed = False
        self._record(
            turn, event.by, "branch_pushed", f"pushed {task.branch} at {event.sha[:10]}",
            sha=event.sha, branch=task.branch,
        )  # fmt: skip
        if task.publish_wanted is not None:
            wanted = Publish.model_validate(task.publish_wanted)
            task.publish_wanted = None
            self._publish(wanted, turn)
        self._changed(turn)

    @handles
    def push_failed(self, event: PushFailed, turn: Turn) -> None:
        """Show why the branch was not pushed; a wanted pull request fails with it."""
        self._operation("push", "failed", turn, error=event.error)
        if self.task.publish_wanted is not None:
            self.task.publish_wanted = None
            self._operation("pull_request", "failed", turn, error=event.error)
        self._changed(turn)

    @handles
    def publish(self, command: Publish, turn: Turn) -> None:
        """Create or update the branch's pull request; the branch is pushed first."""
        self._ready("publish a pull request")
        self._operation("pull_request", "running", turn)
        self.task.publish_wanted = command.model_dump(mode="json")
        self._push(command.by, turn)
        self._changed(turn)
        turn.reply(self.view(), status=202)

    def _publish(self, wanted: Publish, turn: Turn) -> None:
        task = self.task
        prompt = task.prompt.strip().splitlines()
        turn.tell(
            keys.github(keys.organization_id(self.key)),
            PublishPullRequest(
                task_key=self.key,
                repository_id=keys.repository_id(self.key),
                head=task.branch,
                base=wanted.base or task.base_branch,
                title=wanted.title,
                body=wanted.body,
                default_title=task.title,
                default_body="> " + "\n> ".join(prompt[:40]) + f"\n\nFoundry task {self.id}",
                draft=wanted.draft,
                person=wanted.by,
            ),
        )

    @handles
    def publish_failed(self, event: PublishFailed, turn: Turn) -> None:
        """Show why there is no pull request."""
        self._operation("pull_request", "failed", turn, error=event.error)
        self._changed(turn)

    @handles
    def pull_request_changed(self, event: TaskPullRequestChanged, turn: Turn) -> None:
        """Show the pull request as GitHub describes it; older news change nothing."""
        task, facts = self.task, event.pull_request
        if task.pull_request is not None:
            before = PullRequestView.model_validate(task.pull_request)
            if before.number == facts.number and before.as_of > facts.updated_at:
                return
        task.pull_request = PullRequestView(
            number=facts.number,
            url=facts.url,
            state=facts.state,
            title=facts.title,
            head_sha=facts.head_sha,
            as_of=facts.updated_at,
        ).model_dump(mode="json")
        if task.operations.get("pull_request", {}).get("state") == "running":
            self._operation("pull_request", "done", turn)
        self._changed(turn)

    # -- end -----------------------------------------------------------------------------

    @handles
    def archive(self, command: Archive, turn: Turn) -> None:
        """Stop the work and keep everything."""
        if self.task.life not in ("live", "archiving", "archived"):
            raise WrongState(f"The task is {self.task.life}.")
        if self.task.life == "live":
            self.task.life = "archiving"
            self._close(turn)
            turn.tell(self.task.sandbox_key, StopSandbox())
            self._record(turn, command.by, "task_archived", f"archived {self.task.title}")
            self._changed(turn)
        turn.reply(self.view(), status=202)

    @handles
    def kill(self, command: Kill, turn: Turn) -> None:
        """Destroy the sandbox and give the branch name back; what was pushed stays."""
        if self.task.life not in ("killing", "killed"):
            self.task.life = "killing"
            self._close(turn)
            turn.tell(self.task.sandbox_key, DeleteSandbox())
            self._record(turn, command.by, "task_killed", f"killed {self.task.title}")
            self._changed(turn)
        turn.reply(self.view(), status=202)

    def _close(self, turn: Turn) -> None:
        for session_id in self.task.sessions or {self.task.active_session_id: {}}:
            turn.tell(keys.session(self.key, session_id), CloseSession())

    @handles
    def sandbox_ended(self, event: SandboxEnded, turn: Turn) -> None:
        """The sandbox is stopped, or gone."""
        task = self.task
        self._set_sandbox(event.state, turn)
        if task.life == "archiving":
            task.life = "archived"
        elif task.life == "killing" and event.state == "deleted":
            task.life = "killed"
            turn.tell(keys.parent_of(self.key) or "", ReleaseBranch(task_id=self.id))
        self._changed(turn)

    # -- what people see -------------------------------------------------------------------

    def view(self) -> dict[str, Any]:
        """Return the task whole, as JSON."""
        return self.task.view(self.state.sandboxes).model_dump(mode="json")

    def _ready(self, what: str) -> None:
        provisioning = ProvisioningView.model_validate(self.task.provisioning)
        if self.task.life != "live" or provisioning.phase != "ready":
            raise WrongState(
                f"The task is {self.task.status}; it cannot {what} now.",
                hint="Wait until it is ready, or retry what failed.",
            )

    def _operation(
        self,
        name: str,
        state: Literal["running", "done", "failed"],
        turn: Turn,
        *,
        error: Trouble | None = None,
        sha: str | None = None,
    ) -> None:
        said = OperationView(state=state, at=turn.now, error=error, sha=sha)
        self.task.operations = {**self.task.operations, name: said.model_dump(mode="json")}

    def _set_sandbox(self, state: str, turn: Turn) -> None:
        for sandbox in self.state.sandboxes:
            if sandbox.active:
                sandbox.state = state
                sandbox.active = state == "started"
                turn.put(sandbox)

    def _record(self, turn: Turn, by: Person, what: str, summary: str, **data: Any) -> None:
        turn.tell(
            keys.history(keys.parent_of(self.key) or ""),
            RecordEvent(actor=by, what=what, task_id=self.id, summary=summary, data=data),
        )

    def _changed(self, turn: Turn) -> None:
        task = self.task
        task.status = rules.status_of(
            task.life,
            ProvisioningView.model_validate(task.provisioning),
            [session["status"] for session in task.sessions.values()],
        )
        turn.put(task)
        summary = task.summary().model_dump(mode="json")
        turn.publish(topics.organization(self.key), "task", self.id, task.revision, summary)
        turn.publish(topics.repository(self.key), "task", self.id, task.revision, summary)
        turn.publish(topics.task(self.key), "task", self.id, task.revision, self.view())
        turn.tell(
            keys.parent_of(self.key) or "",
            IndexTask(task_id=self.id, status=task.status, summary=summary),
        )
