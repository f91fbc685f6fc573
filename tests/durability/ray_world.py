"""The test's side of Rays on this machine, and of what a witnessed database saw."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from foundry_ray.cli.chaos.history import Operation
from foundry_ray.cli.processes import carrying, send, title, wait_gone
from foundry_ray.cli.ray_node import PRELOADED
from foundry_ray.core import settings
from foundry_ray.core.ids import new_id
from foundry_ray.runtime import host
from foundry_ray.store.embedded import EmbeddedPostgres
from tests.conftest import TEMPLATE
from tests.durability.history import History
from tests.integration.every_message.world import bring_witness

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds
LOOPBACK = "127.0.0.1"


class RayWorld:
    """A Ray of several nodes with a database, of which a program of its own takes orders."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        nodes: int,
        *,
        ip: str = LOOPBACK,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        (folder / "ray").mkdir(exist_ok=True)
        token = folder / "token"
        if not token.exists():
            token.write_text(secrets.token_hex(32))
            token.chmod(0o600)
        self.settings = settings.load(folder / "data", {})
        self.instance = self.settings.instance_id
        self.environment = {
            **os.environ,
            "FOUNDRY_DATA_DIR": str(folder / "data"),
            "FOUNDRY_DATABASE_URL": database_url,
            "FOUNDRY_IDLE_AFTER": "1",
            "FOUNDRY_INSTANCE_ID": self.instance,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": str(folder),  # `Cluster` notes its address there, for all to see
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_preload_python_modules": PRELOADED,
            **(more or {}),
        }
        if ip == LOOPBACK:
            self.environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        with (folder / "program.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.durability.ray_program", str(nodes), str(folder), ip],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._answers: dict[int, dict[str, Any]] = {}
        self._told = threading.Condition()
        self._number = 0
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.where: dict[str, Any] = {}

    def ready(self) -> RayWorld:
        """Wait until Ray and the program have started."""
        self.where = self._await(0)
        return self

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            with self._told:
                self._answers[said["id"]] = said
                self._told.notify_all()
        with self._told:
            self._told.notify_all()  # it has ended

    def _await(self, number: int) -> Any:
        with self._told:
            self._told.wait_for(
                lambda: number in self._answers or self._process.poll() is not None, PATIENCE
            )
            assert number in self._answers, (self.folder / "program.log").read_text()[-4000:]
            said = self._answers.pop(number)
        assert "error" not in said, said
        return said["answer"]

    def send(self, verb: str, **told: Any) -> int:
        """Give an order; return its number."""
        assert self._process.stdin is not None
        self._number += 1
        order = json.dumps({"id": self._number, "verb": verb, **told})
        self._process.stdin.write(order.encode() + b"\n")
        self._process.stdin.flush()
        return self._number

    async def do(self, verb: str, **told: Any) -> Any:
        """Give an order and return what was answered."""
        return await asyncio.to_thread(self._await, self.send(verb, **told))

    @property
    def history(self) -> History:
        """What the clients did and were told, as they wrote it down."""
        operations: dict[str, Operation] = {}
        journal = self.folder / "operations.jsonl"
        for line in journal.read_bytes().splitlines() if journal.exists() else ():
            operation = Operation(**json.loads(line))
            operations[operation.word] = operation
        return History(list(operations.values()))

    def raylet_of(self, pid: int) -> int:
        """Return the raylet that is the parent of a worker; 0 if the worker is gone."""
        try:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return 0

    def hosts(self, pid: int) -> bool:
        """Return whether a process is one of this Ray."""
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"FOUNDRY_INSTANCE_ID={self.instance}".encode() in environ.split(b"\0")

    def kill_all(self) -> Counter[str]:
        """Send SIGKILL to every process of it; return how many there were of each kind."""
        killed: Counter[str] = Counter()
        while left := carrying(self.instance):
            killed.update(title(record.pid).split("(")[0] for record in left)
            for record in left:
                send(record, signal.SIGKILL)
            wait_gone(left, 10)
            self._process.poll()
        self._process.wait(10)
        return killed

    def destroy(self) -> None:
        """End it and remove what lies outside its folder."""
        self.kill_all()
        self._listener.join(10)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        shutil.rmtree(self.settings.run_dir, ignore_errors=True)


@contextmanager
def rays() -> Iterator[Path]:
    """Give a short folder for Rays: their sockets have long names."""
    folder = Path(tempfile.mkdtemp(prefix="fr-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def witnessed_database(postgres: EmbeddedPostgres) -> str:
    """Return the URL of a new database, migrated, that writes down each change of a row."""
    name = f"test_{new_id()}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
    bring_witness(postgres.url(name))
    return postgres.url(name)


# -- what the database saw -----------------------------------------------------------------


class Witness:
    """Reads a database in which `bring_witness` left its triggers."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, statement: str, *given: Any) -> list[dict[str, Any]]:
        """Ask the database."""
        with psycopg.connect(self._url, row_factory=dict_row, autocommit=True) as connection:
            return connection.execute(statement.encode(), given).fetchall()

    def entity(self, key: str) -> dict[str, Any]:
        """Return an entity's row; zeros for one that never lived."""
        found = self.query("SELECT epoch, revision, host FROM rt_entity WHERE key = %s", key)
        return found[0] if found else {"epoch": 0, "revision": 0, "host": None}

    def pid(self, key: str) -> int:
        """Return the process in which an entity lives; 0 if it lives nowhere."""
        where = self.entity(key)["host"]
        return 0 if where is None or host.proven_gone(where) else int(where["pid"])

    def consumed(self, marker: str) -> list[dict[str, Any]]:
        """Return the epoch and host of each commit that took the message with this marker."""
        return self.query(
            "SELECT (e.new ->> 'epoch')::int AS epoch, e.new -> 'host' AS host"
            " FROM witness m JOIN witness e ON e.xid = m.xid AND e.name = 'rt_entity'"
            " WHERE m.name = 'rt_mailbox' AND m.new IS NULL"
            " AND m.old -> 'body' -> 'failure' ->> 'message' = %s",
            marker,
        )

    def words(self, target: str) -> list[str]:
        """Return what was written into a history, in the order of the commits."""
        rows = self.query(
            "SELECT new ->> 'summary' AS word FROM witness WHERE name = 'history_event'"
            " AND old IS NULL AND new ->> 'actor_key' = %s ORDER BY id",
            target,
        )
        return [row["word"] for row in rows]

    def lease(self) -> str:
        """Return which cluster may activate."""
        return str(self.query("SELECT holder FROM rt_cluster")[0]["holder"])

    def waiting(self) -> int:
        """Return how much due mail waits."""
        [row] = self.query(
            "SELECT count(*) AS number FROM rt_mailbox WHERE parked_at IS NULL AND due_at <= now()"
        )
        return int(row["number"])

    def commits(self) -> list[dict[str, Any]]:
        """Return every commit of every activation in their order: key, epoch, host."""
        return self.query(
            "SELECT new ->> 'key' AS key, (new ->> 'epoch')::int AS epoch,"
            " (new -> 'host' ->> 'pid')::int AS pid FROM witness WHERE name = 'rt_entity'"
            " AND (new ->> 'revision')::int = (old ->> 'revision')::int + 1 ORDER BY id"
        )

    def check_one_at_a_time(self) -> dict[str, int]:
        """See that no activation committed after a newer one had, and each epoch had one host.

        Returns:
            How many commits and epochs were looked at.
        """
        newest: dict[str, int] = {}
        homes: dict[tuple[str, int], set[int]] = {}
        commits = self.commits()
        for commit in commits:
            key, epoch = commit["key"], commit["epoch"]
            assert newest.get(key, 0) <= epoch, f"a zombie committed: {commit}"
            newest[key] = epoch
            homes.setdefault((key, epoch), set()).add(commit["pid"])
        assert all(len(pids) == 1 for pids in homes.values()), "two hosts in one epoch"
        return {"commits": len(commits), "epochs": len(homes)}
