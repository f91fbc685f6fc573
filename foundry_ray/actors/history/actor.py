"""History: what happened in one repository, append-only (S11).

Key ``org/<org>/repo/<repo>/history``.
"""

from __future__ import annotations

from datetime import timedelta

from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.actors.history.tables import HistoryEvent
from foundry_ray.core import keys, topics
from foundry_ray.core.ids import new_id
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.store.engine import Transaction


class HistoryActor(Actor[None]):
    """Writes what it is told; readers use SQL."""

    actor_type = "history"
    idle_after = timedelta(minutes=10)
    tables = (HistoryEvent,)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> None:
        """Nothing is kept in memory."""

    @handles
    def record(self, event: RecordEvent, turn: Turn) -> None:
        """Append one event."""
        row = HistoryEvent(
            actor_key=self.key,
            id=new_id(),
            at=turn.now,
            actor=event.actor.model_dump(mode="json", include={"kind", "id", "login"}),
            kind=event.what,
            repository_id=keys.repository_id(self.key),
            task_id=event.task_id,
            summary=event.summary,
            data=event.data,
        )
        turn.insert(row)
        turn.publish(topics.repository(self.key), "history", row.id, 1, row.represent())
