"""What others may say to a repository's history."""

from __future__ import annotations

from typing import Any, Literal

from foundry_ray.core.messages import Event, Person


class RecordEvent(Event):
    """Something worth remembering happened: who, what, to which task."""

    kind: Literal["history.record"] = "history.record"
    actor: Person
    what: str
    task_id: str | None = None
    summary: str
    data: dict[str, Any] = {}
