"""Reading one agent turn to its end."""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.session_status_sync import steps
from foundry_ray.actors.session_status_sync.steps import FollowInput
from foundry_ray.actors.session_status_sync.tables import SyncState
from foundry_ray.actors.task_session.messages import TurnLost
from foundry_ray.core import keys
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.messages import Value
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Run, Workflow


class Following(Value):
    """Which turn, from where."""

    sandbox_key: str
    server_id: str
    from_seq: int
    message_id: str


class Follow(Workflow[SyncState]):
    """The journal of one agent turn in the session's transcript."""

    kind = "session_status_sync.follow"
    input_type = Following
    steps = (steps.follow_journal,)

    def begin(self, state: SyncState, run: Run, turn: Turn) -> Next:
        """Read from the session's cursor."""
        return self._go(state, run, run.input.from_seq)

    @staticmethod
    def _go(state: SyncState, run: Run, from_seq: int) -> Go:
        return Go(
            steps.follow_journal,
            FollowInput(
                session_key=keys.parent_of(state.key) or "",
                sandbox_key=run.input.sandbox_key,
                server_id=run.input.server_id,
                from_seq=from_seq,
            ),
        )

    def next(self, state: SyncState, run: Run, result: Any, turn: Turn) -> Next:
        """Go on, or end; a lost agent is the session's to decide."""
        if result.lost:
            turn.tell(keys.parent_of(state.key) or "", TurnLost(message_id=run.input.message_id))
        elif not result.ended:
            return self._go(state, run, result.next_seq)
        self._over(state, turn)
        return Done()

    @staticmethod
    def _over(state: SyncState, turn: Turn) -> None:
        if state.row is not None:
            state.row.run_id = state.row.message_id = None
            turn.put(state.row)

    def on_error(self, state: SyncState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Tell the session that its agent cannot be read; it sends the prompt again."""
        turn.tell(keys.parent_of(state.key) or "", TurnLost(message_id=run.input.message_id))
        self._over(state, turn)
        turn.cancel(run.id)
