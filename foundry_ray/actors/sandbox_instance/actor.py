"""Sandbox instance: owns one sandbox, from its first start to its destruction.

Key ``org/<org>/sandbox/<provider>/<id>``. Every write into the sandbox is a step
here, told by task and sessions; the status sync only reads.
"""

from __future__ import annotations

from datetime import timedelta

from foundry_ray.actors.sandbox_instance.messages import (
    AnswerAgent,
    CancelPrompt,
    CredentialReady,
    CredentialRefused,
    DeleteSandbox,
    DeliverPrompt,
    OpenAgentSession,
    ProvisionSandbox,
    PushBranch,
    RetrySandbox,
    StopSandbox,
    TakeChanges,
)
from foundry_ray.actors.sandbox_instance.tables import (
    SandboxInstance,
    SandboxInstanceSession,
    SandboxState,
)
from foundry_ray.actors.sandbox_instance.workflows import (
    NEEDS_CREDENTIAL,
    Answer,
    Answering,
    Cancel,
    Cancelling,
    Compare,
    Deliver,
    Delivery,
    End,
    EndSandbox,
    Opening,
    OpenSession,
    Provision,
    Pushing,
    PushOut,
    ask_credential,
    show,
)
from foundry_ray.core import keys
from foundry_ray.core.errors import FoundryError, Internal, Unavailable, family
from foundry_ray.core.facts import Trouble
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Nothing, Wait
from foundry_ray.store.engine import Transaction


class SandboxInstanceActor(Actor[SandboxState]):
    """Provisions the sandbox, drives agents in it, runs git in it, and ends it."""

    actor_type = "sandbox_instance"
    idle_after = timedelta(minutes=5)
    tables = (SandboxInstance, SandboxInstanceSession)
    workflows = (
        Provision,
        OpenSession,
        Deliver,
        Cancel,
        Answer,
        Compare,
        PushOut,
        EndSandbox,
    )

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> SandboxState:
        """Read the state of one sandbox."""
        return await SandboxState.load(transaction, key)

    @handles
    def provision(self, command: ProvisionSandbox, turn: Turn) -> None:
        """Begin to make the sandbox; repeated, it changes nothing."""
        if self.state.row is not None:
            return
        row = SandboxInstance(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            provider=self.key.split("/")[3],
            task_key=command.task_key,
            repository_id=keys.repository_id(command.task_key),
            clone_url=command.clone_url,
            branch=command.branch,
            base_branch=command.on_branch or command.base_branch,
            owner=command.owner.model_dump(mode="json"),
            state="provisioning",
            facts={},
        )
        self.state.row = row
        row.run_id = turn.start(Provision.kind, Nothing())
        turn.put(row)

    @handles
    def retry(self, command: RetrySandbox, turn: Turn) -> None:
        """Begin parked work again at its failed step; without any, nothing happens."""
        row = self.state.sandbox
        if command.branch is not None:
            row.branch = command.branch
        run = turn.run(row.run_id)
        if run is not None and run.parked:
            row.state = "provisioning"
            if run.step in NEEDS_CREDENTIAL:
                show(self.state, turn, "cloning", detail="waiting for a credential")
                ask_credential(self.state, turn, purpose="clone", write=None)
                turn.go(run.id, Wait())
            else:
                turn.retry(run.id)
        for session in self.state.sessions.values():
            opening = turn.run(session.run_id)
            if opening is not None and opening.parked:
                show(self.state, turn, "starting_session")
                turn.retry(opening.id)
        turn.put(row)

    @handles
    def open_agent_session(self, command: OpenAgentSession, turn: Turn) -> None:
        """Open an agent session now, or as soon as the work tree is there."""
        if command.session_key in self.state.sessions:
            return
        session = SandboxInstanceSession(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            session_key=command.session_key,
            agent=command.agent,
            server_id=keys.last_id(command.session_key),
        )
        self.state.sessions[command.session_key] = session
        if self.state.row is not None and self.state.row.state == "ready":
            session.run_id = turn.start(OpenSession.kind, Opening(of=command.session_key))
        turn.put(session)

    @handles
    def deliver_prompt(self, command: DeliverPrompt, turn: Turn) -> None:
        """Give an agent a message; the shim sees to it that it comes only once."""
        turn.start(
            Deliver.kind,
            Delivery(of=command.session_key, message_id=command.message_id, text=command.text),
        )

    @handles
    def cancel_prompt(self, command: CancelPrompt, turn: Turn) -> None:
        """Ask the agent to end its turn."""
        if command.session_key in self.state.sessions:
            turn.start(Cancel.kind, Cancelling(of=command.session_key))

    @handles
    def answer_agent(self, command: AnswerAgent, turn: Turn) -> None:
        """Answer a permission request."""
        turn.start(
            Answer.kind,
            Answering(of=command.session_key, rpc_id=command.rpc_id, option_id=command.option_id),
        )

    @handles
    def take_changes(self, command: TakeChanges, turn: Turn) -> None:
        """Compare the branch with its merge base; askers while it runs share one more."""
        row = self.state.sandbox
        if row.state != "ready":
            return
        if turn.run(row.changes_run_id) is not None:
            row.changes_wanted = True
        else:
            row.changes_run_id = turn.start(Compare.kind, Nothing())
        turn.put(row)

    @handles
    def push(self, command: PushBranch, turn: Turn) -> None:
        """Push the branch; one push at a time, a second asker shares it."""
        row = self.state.sandbox
        if turn.run(row.push_run_id) is None:
            row.push_run_id = turn.start(PushOut.kind, Pushing(by=command.by))
            turn.put(row)

    @handles
    def credential_ready(self, event: CredentialReady, turn: Turn) -> None:
        """Go on with what waited for a credential."""
        row = self.state.sandbox
        if event.purpose == "clone":
            run = turn.run(row.run_id)
            if run is not None and not run.undoing:
                show(self.state, turn, "cloning")
                turn.go(run.id, Provision().continue_with(self.state, event.secret_id))
        elif row.push_run_id is not None and event.purpose == f"push/{row.push_run_id}":
            turn.go(row.push_run_id, PushOut().continue_with(self.state, event.secret_id))

    @handles
    def credential_refused(self, event: CredentialRefused, turn: Turn) -> None:
        """Fail what waited for a credential."""
        row = self.state.sandbox
        error = _error(event.error)
        if event.purpose == "clone" and row.run_id is not None:
            turn.fail(row.run_id, error)
        elif row.push_run_id is not None and event.purpose == f"push/{row.push_run_id}":
            turn.fail(row.push_run_id, error)

    @handles
    def stop(self, command: StopSandbox, turn: Turn) -> None:
        """End the processes and keep the files; what is half made is destroyed."""
        self._end(turn, delete=False)

    @handles
    def delete(self, command: DeleteSandbox, turn: Turn) -> None:
        """Destroy the sandbox."""
        self._end(turn, delete=True)

    def _end(self, turn: Turn, *, delete: bool) -> None:
        row = self.state.row
        if row is None:
            raise Unavailable("The sandbox is not asked for yet; its end is tried again.")
        for run in turn.runs():
            if run.kind not in (Provision.kind, EndSandbox.kind):
                turn.cancel(run.id)
        row.push_run_id = row.changes_run_id = None
        making = turn.run(row.run_id)
        if making is None:
            turn.start(EndSandbox.kind, End(delete=delete))
        elif making.undoing and making.parked:
            turn.retry(making.id)
        else:
            turn.undo(making.id)  # nothing in a half-made sandbox is worth keeping
        turn.put(row)


def _error(trouble: Trouble) -> FoundryError:
    cls = family().get(trouble.code, Internal)
    return cls(trouble.message, hint=trouble.hint, log_tail=trouble.log_tail)
