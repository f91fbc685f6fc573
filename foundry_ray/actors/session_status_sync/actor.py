"""Session status sync: reads one running agent turn and feeds its session (S6).

Key ``…/session/<id>/status-sync``; it exists only while a turn runs.
"""

from __future__ import annotations

from datetime import timedelta

from foundry_ray.actors.session_status_sync.messages import EndFollowing, FollowTurn
from foundry_ray.actors.session_status_sync.tables import SessionStatusSync, SyncState
from foundry_ray.actors.session_status_sync.workflows import Follow, Following
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.store.engine import Transaction


class SessionStatusSyncActor(Actor[SyncState]):
    """The reader of one session's running turn."""

    actor_type = "session_status_sync"
    idle_after = timedelta(minutes=5)
    tables = (SessionStatusSync,)
    workflows = (Follow,)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> SyncState:
        """Read the state of one reader."""
        return await SyncState.load(transaction, key)

    @handles
    def follow(self, command: FollowTurn, turn: Turn) -> None:
        """Read a turn; repeated for the same turn while it is read, it changes nothing."""
        row = self.state.row
        if row is None:
            row = SessionStatusSync(
                actor_key=self.key, revision=0, created_at=turn.now, updated_at=turn.now
            )
            self.state.row = row
        if turn.run(row.run_id) is not None:
            if row.message_id == command.message_id:
                return
            turn.cancel(row.run_id)
        row.sandbox_key, row.server_id = command.sandbox_key, command.server_id
        row.message_id = command.message_id
        row.run_id = turn.start(
            Follow.kind,
            Following(
                sandbox_key=command.sandbox_key,
                server_id=command.server_id,
                from_seq=command.from_seq,
                message_id=command.message_id,
            ),
        )
        turn.put(row)

    @handles
    def end(self, command: EndFollowing, turn: Turn) -> None:
        """Read no more."""
        row = self.state.row
        if row is not None:
            turn.cancel(row.run_id)
            row.run_id = row.message_id = None
            turn.put(row)
