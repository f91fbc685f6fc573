"""The end of a sandbox."""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.sandbox_instance import steps
from foundry_ray.actors.sandbox_instance.steps import (
    Place,
)
from foundry_ray.actors.sandbox_instance.tables import SandboxState
from foundry_ray.actors.sandbox_instance.workflows.common import (
    place,
)
from foundry_ray.actors.task.messages import (
    SandboxEnded,
)
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.messages import Value
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Run, Workflow


class End(Value):
    """How the sandbox ends."""

    delete: bool


class EndSandbox(Workflow[SandboxState]):
    """A stopped or deleted sandbox."""

    kind = "sandbox_instance.end"
    input_type = End
    steps = (steps.stop_sandbox, steps.delete_sandbox)

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Stop it, or destroy it."""
        step = steps.delete_sandbox if run.input.delete else steps.stop_sandbox
        return Go(step, Place(**place(state)))

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """Tell the task."""
        row = state.sandbox
        row.state = "deleted" if run.input.delete else "stopped"
        turn.put(row)
        turn.tell(row.task_key, SandboxEnded(state="deleted" if run.input.delete else "stopped"))
        return Done()

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """The run stays parked; the issue says that the sandbox may still run."""
        state.sandbox.state = "error"
        turn.put(state.sandbox)
