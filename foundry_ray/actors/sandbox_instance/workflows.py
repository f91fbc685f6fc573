"""The order of what is done in a sandbox."""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.github_state.messages import MintCredential
from foundry_ray.actors.sandbox_instance import steps
from foundry_ray.actors.sandbox_instance.messages import TakeChanges
from foundry_ray.actors.sandbox_instance.steps import (
    AgentInput,
    AnswerInput,
    ChangesInput,
    CheckoutInput,
    CloneInput,
    Place,
    PromptInput,
    PushInput,
    SessionInput,
    WatchInput,
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
    AgentSessionFailed,
    AgentSessionOpened,
    PromptDelivered,
    PromptFailed,
)
from foundry_ray.core import keys
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.facts import Phase, PhaseState, Trouble
from foundry_ray.core.messages import Person, Value
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Nothing, Run, Step, Wait, Workflow

# What each step of provisioning is called for people (S37).
PHASE_OF: dict[str, Phase] = {
    "create-sandbox": "creating_sandbox",
    "start-agent-server": "starting_agent_server",
    "find-preview": "waiting_preview",
    "check-health": "waiting_health",
    "start-clone": "cloning",
    "watch-clone": "cloning",
    "check-out": "checking_out",
    "open-agent-session": "starting_session",
}
# A retry of these asks for a new credential first: the old one may have expired.
NEEDS_CREDENTIAL = ("start-clone", "watch-clone", "check-out")


def place(state: SandboxState) -> dict[str, str]:
    """Return which sandbox this is, as every step's input begins."""
    return {"provider": state.sandbox.provider, "sandbox_id": state.sandbox_id}


def show(
    state: SandboxState,
    turn: Turn,
    phase: Phase,
    phase_state: PhaseState = "running",
    *,
    attempt: int = 1,
    detail: str = "",
    error: FoundryError | None = None,
) -> None:
    """Tell the task where provisioning is (S37)."""
    turn.tell(
        state.sandbox.task_key,
        PhaseChanged(
            phase=phase,
            state=phase_state,
            attempt=attempt,
            detail=detail,
            error=Trouble.of(error) if error else None,
        ),
    )


def ask_credential(state: SandboxState, turn: Turn, *, purpose: str, write: Person | None) -> None:
    """Ask the organization's GitHub state for a git credential (S19)."""
    turn.tell(
        keys.github(keys.organization_id(state.key)),
        MintCredential(
            repository_id=state.sandbox.repository_id,
            access="write" if write else "read",
            person=write or Person.model_validate(state.sandbox.owner),
            reply_to=state.key,
            purpose=purpose,
        ),
    )


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
                show(state, turn, "cloning", detail="waiting for a credential")
                ask_credential(state, turn, purpose="clone", write=None)
                return Wait()
            case "start-clone":
                return Go(
                    steps.watch_clone, WatchInput(**place(state), process_id=result.process_id)
                )
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


class Delivery(Value):
    """Which message goes to which session."""

    of: str
    message_id: str
    text: str


class Deliver(Workflow[SandboxState]):
    """A message in the agent's journal; the agent is brought back if it is gone."""

    kind = "sandbox_instance.deliver"
    input_type = Delivery
    steps = (
        steps.send_prompt,
        steps.start_agent_server,
        steps.check_health,
        steps.open_agent_session,
    )

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Try the agent that is there."""
        return self._send(state, run)

    def _send(self, state: SandboxState, run: Run) -> Go:
        session = state.sessions[run.input.of]
        return Go(
            steps.send_prompt,
            PromptInput(
                **place(state),
                server_id=session.server_id,
                agent_session_id=session.agent_session_id,
                message_id=run.input.message_id,
                text=run.input.text,
            ),
        )

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """Revive what is gone, then send again with the same message id."""
        here = Place(**place(state))
        match run.step:
            case "send-prompt" if result.delivered:
                turn.tell(run.input.of, PromptDelivered(message_id=run.input.message_id))
                return Done()
            case "send-prompt":
                return Go(steps.start_agent_server, here)
            case "start-agent-server":
                return Go(steps.check_health, here)
            case "check-health":
                return Go(steps.open_agent_session, agent_input(state, run.input.of))
            case _:
                opened(state, run.input.of, result, turn)
                return self._send(state, run)

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Tell the session; it decides whether to send again."""
        turn.tell(
            run.input.of,
            PromptFailed(message_id=run.input.message_id, error=Trouble.of(error)),
        )
        turn.cancel(run.id)


class Cancelling(Value):
    """Which session's turn to cancel."""

    of: str


class Cancel(Workflow[SandboxState]):
    """A cancelled agent turn."""

    kind = "sandbox_instance.cancel"
    input_type = Cancelling
    steps = (steps.cancel_prompt,)

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Ask the agent."""
        session = state.sessions[run.input.of]
        return Go(
            steps.cancel_prompt,
            SessionInput(
                **place(state),
                server_id=session.server_id,
                agent_session_id=session.agent_session_id,
            ),
        )

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """The journal tells how the turn ended."""
        return Done()

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """The stop can be asked for again; the issue says that this one failed."""
        turn.cancel(run.id)


class Answering(Value):
    """Which answer to which request."""

    of: str
    rpc_id: str | int
    option_id: str | None


class Answer(Workflow[SandboxState]):
    """An answered permission request."""

    kind = "sandbox_instance.answer"
    input_type = Answering
    steps = (steps.answer_agent,)

    def begin(self, state: SandboxState, run: Run, turn: Turn) -> Next:
        """Give the agent its answer."""
        return Go(
            steps.answer_agent,
            AnswerInput(
                **place(state),
                server_id=state.sessions[run.input.of].server_id,
                rpc_id=run.input.rpc_id,
                option_id=run.input.option_id,
            ),
        )

    def next(self, state: SandboxState, run: Run, result: Any, turn: Turn) -> Next:
        """The agent goes on by itself."""
        return Done()

    def on_error(self, state: SandboxState, run: Run, error: FoundryError, turn: Turn) -> None:
        """The agent waits on; the issue says why, and a stop ends the turn."""
        turn.cancel(run.id)


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
