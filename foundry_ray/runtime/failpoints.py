"""Stops a process at a named point of the kernel, so that it can be killed exactly there.

For chaos runs only: they set ``FOUNDRY_FAILPOINTS_DIR``, and put traps into that folder. The
first process that passes a point which a trap names takes the trap away (a rename, so only one
does), writes down who and where it is, and waits there until it is let go, or dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from foundry_ray.core import keys
from foundry_ray.core.ids import new_id
from foundry_ray.runtime import host

HOLD = 3.0  # seconds that a process waits at most; a forgotten trap must not stop the world
_LOOK = 0.002  # seconds


class Trap(BaseModel):
    """What is waited for: any of these points, passed by an entity of any of these kinds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    points: tuple[str, ...]
    kinds: tuple[str, ...]


class Caught(BaseModel):
    """Who waits at a point.

    Attributes:
        started: Start time of the process in clock ticks since boot.
        until: When it goes on by itself, by the machine's monotonic clock.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started: int
    key: str
    point: str
    until: float

    @property
    def is_held(self) -> bool:
        """Whether it lives and still waits."""
        return time.monotonic() < self.until and host.started(self.pid) == self.started


class Failpoints:
    """The process's side: call it with the name of each point that is passed.

    Args:
        folder: Where the traps are.
        key: Of the entity that lives in this process.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key
        self._kind = keys.kind_of(key)

    def __call__(self, point: str) -> None:
        """Wait here if a trap says so; it blocks the whole process, as a stop would."""
        for path in self._folder.glob("*.trap"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                trap = Trap.model_validate_json(path.read_bytes())
                if point in trap.points and self._kind in trap.kinds:
                    path.rename(path.with_suffix(".taken"))
                    self._wait(path.with_suffix(".caught"), point)

    def _wait(self, path: Path, point: str) -> None:
        here = host.here()
        until = time.monotonic() + HOLD
        caught = Caught(pid=here.pid, started=here.started, key=self._key, point=point, until=until)
        _write(path, caught.model_dump_json())
        while path.exists() and time.monotonic() < until:
            time.sleep(_LOOK)


class Snare:
    """The other side: one trap, from its setting to the release of who was caught.

    Args:
        folder: Where the processes look for traps.
    """

    def __init__(self, folder: Path, points: Sequence[str], kinds: Sequence[str]) -> None:
        self._folder = folder
        self._trap = Trap(id=new_id(), points=tuple(points), kinds=tuple(kinds))

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._trap.id}.{suffix}"

    def __enter__(self) -> Self:
        """Set the trap."""
        _write(self._path("trap"), self._trap.model_dump_json())
        return self

    def __exit__(self, *_: object) -> None:
        """Take the trap away and let go who was caught."""
        for suffix in ("trap", "taken", "caught"):
            self._path(suffix).unlink(missing_ok=True)

    def caught(self) -> Caught | None:
        """Return who was caught; None if nobody was yet."""
        try:
            return Caught.model_validate(json.loads(self._path("caught").read_bytes()))
        except FileNotFoundError:
            return None


def _write(path: Path, text: str) -> None:
    """Write a file that is seen whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)
