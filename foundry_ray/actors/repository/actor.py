"""Repository: coordinates the branches and tasks of one repository (S3, S13).

Key ``org/<org>/repo/<repo>``. Pull-request state is read from GitHub state (S23).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.actors.organization.messages import RepositoryIndexed, TaskIndexed
from foundry_ray.actors.repository import rules
from foundry_ray.actors.repository.messages import (
    CreateTask,
    PullRequestChanged,
    RefsChanged,
    ReleaseBranch,
    RepositoryDescribed,
    ReserveBranch,
    TaskChanged,
)
from foundry_ray.actors.repository.tables import (
    Repository,
    RepositoryRef,
    RepositoryState,
    RepositoryTask,
)
from foundry_ray.actors.sandbox_instance.messages import ProvisionSandbox
from foundry_ray.actors.task.messages import (
    BranchReserved,
    ProvisioningView,
    SandboxView,
    StartTask,
    TaskPullRequestChanged,
    TaskView,
    pending_session,
    queued_phases,
)
from foundry_ray.actors.task_session.messages import StartSession
from foundry_ray.core import keys, topics
from foundry_ray.core.agents import check_agent
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
from foundry_ray.core.facts import PullRequestFacts, Trouble
from foundry_ray.core.ids import new_id
from foundry_ray.core.messages import SYSTEM
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.store.engine import Transaction

PROMPT_LIMIT = 1024 * 1024  # bytes of UTF-8


class RepositoryActor(Actor[RepositoryState]):
    """Reserves branches, begins tasks, and keeps their index."""

    actor_type = "repository"
    idle_after = timedelta(minutes=10)
    tables = (Repository, RepositoryRef, RepositoryTask)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> RepositoryState:
        """Read the state of one repository."""
        return await RepositoryState.load(transaction, key)

    # -- what GitHub says ----------------------------------------------------------------

    @handles
    def described(self, event: RepositoryDescribed, turn: Turn) -> None:
        """Take over GitHub's description; tasks of a repository that is gone stay readable."""
        row = self.state.row
        if event.facts is None:
            if row is None or row.gone:
                return
            row.gone = True
        else:
            if row is None:
                row = Repository(
                    actor_key=self.key,
                    revision=0,
                    created_at=turn.now,
                    updated_at=turn.now,
                    **event.facts.model_dump(),
                )
                self.state.row = row
            row.describe(event.facts)
        turn.put(row)
        turn.tell(
            keys.root_of(self.key),
            RepositoryIndexed(repository_id=row.id, full_name="" if row.gone else row.full_name),
        )
        shown = row.model_dump(
            mode="json", include={"id", "full_name", "default_branch", "private", "archived"}
        )
        turn.publish(topics.organization(self.key), "repository", row.id, row.revision, shown)

    @handles
    def refs_changed(self, event: RefsChanged, turn: Turn) -> None:
        """Take over branches of the remote."""
        for ref in event.refs:
            known = self.state.refs.get(ref.name)
            if not ref.sha:
                if known is not None:
                    turn.delete(known)
                    del self.state.refs[ref.name]
                continue
            if known is None:
                known = RepositoryRef(
                    actor_key=self.key,
                    revision=0,
                    created_at=turn.now,
                    updated_at=turn.now,
                    name=ref.name,
                    sha="",
                )
                self.state.refs[ref.name] = known
            if known.sha != ref.sha:
                known.sha = ref.sha
                turn.put(known)
        if event.whole:
            named = {ref.name for ref in event.refs}
            for name in set(self.state.refs) - named:
                turn.delete(self.state.refs.pop(name))

    @handles
    def pull_request_changed(self, event: PullRequestChanged, turn: Turn) -> None:
        """Pass a pull request on to the task of its branch; a fork's branch is nobody's."""
        facts = event.pull_request
        if facts.head_repository_id != keys.repository_id(self.key):
            return
        task = self.state.holder_of(facts.head_ref)
        if task is None:
            return
        turn.tell(keys.task(self.key, task.id), TaskPullRequestChanged(pull_request=facts))
        if event.action in ("published", "opened", "closed", "reopened", "merged"):
            self._record(facts, event, task, turn)

    def _record(
        self, facts: PullRequestFacts, event: PullRequestChanged, task: RepositoryTask, turn: Turn
    ) -> None:
        what = {"closed": "merged" if facts.state == "merged" else "closed"}.get(
            event.action, event.action
        )
        data: dict[str, Any] = {"number": facts.number, "url": facts.url, "sha": facts.head_sha}
        if event.guid:
            data["delivery"] = event.guid
        turn.tell(
            keys.history(self.key),
            RecordEvent(
                actor=event.by or SYSTEM,
                what=f"pull_request_{what}",
                task_id=task.id,
                summary=f"pull request #{facts.number} {what}",
                data=data,
            ),
        )

    # -- tasks -----------------------------------------------------------------------------

    @handles
    def create_task(self, command: CreateTask, turn: Turn) -> None:
        """Reserve the branch and begin the task, its sandbox and its session, at once (S26)."""
        row = self.state.row
        if row is None or row.gone:
            raise NotFound("There is no such repository.")
        if row.archived:
            raise WrongState("The repository is archived on GitHub.")
        _check_prompt(command.prompt)
        check_agent(command.agent)
        if command.on_branch is not None and command.on_branch not in self.state.refs:
            raise InvalidInput(f"There is no branch {command.on_branch!r} to begin from.")
        task_id, session_id, sandbox_id = new_id(), new_id(), new_id()
        title = (command.title or "").strip() or rules.title_of(command.prompt)
        branch = command.branch
        if branch is None:
            branch = rules.branch_for(title, task_id, self._taken())
        else:
            self._check_branch(branch)
        task_key = keys.task(self.key, task_id)
        sandbox_key = keys.sandbox(keys.organization_id(self.key), command.provider, sandbox_id)
        view = self._view(command, task_id, session_id, sandbox_key, title, branch, turn)
        index = RepositoryTask(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            id=task_id,
            branch=branch,
            status="provisioning",
            view=view.model_dump(mode="json"),
            summary={},
        )
        index.summary = {k: index.view[k] for k in SUMMARY_FIELDS}
        self.state.tasks[task_id] = index
        turn.put(index)
        turn.tell(
            task_key,
            StartTask(
                prompt=command.prompt,
                title=title,
                branch=branch,
                base_branch=row.default_branch,
                on_branch=command.on_branch,
                agent=command.agent,
                model=command.model,
                sandbox_key=sandbox_key,
                session_id=session_id,
                owner=command.by,
            ),
        )
        turn.tell(
            sandbox_key,
            ProvisionSandbox(
                task_key=task_key,
                clone_url=row.clone_url,
                branch=branch,
                base_branch=row.default_branch,
                on_branch=command.on_branch,
                owner=command.by,
            ),
        )
        turn.tell(
            keys.session(task_key, session_id),
            StartSession(
                title=title,
                agent=command.agent,
                model=command.model,
                sandbox_key=sandbox_key,
                prompt=command.prompt,
                by=command.by,
            ),
        )
        turn.tell(
            keys.root_of(self.key),
            TaskIndexed(
                task_id=task_id, repository_id=row.id, title=title, sandbox_key=sandbox_key
            ),
        )
        turn.tell(
            keys.history(self.key),
            RecordEvent(
                actor=command.by,
                what="task_created",
                task_id=task_id,
                summary=f"created {title}",
                data={"branch": branch},
            ),
        )
        turn.publish(topics.organization(self.key), "task", task_id, 0, index.summary)
        turn.reply(view, status=201)

    def _view(
        self,
        command: CreateTask,
        task_id: str,
        session_id: str,
        sandbox_key: str,
        title: str,
        branch: str,
        turn: Turn,
    ) -> TaskView:
        assert self.state.row is not None
        return TaskView(
            id=task_id,
            repository_id=self.state.row.id,
            title=title,
            branch=branch,
            status="provisioning",
            diff={"added": 0, "removed": 0, "files": 0},
            active_session_id=session_id,
            owner={"id": command.by.id, "login": command.by.login},
            created_at=turn.now,
            updated_at=turn.now,
            revision=0,
            prompt=command.prompt,
            base_branch=command.on_branch or self.state.row.default_branch,
            provisioning=ProvisioningView(phases=queued_phases(turn.now)),
            sandboxes=[
                SandboxView(
                    id=keys.last_id(sandbox_key),
                    provider=command.provider,
                    state="creating",
                    active=True,
                    created_at=turn.now,
                )
            ],
            sessions=[pending_session(session_id, title, command.agent, command.model, turn.now)],
            has_unpushed=False,
            operations={},
        )

    @handles
    def task_changed(self, event: TaskChanged, turn: Turn) -> None:
        """Keep a task's newest summary."""
        task = self.state.tasks.get(event.task_id)
        if task is not None:
            task.status, task.summary = event.status, event.summary
            turn.put(task)

    @handles
    def reserve_branch(self, command: ReserveBranch, turn: Turn) -> None:
        """Give a task another branch name, or say why not."""
        task = self.state.tasks.get(command.task_id)
        if task is None:
            raise NotFound("There is no such task.")
        error: Trouble | None = None
        try:
            if command.branch != task.branch:
                self._check_branch(command.branch)
            task.branch = command.branch
            turn.put(task)
        except FoundryError as refusal:
            error = Trouble.of(refusal)
        turn.tell(keys.task(self.key, task.id), BranchReserved(branch=command.branch, error=error))

    @handles
    def release_branch(self, event: ReleaseBranch, turn: Turn) -> None:
        """Take a branch name back."""
        task = self.state.tasks.get(event.task_id)
        if task is not None:
            task.branch = None
            turn.put(task)

    # -- branches --------------------------------------------------------------------------

    def _taken(self) -> set[str]:
        reserved = {task.branch for task in self.state.tasks.values() if task.branch}
        return reserved | set(self.state.refs)

    def _check_branch(self, name: str) -> None:
        if not rules.valid_branch(name):
            raise InvalidBranch(
                f"git does not accept {name!r} as a branch name.",
                hint="See git-check-ref-format(1).",
            )
        for other in self._taken():
            if rules.collides(name, other):
                raise BranchTaken(
                    f"The branch {name} cannot be had: {other} exists.",
                    hint="Choose another name.",
                )


SUMMARY_FIELDS = (
    "id",
    "repository_id",
    "title",
    "branch",
    "status",
    "pull_request",
    "diff",
    "active_session_id",
    "owner",
    "created_at",
    "updated_at",
    "revision",
)


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise PromptEmpty(hint="Say what the agent shall do.")
    if len(prompt.encode()) > PROMPT_LIMIT:
        raise TooLarge("A prompt has at most 1 MiB.", limit=PROMPT_LIMIT)
