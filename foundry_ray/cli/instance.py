"""A Foundry of its own for verbs that need one: started and ended by the command line itself."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from foundry_ray.core import settings as settings_module
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.settings import Settings


class Instance:
    """A Foundry with its local GitHub, in a data directory of its own.

    Args:
        data_dir: Where; made if it is not there.
        port: Of its edge.
        environment: What its processes get besides this process's environment.
    """

    def __init__(
        self, data_dir: Path, port: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = data_dir
        self._port = port
        self.environment = {**os.environ, **(environment or {})}

    @property
    def up(self) -> list[str]:
        """The command that starts it, and brings it back later."""
        return [
            *foundry(), "up", "--demo", "--data-dir", str(self.data_dir), "--port", str(self._port),
        ]  # fmt: skip

    @property
    def down(self) -> list[str]:
        """The command that ends it."""
        return [*foundry(), "down", "--data-dir", str(self.data_dir)]

    @property
    def settings(self) -> Settings:
        """Its settings, as its own processes read them."""
        return settings_module.load(
            self.data_dir, {**self.environment, "FOUNDRY_PORT": str(self._port)}
        )

    def start(self) -> Settings:
        """Start it; return when it is of use.

        Raises:
            Unavailable: It did not start; context ``log_tail`` has its words.
        """
        done = self._run([*self.up, "--detach"])
        if done.returncode != 0:
            raise Unavailable("Foundry did not start.", log_tail=done.stdout[-2000:])
        return self.settings

    def end(self) -> tuple[bool, list[str]]:
        """End it; return whether everything ended, and what was said."""
        done = self._run(self.down)
        return done.returncode == 0, done.stdout.strip().splitlines()

    def remove(self) -> None:
        """Remove what an ended Foundry leaves."""
        from foundry_ray.store.embedded import EmbeddedPostgres

        run_dir = self.settings.run_dir
        EmbeddedPostgres(self.data_dir).destroy()
        shutil.rmtree(run_dir)
        shutil.rmtree(self.data_dir)

    def _run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, env=self.environment, stdout=subprocess.PIPE, text=True, check=False
        )


def foundry() -> list[str]:
    """Return how this very command is called."""
    return [sys.executable, "-m", "foundry_ray.cli"]


def fresh(purpose: str) -> Path:
    """Return a new data directory beside the default one, so that runs do not meet."""
    default = settings_module.resolve_data_dir()
    return default.with_name(f"{default.name}-{purpose}") / f"{SystemClock().now():%Y%m%d-%H%M%S}"


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
