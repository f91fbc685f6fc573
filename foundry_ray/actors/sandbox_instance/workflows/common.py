"""What the workflows of a sandbox share."""

from __future__ import annotations

from foundry_ray.actors.github_state.messages import MintCredential
from foundry_ray.actors.sandbox_instance.tables import SandboxState
from foundry_ray.actors.task.messages import (
    PhaseChanged,
)
from foundry_ray.core import keys
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.facts import Phase, PhaseState, Trouble
from foundry_ray.core.messages import Person
from foundry_ray.runtime.turn import Turn

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
