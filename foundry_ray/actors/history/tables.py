"""What a history remembers: everything, for ever."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from foundry_ray.store.columns import instant, json_field


class HistoryEvent(SQLModel, table=True):
    """One thing that happened."""

    __tablename__ = "history_event"

    actor_key: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    at: datetime = instant()
    actor: dict[str, Any] = json_field()
    kind: str
    repository_id: str
    task_id: str | None = Field(default=None, index=True)
    summary: str
    data: dict[str, Any] = json_field()

    def represent(self) -> dict[str, Any]:
        """Return the event as clients see it."""
        return {
            "id": self.id,
            "at": self.at.isoformat(),
            "actor": {k: self.actor.get(k, "") for k in ("kind", "id", "login")},
            "kind": self.kind,
            "repository_id": self.repository_id,
            "task_id": self.task_id,
            "summary": self.summary,
            "data": self.data,
        }
