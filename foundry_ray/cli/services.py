"""The long-lived children of the node supervisor: how each is started, known ready and ended."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from foundry_ray.cli import ray_node
from foundry_ray.cli.processes import end, members
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.processes import ProcessRecord, is_still, look_at
from foundry_ray.core.settings import Settings
from foundry_ray.store.embedded import EmbeddedPostgres

LOG_LIMIT = 16 * 1024 * 1024  # bytes after which a log is put aside at the next start
_TAIL = 3000  # bytes of a log that an error shows


class Service(Protocol):
    """A child in a session of its own.

    Attributes:
        name: For people.
        leader: Its process, None before the first start.
        patience: Seconds that a start may take.
    """

    name: str
    leader: ProcessRecord | None
    patience: float

    @property
    def log(self) -> Path:
        """The file that holds its output."""

    def said(self) -> str:
        """Return the end of what it said since it was started."""

    def start(self) -> None:
        """Start it; whatever ran before has been ended."""

    def ready(self) -> bool:
        """Tell whether it is of use now; called again and again after a start."""

    def trouble(self) -> str:
        """Return what is wrong with a service that was ready; empty if nothing is."""

    def stop(self) -> list[ProcessRecord]:
        """End it and all of its session; return what would not end."""


class Launcher:
    """Starts children with the environment and the logs of one node.

    Args:
        environment: What every child gets.
        logs: Directory of the log files, made if absent.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self.environment = dict(environment)
        self._logs = logs
        self._began: dict[str, int] = {}
        logs.mkdir(mode=0o700, exist_ok=True)

    def log(self, name: str) -> Path:
        """Return the log file of the child called *name*."""
        return self._logs / f"{name}.log"

    def said(self, name: str) -> str:
        """Return the end of what the child called *name* said since it was started."""
        path = self.log(name)
        if name not in self._began:
            return ""
        with path.open("rb") as log:
            log.seek(max(self._began[name], path.stat().st_size - _TAIL))
            return log.read().decode(errors="replace").strip()

    def spawn(self, name: str, argv: list[str], **options: Any) -> ProcessRecord:
        """Start a child in a session of its own and return its record.

        Args:
            options: Of ``subprocess.Popen``, instead of the usual ones.

        Raises:
            Unavailable: It cannot be started, or ended at once.
        """
        usual = {"env": self.environment, "cwd": "/", "stdin": subprocess.DEVNULL}
        options = {**usual, **options, "start_new_session": True}
        path = self.log(name)
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))
        self._began[name] = path.stat().st_size if path.exists() else 0
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            try:
                child = subprocess.Popen(argv, stdout=log, stderr=log, **options)
            except OSError as error:
                raise Unavailable(f"{name} cannot be started: {error}") from error
        record = look_at(child.pid)
        # The supervisor waits for all of its children in one place; this object must not.
        child.returncode = 0
        if record is None:
            raise Unavailable(
                f"{name} ended at once", hint=f"read {path}", log_tail=self.said(name)
            )
        return record


def edge_url(settings: Settings) -> str:
    """Return how this machine reaches the edge, whatever others have to say."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def ask(url: str, timeout: float = 2.0) -> int:
    """Return the status with which *url* answers a GET; 0 if nobody answers in *timeout* s."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


class Postgres:
    """The embedded PostgreSQL."""

    name = "PostgreSQL"
    patience = 300.0  # a first start after a crash of a large database replays its log

    def __init__(self, settings: Settings, launcher: Launcher, url_file: Path) -> None:
        self.leader: ProcessRecord | None = None
        self._server = EmbeddedPostgres(
            settings.data_dir, environment={"FOUNDRY_INSTANCE_ID": settings.instance_id}
        )
        self._instance_id = settings.instance_id
        self._launcher = launcher
        self._url_file = url_file

    @property
    def log(self) -> Path:
        """The file that holds what the server says."""
        return self._launcher.log("postgres")

    @property
    def url(self) -> str:
        """Where it answers."""
        return self._server.url()

    def said(self) -> str:
        """Return the end of what it said since it was started."""
        return self._launcher.said("postgres")

    def start(self) -> None:
        """Prepare the data, write down the address for our own processes, start the server."""
        self._server.stop()  # one that a killed supervisor left behind and did not record
        command = self._server.prepare()
        _write_private(self._url_file, self._server.url())
        self.leader = self._launcher.spawn("postgres", command.argv, **command.popen_options())

    def ready(self) -> bool:
        """Tell whether it takes connections; makes the database the first time."""
        try:
            self._server.wait_ready(timedelta(0))
        except Unavailable:
            return False
        return True

    def trouble(self) -> str:
        """Return a word if its main process is gone; it looks after its own children."""
        return "" if self.leader is not None and is_still(self.leader) else "it ended"

    def stop(self) -> list[ProcessRecord]:
        """Let it end in order for 4 s, then at once; committed work is safe either way."""
        if self.leader is None:
            return []
        end([self.leader], grace=4.0, first=signal.SIGINT)
        return end(members(self.leader, self._instance_id), grace=0, first=signal.SIGKILL)


class Forge:
    """The local stand-in for GitHub that a demonstration talks to."""

    name = "local forge"
    patience = 30.0

    def __init__(self, settings: Settings, launcher: Launcher) -> None:
        self.leader: ProcessRecord | None = None
        self.url = ""
        self._settings = settings
        self._launcher = launcher

    @property
    def log(self) -> Path:
        """The file that holds its output."""
        return self._launcher.log("forge")

    def said(self) -> str:
        """Return the end of what it said since it was started."""
        return self._launcher.said("forge")

    def start(self) -> None:
        """Start it on its data directory, with webhooks to our edge."""
        settings = self._settings
        self.url = ""
        argv = [sys.executable, "-m", "foundry_ray.testing.forge"]
        argv += ["--data-dir", str(settings.data_dir), "--seed", "demo"]
        argv += ["--settings-file", str(settings.data_dir / "foundry.toml")]
        argv += ["--webhook-url", f"{edge_url(settings)}/webhooks/github"]
        self.leader = self._launcher.spawn("forge", argv)

    def ready(self) -> bool:
        """Tell whether it has printed its line of JSON with its address."""
        for line in self.said().splitlines():
            if line.startswith("{") and line.endswith("}"):
                self.url = str(json.loads(line).get("url") or self.url)
        return bool(self.url)

    def trouble(self) -> str:
        """Return a word if it is gone."""
        return "" if self.leader is not None and is_still(self.leader) else "it ended"

    def stop(self) -> list[ProcessRecord]:
        """End it and what it started."""
        return _stop_session(self.leader, self._settings.instance_id, grace=2.0)


class Ray:
    """The local Ray head: GCS, raylet, dashboard and every worker."""

    name = "Ray"
    patience = 60.0

    def __init__(self, settings: Settings, launcher: Launcher) -> None:
        self.leader: ProcessRecord | None = None
        self.plan: ray_node.RayPlan | None = None
        self._settings = settings
        self._launcher = launcher

    @property
    def log(self) -> Path:
        """The file that holds what ``ray start`` says; Ray's own logs are in its folder."""
        return self._launcher.log("ray")

    def said(self) -> str:
        """Return the end of what it said since it was started."""
        return self._launcher.said("ray")

    def start(self) -> None:
        """Start it on ports that are free now."""
        self.plan = ray_node.plan(self._settings, self._launcher.environment)
        self.leader = self._launcher.spawn("ray", self.plan.argv, env=self.plan.environment)

    def ready(self) -> bool:
        """Tell whether ``ray start`` has finished and what it started is there."""
        return self.plan is not None and self.plan.started and not self.trouble()

    def trouble(self) -> str:
        """Return which of its vital processes are gone."""
        if self.leader is None or not is_still(self.leader):
            return "it ended"
        gone = ray_node.missing(self.leader, self._settings.instance_id)
        return f"{' and '.join(gone)} ended" if gone else ""

    def stop(self) -> list[ProcessRecord]:
        """End every process of it."""
        if self.leader is None:
            return []
        return ray_node.stop(self.leader, self._settings.instance_id)


def _stop_session(
    leader: ProcessRecord | None, instance_id: str, *, grace: float
) -> list[ProcessRecord]:
    if leader is None:
        return []
    end([leader], grace=grace)
    return end(members(leader, instance_id), grace=0, first=signal.SIGKILL)


def _write_private(path: Path, text: str) -> None:
    if path.exists() and path.read_text() == text:
        return  # a server that ended because the disk is full comes back all the same
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    part.replace(path)
