"""Lets no more activations start on a node than it has room for, whichever process starts them.

Every process of the cluster starts activations: replicas, supervisors, activations. They count
what lives and start one more while they hold a lock of this machine, so that together they
never start too many. Roots need neither place nor lock: without them nothing moves.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import ray

from foundry_ray.core import keys

# A running step that hands something to an entity waits for it, and holds its own place
# meanwhile. So that not all of them wait for each other, this many may come on top.
FOR_STEPS = 2
FREE_ROOTS = 2  # `app` and one organization
# Seconds for which those who do not keep the queue start nothing after somebody had to wait.
RESERVED = 3.0
# A process that is stopped with the lock in its hand must not stop the node.
LOCK_PATIENCE = 10.0
NODES_KNOWN_FOR = 5.0  # seconds


def places(limit: int, roots: int) -> int:
    """Return how many activations besides the roots may live.

    `app` and one organization come on top of the limit. More organizations take places, but
    never more than half of them.
    """
    return max(limit - max(roots - FREE_ROOTS, 0), (limit + 1) // 2)


class Answer(Enum):
    """What the door says to who wants to start an activation."""

    ENTER = "enter"
    FULL = "full"
    SOON = "soon"  # somebody else is in the door


class Door:
    """The door of one process to its node.

    Args:
        path: The lock's file, the same for all processes of this machine.
        limit: Live activations per node.
        orderly: This process lets in by age (a supervisor does). When there is a queue,
            the others leave the free places to such a process.
    """

    def __init__(self, path: Path, limit: int, *, orderly: bool) -> None:
        self._path = path
        self._limit = limit
        self._orderly = orderly
        self._file: int | None = None
        self._asked_since = 0.0
        self._nodes = 1
        self._nodes_at = 0.0

    @property
    def orderly(self) -> bool:
        """Whether those who wait here wait in a queue."""
        return self._orderly

    def room(self, names: set[str]) -> int:
        """Return how many more activations may live besides those of *names*."""
        now = time.monotonic()
        if now - self._nodes_at > NODES_KNOWN_FOR:
            nodes = ray.nodes()  # type: ignore[no-untyped-call]
            self._nodes = max(1, sum(bool(node["Alive"]) for node in nodes))
            self._nodes_at = now
        below = sum(keys.root_of(name) != name for name in names)
        return places(self._limit * self._nodes, len(names) - below) - below

    @contextmanager
    def ask(self, names: Callable[[], set[str]], *, for_step: bool) -> Iterator[Answer]:
        """Ask to start one activation; whoever may enter starts it inside of this context.

        Args:
            names: Counts what lives; called while nobody else can start anything.
            for_step: A running step waits for it.
        """
        file = self._open()
        now = time.monotonic()
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked = False
            self._asked_since = self._asked_since or now
            if now - self._asked_since < LOCK_PATIENCE:
                yield Answer.SOON
                return
        self._asked_since = 0.0
        try:
            room = self.room(names()) + (FOR_STEPS if for_step else 0)
            if room <= 0:
                self._mark(file, 0 if self._orderly else 1 if for_step else None, now)
            theirs = not self._orderly and not for_step and self._marked(file, 0) > now
            yield Answer.FULL if room <= 0 or theirs else Answer.ENTER
        finally:
            if locked:
                fcntl.flock(file, fcntl.LOCK_UN)

    def step_waits(self) -> bool:
        """Return whether a running step found the node full, a moment ago."""
        return self._marked(self._open(), 1) > time.monotonic()

    def close(self) -> None:
        """Close the lock's file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._file

    # Two numbers in the file, on the clock that all processes of a machine share: until when
    # free places belong to the queues, and until when a step is known to wait.

    @staticmethod
    def _mark(file: int, place: int | None, now: float) -> None:
        if place is not None:
            os.pwrite(file, f"{now + RESERVED:15.3f}\n".encode(), place * 16)

    @staticmethod
    def _marked(file: int, place: int) -> float:
        text = os.pread(file, 16, place * 16).strip(b"\0 \n")
        return float(text) if text else 0.0
