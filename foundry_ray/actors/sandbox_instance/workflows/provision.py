"""From nothing to an agent that waits for its first prompt."""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.sandbox_instance import steps
from foundry_ray.actors.sandbox_instance.steps import (
    AgentInput,
    CheckoutInput,
    CloneInput,
    Place,
    WatchInput,
)
from foundry_ray.actors.sandbox_instance.tables import SandboxState
from foundry_ray.actors.sandbox_instance.workflows.common import (
    PHASE_OF,
    ask_credential,
    place,
    show,
)
from foundry_ray.actors.task.messages import SandboxEnded
from foundry_ray.actors.task_session.messages import (
    AgentSessionFailed,
    AgentSessionOpened,
)
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.facts import Trouble
from foundry_ray.core.messages import Person, Value
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Run, Step, Wait, Workflow


class Provision(Workflow[SandboxState]):
    """From nothing to a checked-out branch in a healthy sandbox."""

    kind = "sandbox_instance.provision"
    steps = (
        steps.create_sandbox,
        steps.start_agent_server,
        steps.find_preview,
        steps.check_health,
        steps.start_clone,
        steps.watch_clone,
        steps.check_out,
    )

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Create the sandbox."""
        return self._go(state, turn, steps.create_sandbox, Place(**place(state)))

    def _go(self, state: SandboxState, turn: Turn, step: Step[Any, Any], given: Value) -> Go:
        show(state, turn, PHASE_OF[step.name])
        return Go(step, given)

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """Go down the phases; the credential comes by a message in between."""
        row = state.sandbox
        here = Place(**place(state))
        match run.step:
            case "create-sandbox":
                row.provider_id, row.home, row.work_dir = (
                    result.provider_id,
                    result.home,
                    result.work_dir,
                )
                row.facts = {**row.facts, "provider_state": result.state}
                turn.keep_secret(state.token_secret, result.sealed_token)
                turn.put(row)
                return self._go(state, turn, steps.start_agent_server, here)
            case "start-agent-server":
                row.facts = {**row.facts, "provider_state": "started"}
                turn.put(row)
                return self._go(state, turn, steps.find_preview, here)
            case "find-preview":
                row.facts = {**row.facts, "preview_ok": True}
                turn.put(row)
                return self._go(state, turn, steps.check_health, here)
            case "check-health":
                row.facts = {
                    **row.facts,
                    "health_ok": True,
                    "checked_at": turn.now.isoformat(),
                }
                turn.put(row)
                return self._ask(state, turn)
            case "start-clone":
                return Go(
                    steps.watch_clone, WatchInput(**place(state), process_id=result.process_id)
                )
            case "watch-clone" if result.lost:
                return self._ask(state, turn)
            case "watch-clone" if not result.finished:
                show(state, turn, "cloning", detail=result.tail)
                return Go(steps.watch_clone, WatchInput.model_validate(run.step_input))
            case "watch-clone":
                return self._go(state, turn, steps.check_out, self.checkout(state))
            case _:
                show(state, turn, "checking_out", "done")
                row.state, row.run_id = "ready", None
                turn.put(row)
                for session in state.sessions.values():
                    if not session.agent_session_id and session.run_id is None:
                        session.run_id = turn.start(
                            OpenSession.kind, Opening(of=session.session_key)
                        )
                        turn.put(session)
                return Done()

    @staticmethod
    def _ask(state: SandboxState, turn: Turn) -> Wait:
        """Wait for a credential, with which to begin to clone."""
        show(state, turn, "cloning", detail="waiting for a credential")
        ask_credential(state, turn, purpose="clone", write=None)
        return Wait()

    def continue_with(self, state: SandboxState, secret_id: str) -> Go:
        """Return what follows when the credential is there."""
        return Go(
            steps.start_clone,
            CloneInput(
                **place(state),
                work_dir=state.sandbox.work_dir,
                clone_url=state.sandbox.clone_url,
                secret_id=secret_id,
            ),
        )

    @staticmethod
    def checkout(state: SandboxState) -> CheckoutInput:
        """Return what to check out."""
        row = state.sandbox
        owner = Person.model_validate(row.owner)
        return CheckoutInput(
            **place(state),
            work_dir=row.work_dir,
            branch=row.branch,
            base_branch=row.base_branch,
            author_name=owner.name or owner.login,
            author_email=owner.email or f"{owner.id}+{owner.login}@users.noreply.github.com",
        )

    def on_retry(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Show the attempt that failed."""
        show(
            state,
            turn,
            PHASE_OF[run.step],
            attempt=run.attempt + 1,
            detail=f"attempt {run.attempt} failed: {error.message}",
        )

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Show the failed phase; the run stays parked for a retry."""
        state.sandbox.state = "error"
        turn.put(state.sandbox)
        phase = "cloning" if run.step == "check-health" and run.parked else PHASE_OF[run.step]
        show(state, turn, phase, "failed", attempt=max(run.attempt, 1), error=error)

    def undone(self, state: SandboxState, run: Run, turn: Turn) -> None:
        """Nobody wanted it any more, and nothing of it is left; tell the task."""
        row = state.sandbox
        row.state, row.run_id = "deleted", None
        turn.put(row)
        turn.tell(row.task_key, SandboxEnded(state="deleted"))

    def on_undo_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """The run stays parked; the issue says that the sandbox may still be there."""
        state.sandbox.state = "error"
        turn.put(state.sandbox)


class Opening(Value):
    """Which session to open."""

    of: str


class OpenSession(Workflow[SandboxState]):
    """An agent behind the shim, with a session in the work tree."""

    kind = "sandbox_instance.open_session"
    input_type = Opening
    steps = (steps.open_agent_session,)

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Start the agent."""
        show(state, turn, "starting_session")
        return Go(steps.open_agent_session, agent_input(state, run.input.of))

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """Tell the session and the task."""
        session = opened(state, run.input.of, result, turn)
        session.run_id = None
        show(state, turn, "ready", "done")
        return Done()

    def on_retry(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Show the attempt that failed."""
        show(state, turn, "starting_session", attempt=run.attempt + 1, detail=error.message)

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Show it on the session and on the task; the run stays parked for a retry."""
        turn.tell(run.input.of, AgentSessionFailed(error=Trouble.of(error)))
        show(state, turn, "starting_session", "failed", attempt=run.attempt, error=error)


def agent_input(state: SandboxState, session_key: str) -> AgentInput:
    """Return which agent process and session this is."""
    session = state.sessions[session_key]
    return AgentInput(
        **place(state),
        server_id=session.server_id,
        agent=session.agent,
        work_dir=state.sandbox.work_dir,
        agent_session_id=session.agent_session_id,
    )


def opened(state: SandboxState, session_key: str, result: Any, turn: Turn) -> Any:
    """Remember an opened agent session, and tell the session."""
    session = state.sessions[session_key]
    session.agent_session_id = result.agent_session_id
    turn.put(session)
    turn.tell(
        session_key,
        AgentSessionOpened(
            server_id=session.server_id,
            agent_session_id=result.agent_session_id,
            modes=result.modes,
            models=result.models,
        ),
    )
    return session
