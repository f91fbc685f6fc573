"""What the kernel needs from whoever places activations."""

from __future__ import annotations

from typing import Any, Protocol

from foundry_ray.core.messages import Message


class Meter(Protocol):
    """Counts what the kernel does, for operators. Never by entity: only by kind and result.

    A result is ``done``, ``refused`` (a command's error is its answer), ``again`` (it failed
    and is tried later) or ``parked`` (its attempts are used up). Times are in seconds.
    """

    def turn(self, kind: str, result: str, seconds: float, waited: float) -> None:
        """A message was handled, in so long, after it had been due for so long."""

    def step(self, kind: str, result: str, seconds: float) -> None:
        """A step's work ended, after so long."""

    def live(self, kind: str, change: int) -> None:
        """An activation of this kind began (1) or ended (-1) in this process."""


class Unmetered:
    """Counts nothing: where nobody reads it."""

    def turn(self, kind: str, result: str, seconds: float, waited: float) -> None:
        """Count nothing."""

    def step(self, kind: str, result: str, seconds: float) -> None:
        """Count nothing."""

    def live(self, kind: str, change: int) -> None:
        """Count nothing."""


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
