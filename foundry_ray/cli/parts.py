"""The parts of a node that the supervisor watches: what each does, since when, how often anew."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from foundry_ray.core.clock import Clock

PartState = Literal["starting", "running", "away"]


class Part(BaseModel):
    """One part as `status` shows it.

    Attributes:
        since: When it came into this state.
        restarts: How often it came back during this run of the node.
        trouble: Why it was away the last time; empty if it never was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    state: PartState
    since: AwareDatetime
    restarts: int = 0
    trouble: str = ""


class Parts:
    """What the supervisor knows of the parts, in the order in which it came to know them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, Part] = {}
        self._ran: set[str] = set()

    def mark(self, name: str, state: PartState, trouble: str = "") -> None:
        """Note what a part does now, and why, if something is wrong."""
        before = self._known.get(name) or Part(name=name, state=state, since=self._clock.now())
        moved = before.state != state
        back = moved and state == "running" and name in self._ran
        if state == "running":
            self._ran.add(name)
        self._known[name] = Part(
            name=name,
            state=state,
            since=self._clock.now() if moved else before.since,
            restarts=before.restarts + back,
            trouble=trouble or before.trouble,
        )

    def all(self) -> tuple[Part, ...]:
        """Return all of them."""
        return tuple(self._known.values())
