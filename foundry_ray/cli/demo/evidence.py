"""The steps of a demo: what was seen, how long it took, where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel

from foundry_ray.core.errors import FoundryError


class NotSeen(FoundryError):
    """What the step waited for did not come."""

    code = "not_seen"


class Step(BaseModel):
    """One step: its name, whether it was seen, and what was seen.

    Attributes:
        seconds: From the end of the step before to what was seen.
    """

    name: str
    ok: bool = False
    seconds: float = 0.0
    evidence: dict[str, Any] = {}


class Protocol(BaseModel):
    """What a whole demo saw."""

    ok: bool = False
    seconds: float = 0.0
    steps: list[Step] = []


class Recorder:
    """Runs steps one after the other and says each as soon as it was seen."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.protocol = Protocol()
        self._say = say
        self._began = time.monotonic()

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Run one step; what it raises ends the demo, after the line was said."""
        began = time.monotonic()
        step = Step(name=name)
        self.protocol.steps.append(step)
        try:
            yield step
            step.ok = True
        except FoundryError as trouble:
            step.evidence = {**step.evidence, "error": trouble.message, "code": trouble.code}
            raise
        finally:
            step.seconds = round(time.monotonic() - began, 3)
            self.protocol.seconds = round(time.monotonic() - self._began, 3)
            self._say(self._line(step))

    def finish(self) -> None:
        """Every step was seen."""
        self.protocol.ok = True
        self.protocol.seconds = round(time.monotonic() - self._began, 3)

    @staticmethod
    def _line(step: Step) -> str:
        seen = ", ".join(f"{key} {_short(value)}" for key, value in step.evidence.items())
        return f"{'ok  ' if step.ok else 'FAIL'} {step.seconds:6.2f} s  {step.name}: {seen}"


def _short(value: Any) -> str:
    text = " → ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 160 else text[:157] + "…"
