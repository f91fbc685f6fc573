"""The branch: compared with its base, and pushed."""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.sandbox_instance import steps
from foundry_ray.actors.sandbox_instance.messages import TakeChanges
from foundry_ray.actors.sandbox_instance.steps import (
    ChangesInput,
    PushInput,
)
from foundry_ray.actors.sandbox_instance.tables import SandboxState
from foundry_ray.actors.sandbox_instance.workflows.common import (
    ask_credential,
    place,
)
from foundry_ray.actors.task.messages import (
    ChangesTaken,
    Pushed,
    PushFailed,
)
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.facts import Trouble
from foundry_ray.core.messages import Person, Value
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Nothing, Run, Wait, Workflow


class Compare(Workflow[SandboxState]):
    """A snapshot of the branch against its merge base."""

    kind = "sandbox_instance.compare"
    steps = (steps.read_changes,)

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Read the work tree."""
        row = state.sandbox
        return Go(
            steps.read_changes,
            ChangesInput(
                **place(state),
                home=row.home,
                work_dir=row.work_dir,
                branch=row.branch,
                base_branch=row.base_branch,
            ),
        )

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """Tell the task; look once more if somebody asked meanwhile."""
        turn.tell(
            state.sandbox.task_key,
            ChangesTaken(changes=result.changes, patches=result.patches),
        )
        self._over(state, turn)
        return Done()

    @staticmethod
    def _over(state: SandboxState, turn: Turn) -> None:
        row = state.sandbox
        row.changes_run_id = None
        if row.changes_wanted:
            row.changes_wanted = False
            row.changes_run_id = turn.start(Compare.kind, Nothing())
        turn.put(row)

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """The old snapshot stays, with its time; the next turn's end compares again."""
        turn.cancel(run.id)
        self._over(state, turn)


class Pushing(Value):
    """Who pushes."""

    by: Person


class PushOut(Workflow[SandboxState]):
    """The branch on the remote, with a person's rights."""

    kind = "sandbox_instance.push"
    input_type = Pushing
    steps = (steps.push_branch,)

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Ask for a credential that may write, if the person may."""
        ask_credential(state, turn, purpose=f"push/{run.id}", write=run.input.by)
        return Wait()

    def continue_with(self, state: SandboxState, secret_id: str) -> Go:
        """Return what follows when the credential is there."""
        return Go(
            steps.push_branch,
            PushInput(
                **place(state),
                work_dir=state.sandbox.work_dir,
                branch=state.sandbox.branch,
                secret_id=secret_id,
            ),
        )

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """Tell the task; compare again, since nothing is unpushed now."""
        turn.tell(state.sandbox.task_key, Pushed(sha=result.sha, by=run.input.by))
        turn.tell(state.key, TakeChanges())
        state.sandbox.push_run_id = None
        turn.put(state.sandbox)
        return Done()

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Tell the task; a push is asked for again by people."""
        turn.tell(state.sandbox.task_key, PushFailed(error=Trouble.of(error)))
        state.sandbox.push_run_id = None
        turn.put(state.sandbox)
        turn.cancel(run.id)
