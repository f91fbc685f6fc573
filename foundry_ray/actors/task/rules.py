"""What a task decides; pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from foundry_ray.actors.task.messages import PhaseChanged, PhaseView, ProvisioningView
from foundry_ray.core.facts import PHASES


def status_of(life: str, provisioning: ProvisioningView, sessions: Iterable[str]) -> str:
    """Return the first status that holds (docs/reference/api.md)."""
    if life != "live":
        return life
    known = set(sessions)
    if provisioning.error is not None:
        return "error"
    if provisioning.phase != "ready":
        return "provisioning"
    if "error" in known:
        return "error"
    for status in ("needs_you", "running"):
        if status in known:
            return status
    return "ready"


def advance(before: ProvisioningView, event: PhaseChanged, now: datetime) -> ProvisioningView:
    """Return provisioning after an event: earlier phases are done, this one is as it says."""
    place = PHASES.index(event.phase)
    phases = []
    for index, phase in enumerate(before.phases):
        if index < place and phase.state != "done":
            phases.append(
                phase.model_copy(
                    update={
                        "state": "done",
                        "started_at": phase.started_at or now,
                        "ended_at": phase.ended_at or now,
                    }
                )
            )
        elif index == place:
            ended = event.state in ("done", "failed")
            phases.append(
                PhaseView(
                    name=phase.name,
                    state=event.state,
                    started_at=phase.started_at if phase.state == "running" else now,
                    ended_at=now if ended else None,
                    attempt=event.attempt,
                    detail=event.detail,
                )
            )
        elif index > place:
            phases.append(PhaseView(name=phase.name))
        else:
            phases.append(phase)
    return ProvisioningView(phase=event.phase, phases=phases, error=event.error)
