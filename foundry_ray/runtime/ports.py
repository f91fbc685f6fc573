"""What the kernel needs from whoever places activations."""

from __future__ import annotations

from typing import Any, Protocol

from foundry_ray.core.messages import Message


class Waker(Protocol):
    """Finds or starts the activation of an entity, wherever it is.

    A ring may be lost: the mail was committed before, and the supervisor's sweep
    finds what is due.
    """

    def ring(self, key: str) -> None:
        """Say that mail has come; never waits (S25)."""

    async def answered(self, key: str, command_id: str) -> None:
        """Ring, and return when the entity has written the reply of *command_id*."""

    async def hand(self, key: str, message: Message) -> Any:
        """Give *message* directly to the activation of *key* and return its answer.

        For what is sent again from a committed cursor anyway (transcript batches):
        no mailbox row, but a fenced commit all the same.

        Raises:
            Unavailable: The activation ended meanwhile; hand it over again.
        """

    def end(self, key: str) -> None:
        """End an activation that does not move; the next ring starts a new one."""

    def drain(self, key: str) -> None:
        """Let an activation finish its turn and end, if there is one."""
