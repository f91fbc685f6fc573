"""What others may say to the reader of a running agent turn."""

from __future__ import annotations

from typing import Literal

from foundry_ray.core.messages import Command


class FollowTurn(Command):
    """Read the journal from a sequence number on until the turn of ``message_id`` ends."""

    kind: Literal["session_status_sync.follow"] = "session_status_sync.follow"
    sandbox_key: str
    server_id: str
    from_seq: int
    message_id: str


class EndFollowing(Command):
    """The session is over; read no more."""

    kind: Literal["session_status_sync.end"] = "session_status_sync.end"
