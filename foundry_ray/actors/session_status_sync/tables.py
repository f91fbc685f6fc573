"""What a status sync remembers: only which turn it reads; its place is the session's cursor."""

from __future__ import annotations

from dataclasses import dataclass

from foundry_ray.store.columns import StateRow
from foundry_ray.store.engine import Transaction


class SessionStatusSync(StateRow, table=True):
    """The agent turn that is being read."""

    __tablename__ = "session_status_sync"

    sandbox_key: str = ""
    server_id: str = ""
    message_id: str | None = None
    run_id: str | None = None


@dataclass
class SyncState:
    """The reader's state."""

    key: str
    row: SessionStatusSync | None

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> SyncState:
        """Read the state of one reader."""
        rows = await transaction.owned(SessionStatusSync, key)
        return cls(key, rows[0] if rows else None)
