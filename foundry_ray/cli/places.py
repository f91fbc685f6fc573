"""Where a node keeps its own files, and the lock that makes it the only one there."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Places:
    """Where a node keeps its own files below the data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.run = data_dir / "run"
        self.node_file = self.run / "processes.json"
        self.lock = self.run / "lock"
        self.pid_file = self.run / "foundry.pid"
        self.ray_environment = self.run / "ray.env"
        self.database_url = self.run / "database_url"
        self.logs = data_dir / "logs"
        self.sandboxes = data_dir / "sandboxes"
        self.forge = data_dir / "forge"


@contextmanager
def node_lock(places: Places) -> Iterator[bool]:
    """Try to be the one node of a data directory; the kernel frees the lock when we die.

    Yields whether we are.
    """
    places.run.mkdir(mode=0o700, exist_ok=True)
    with places.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
