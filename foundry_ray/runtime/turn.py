"""The turn: collects what leaves it while a handler computes; one commit writes it.

A handler does no I/O. It changes the state it holds and says here what else must
be true after the commit: rows, messages, timers, runs, feed items and replies.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlmodel import SQLModel

from foundry_ray.core import keys
from foundry_ray.core.errors import FoundryError, WrongState
from foundry_ray.core.ids import new_id
from foundry_ray.core.messages import (
    ChildFailed,
    Failure,
    IssueReported,
    IssueResolved,
    Message,
)
from foundry_ray.runtime.effects import Effects, FeedItem, Mail, Reply, RunChange
from foundry_ray.runtime.tables import RtSecret
from foundry_ray.runtime.workflow import Done, Go, Next, Run, Wait, Workflow, Workflows
from foundry_ray.store.columns import StateRow

REPORTED: str = IssueReported.model_fields["kind"].default


def as_json(value: Any) -> Any:
    """Return *value* as JSON types; models lose nothing but what they exclude."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value


class Turn:
    """The open turn of an entity; given to handlers and workflows.

    Attributes:
        now: The instant of the turn.
        key: The entity.
        command_id: The command being handled expects a reply under this id, or None.
    """

    def __init__(
        self,
        key: str,
        now: datetime,
        *,
        sender: str = "",
        command_id: str | None = None,
        workflows: Workflows | None = None,
        state: Any = None,
        runs: dict[str, Run] | None = None,
        admit: Callable[[str, Message], None] = lambda _target, _message: None,
    ) -> None:
        self.key = key
        self.now = now
        self.sender = sender
        self.command_id = command_id
        self.effects = Effects()
        self.replied = False
        self._deferred = False
        self._workflows = Workflows(()) if workflows is None else workflows
        self._state = state
        self._runs = {} if runs is None else runs
        self._admit = admit

    # -- messages ----------------------------------------------------------------

    def tell(self, target: str, message: Message) -> None:
        """Put a message into another entity's mailbox, and go on (S24).

        Raises:
            InvalidInput: That kind of entity does not take such a message.
        """
        keys.kind_of(target)
        self._admit(target, message)
        self.effects.mail.append(Mail(target, message, self.key, self.now))

    def remind(self, name: str, after: timedelta, message: Message) -> None:
        """Put a message into the own mailbox that is due later; replaces one with this name."""
        self._admit(self.key, message)
        self.effects.mail.append(Mail(self.key, message, self.key, self.now + after, timer=name))

    def forget(self, name: str) -> None:
        """Drop the own timer with this name, if it has not fired."""
        self.effects.mail = [mail for mail in self.effects.mail if mail.timer != name]
        self.effects.forget.append(name)

    def report(
        self,
        error: FoundryError,
        work: str,
        step: str | None,
        *,
        attempt: int,
        will_retry: bool,
    ) -> None:
        """Tell the root of a failure; and the parent, who has to decide, if it is final (S28).

        Args:
            work: What failed: a workflow, or a kind of message.
            step: Where; None for a message.
        """
        place = work if step is None else f"{work}:{step}"
        failure = Failure(
            fingerprint=f"{place}:{error.code}",
            code=error.code,
            message=error.message,
            hint=error.hint,
            entity=self.key,
            workflow=work,
            step=step or "",
            attempt=max(attempt, 1),
            will_retry=will_retry,
        )
        if work != REPORTED:  # a root that cannot take issues takes no more
            self.tell(keys.root_of(self.key), IssueReported(failure=failure))
        if not will_retry and (parent := keys.parent_of(self.key)) is not None:
            self.tell(parent, ChildFailed(child=self.key, failure=failure))

    def solved(self, work: str) -> None:
        """Tell the root that what was reported of this *work* is over (N8)."""
        self.tell(keys.root_of(self.key), IssueResolved(entity=self.key, workflow=work))

    # -- replies -----------------------------------------------------------------

    def defer(self) -> str | None:
        """Keep the reply for a later turn; return the command's id to answer under then."""
        self._deferred = True
        return self.command_id

    @property
    def deferred(self) -> bool:
        """Whether this turn leaves its reply to a later one."""
        return self._deferred

    def reply(self, value: Any, *, status: int = 200, command_id: str | None = None) -> None:
        """Answer the command of this turn, or the deferred one with *command_id*."""
        target = command_id or self.command_id
        if command_id is None:
            self.replied = True
        if target:
            self.effects.replies.append(Reply(target, status, as_json(value)))

    def refuse(self, error: FoundryError, *, command_id: str | None = None) -> None:
        """Answer a command with an error."""
        target = command_id or self.command_id
        if command_id is None:
            self.replied = True
        if target:
            self.effects.replies.append(Reply(target, 0, problem(error)))

    # -- rows --------------------------------------------------------------------

    def put(self, row: StateRow) -> None:
        """Write the row whole: its revision rises, its time is the turn's."""
        for kind, known in self.effects.rows:
            if known is row and kind in ("put", "insert"):
                return
        row.revision += 1
        row.updated_at = self.now
        self.effects.rows.append(("put", row))

    def insert(self, row: SQLModel) -> None:
        """Append a row that is not there yet."""
        self.effects.rows.append(("insert", row))

    def delete(self, row: SQLModel) -> None:
        """Delete a row."""
        self.effects.rows.append(("delete", row))

    def drop(self, row_type: type[SQLModel], **key: Any) -> None:
        """Delete the row with this primary key, which was never read."""
        self.effects.drops.append((row_type, key))

    def keep_secret(self, secret_id: str, sealed: str, expires_at: datetime | None = None) -> None:
        """Keep a secret that a step sealed under *secret_id*; replaces an older one."""
        row = RtSecret(
            id=secret_id,
            owner_key=self.key,
            sealed=sealed,
            expires_at=expires_at,
            created_at=self.now,
        )
        self.effects.rows.append(("put", row))

    def drop_secret(self, secret_id: str) -> None:
        """Forget a secret."""
        self.drop(RtSecret, id=secret_id)

    # -- what people see ------------------------------------------------------------

    def publish(self, topic: str, kind: str, item_id: str, revision: int, data: Any) -> None:
        """Show a changed item, whole, to everybody who watches the topic."""
        self.effects.feed.append(FeedItem(topic, kind, str(item_id), revision, as_json(data)))

    def withdraw(self, topic: str, kind: str, item_id: str, revision: int) -> None:
        """Show that an item is gone."""
        self.effects.feed.append(FeedItem(topic, kind, str(item_id), revision, None))

    # -- runs ------------------------------------------------------------------------

    def start(self, kind: str, input: BaseModel, *, run_id: str | None = None) -> str:
        """Start a run of the entity's newest workflow called *kind*; return the run's id."""
        workflow = self._workflows.newest(kind)
        run = Run(run_id or new_id(), kind, input, "", 0, version=workflow.version)
        self._runs[run.id] = run
        following = workflow.begin(self._state, run, self)
        self._change(run, workflow, following, created=True)
        return run.id

    def go(self, run_id: str, following: Next) -> None:
        """Continue a run that waits, or a parked one: the step starts with fresh attempts.

        Raises:
            WorkflowUnknown: This release does not know the run's workflow.
            WrongState: The run was given up, and goes its way back.
        """
        run = self._runs[run_id]
        if run.undoing and not (isinstance(following, Go) and following.step.name == run.step):
            raise WrongState("This work was given up.", workflow=run.kind, run_id=run_id)
        run.attempt = 0
        self._change(run, self._workflows.of(run), following, created=False)

    def retry(self, run_id: str) -> None:
        """Begin the step of a parked run again, with fresh attempts and the same input."""
        run = self._runs[run_id]
        step = self._workflows.of(run).step_named(run.step)
        self.go(run_id, Go(step, step.input_type.model_validate(run.step_input)))

    def fail(self, run_id: str, error: FoundryError) -> None:
        """Park a waiting run with an error: what it waited for will not come (S28)."""
        run = self._runs.get(run_id)
        if run is None or run.undoing:
            return
        run.parked, run.reported, run.error = True, False, error.code
        workflow = self._workflows.of(run)
        self.report(error, run.kind, run.step, attempt=run.attempt, will_retry=False)
        workflow.on_error(self._state, run, error, self)
        run.reported = True
        if run.id in self._runs:
            self.effects.runs.append(RunChange(run, workflow, Wait(), created=False))

    def run(self, run_id: str | None) -> Run | None:
        """Return a run that is not over, or None."""
        return self._runs.get(run_id) if run_id else None

    def runs(self) -> list[Run]:
        """Return the runs that are not over."""
        return list(self._runs.values())

    def cancel(self, run_id: str | None) -> None:
        """End a run that is not over; its step's result will be ignored, and nothing is undone.

        A failure that was reported for it is solved: the work is not wanted any more.
        """
        if run_id and (run := self._runs.pop(run_id, None)):
            self.effects.cancelled.append(run_id)
            if run.reported:
                self.solved(run.work)

    def undo(self, run_id: str | None) -> None:
        """Give up a run that is not over: what its steps did is undone, the last one first.

        Each undo is a step of the run, with its attempts. A step that is under way is let
        end before, here or elsewhere; its result will be ignored. Then the workflow hears of
        it (``undone``). A failure that was reported for the run is solved, as by ``cancel``.

        Raises:
            WorkflowUnknown: This release does not know the run's workflow.
        """
        run = self._runs.get(run_id) if run_id else None
        if run is None or run.undoing:
            return
        workflow = self._workflows.of(run)
        if run.reported:
            self.solved(run.work)
        run.reported, run.undoing = False, True
        self._go_back(run, workflow, let_end=True)

    def _go_back(self, run: Run, workflow: Workflow[Any], *, let_end: bool) -> None:
        following: Next = Done()
        if run.undo:
            name, given = run.undo.pop()
            step = workflow.step_named(name)
            following = Go(step, step.input_type.model_validate(given))
        else:
            workflow.undone(self._state, run, self)
        run.attempt = 0
        self._change(run, workflow, following, created=False, let_end=let_end)

    def advance(self, run: Run, result: Any) -> None:
        """Let the workflow take a step's result; called by the kernel."""
        workflow = self._workflows.of(run)
        if run.undoing:
            self._go_back(run, workflow, let_end=False)
            return
        run.attempt = 0
        following = workflow.next(self._state, run, result, self)
        if run.id not in self.effects.cancelled and not run.undoing:
            self._change(run, workflow, following, created=False)

    def _change(
        self,
        run: Run,
        workflow: Workflow[Any],
        following: Next,
        *,
        created: bool,
        let_end: bool = False,
    ) -> None:
        if isinstance(following, Go):
            run.step = following.step.name
            run.step_input = following.input.model_dump(mode="json")
            if (back := following.step.undo) is not None and not run.undoing:
                # From now on it may happen, even if nobody will know.
                taken = (back.name, run.step_input)
                if taken not in run.undo:
                    run.undo.append(taken)
        run.parked, run.error = False, ""
        if isinstance(following, Done):
            self._runs.pop(run.id, None)
        self.effects.runs.append(RunChange(run, workflow, following, created, let_end))

    @staticmethod
    def waiting() -> Wait:
        """Return the next of a run that waits for a message."""
        return Wait()


def problem(error: FoundryError) -> dict[str, Any]:
    """Return an error as stored JSON: code, message, hint, retryable, context."""
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "retryable": error.retryable,
        "context": {k: v for k, v in error.context.items() if _plain(v)},
    }


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool | list | dict)
