"""What the proofs look at from outside: processes, rows, the agent's journal, its witness.

Nothing here asks Foundry how it feels. Who was killed is known by the kernel, what happened by the
database and by files that only the agent and its shim write.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
from psycopg.rows import dict_row

from foundry_ray.cli.chaos.outside import read_journal
from foundry_ray.cli.places import Places
from foundry_ray.cli.processes import NodeFile, carrying, members, send, title
from foundry_ray.core.errors import Internal, Unavailable
from foundry_ray.core.processes import ProcessRecord, is_still
from foundry_ray.providers.processes import ID_VARIABLE
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually

_PR_SET_CHILD_SUBREAPER = 36


# -- killing -----------------------------------------------------------------------------


def adopt_orphans() -> None:
    """Become the parent of what the processes below us leave: then we are told how it ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass
class Killed:
    """One process that was sent SIGKILL, and what the kernel said of its end.

    Attributes:
        sent: Seconds after the first signal.
        dead: The same, when it was found gone or a zombie.
        signal: What it died of, as its parent is told; None if another parent took the answer.
    """

    record: ProcessRecord
    what: str
    sent: float
    dead: float | None = None
    signal: int | None = None

    def look(self, seconds: float) -> bool:
        """Return whether it is dead; the answer is kept."""
        if self.dead is None and not is_still(self.record):
            self.dead = seconds
        if self.dead is not None and self.signal is None:
            try:
                pid, status = os.waitpid(self.record.pid, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == self.record.pid and os.WIFSIGNALED(status):
                self.signal = os.WTERMSIG(status)
        return self.dead is not None

    def as_json(self) -> dict[str, Any]:
        """Return it as evidence."""
        return {
            "pid": self.record.pid,
            "what": self.what,
            "sent_ms": round(self.sent * 1000),
            "dead_ms": None if self.dead is None else round(self.dead * 1000),
            "died_of": self.signal,
        }


def instance(foundry: Foundry, *, sandboxes: bool) -> list[ProcessRecord]:
    """Return the live processes of an instance, the supervisor first.

    They carry ``FOUNDRY_INSTANCE_ID`` or are in a session that the supervisor began: Ray's agents
    and PostgreSQL's children write their titles over their environment.
    """
    settings = foundry.settings
    written = NodeFile.read(Places(settings.data_dir).node_file)
    assert written is not None
    found = {one.pid: one for one in carrying(settings.instance_id)}
    for service in written.services:
        found |= {one.pid: one for one in members(service.record, settings.instance_id)}
    if is_still(written.supervisor.record):
        assert written.supervisor.pid in found, "`up` carries its instance like all the others"
    chosen = [one for one in found.values() if sandboxes or not in_sandbox(one.pid)]
    return sorted(chosen, key=lambda one: one.pid != written.supervisor.pid)


def in_sandbox(pid: int) -> bool:
    """Return whether a process says that it belongs to a sandbox."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return any(line.startswith(f"{ID_VARIABLE}=".encode()) for line in environ.split(b"\0"))


def kill_all(foundry: Foundry, aimed: list[ProcessRecord], *, sandboxes: bool) -> list[Killed]:
    """Send SIGKILL to the whole instance, and to what is born meanwhile, within a second.

    Args:
        aimed: What `instance` found a moment ago; it is hit at once, before another look.
    """
    killed: dict[tuple[int, int], Killed] = {}
    names = {record: title(record.pid) for record in aimed}
    began = time.monotonic()
    alive, quiet = aimed, 0
    while quiet < 2:  # a look lists /proc; what was forked during one is found by the next
        for record in alive:
            seconds = time.monotonic() - began
            identity = (record.pid, record.start_ticks)
            if identity not in killed:
                name = names.get(record) or title(record.pid)
                killed[identity] = Killed(record, name, seconds)
            send(record, signal.SIGKILL)
        alive = instance(foundry, sandboxes=sandboxes)
        dead = [one.look(time.monotonic() - began) for one in killed.values()]
        quiet = quiet + 1 if all(dead) and not alive else 0
        assert time.monotonic() - began < 10, [one.as_json() for one in killed.values()]
    return list(killed.values())


# -- rows --------------------------------------------------------------------------------


def connect(foundry: Foundry) -> psycopg.Connection[dict[str, Any]]:
    """Return a connection to the instance's database."""
    url = Places(foundry.data_dir).database_url.read_text().strip()
    return psycopg.connect(url, row_factory=dict_row, autocommit=True)


def query(foundry: Foundry, statement: str, *given: Any) -> list[dict[str, Any]]:
    """Ask the instance's database."""
    with connect(foundry) as connection:
        return connection.execute(statement.encode(), given).fetchall()


def entity(foundry: Foundry, key: str) -> dict[str, Any]:
    """Return an entity's row: epoch, revision, host."""
    rows = query(foundry, "SELECT epoch, revision, host FROM rt_entity WHERE key = %s", key)
    assert rows, f"{key} was never activated"
    return rows[0]


def cursor(foundry: Foundry, session_key: str) -> int:
    """Return the number of the last journal record in a session's transcript."""
    rows = query(foundry, "SELECT cursor FROM task_session WHERE actor_key = %s", session_key)
    return int(rows[0]["cursor"]) if rows else 0


# -- a task seen from outside ------------------------------------------------------------


@dataclass
class Work:
    """One task with one session of the scripted agent."""

    foundry: Foundry
    acme: Acme
    task: dict[str, Any]
    key: str = field(init=False)
    session: str = field(init=False)
    session_key: str = field(init=False)

    def __post_init__(self) -> None:
        place = f"org/{self.acme.organization}/repo/{self.acme.repository}"
        self.key = f"{place}/task/{self.task['id']}"
        self.session = self.task["active_session_id"]
        self.session_key = f"{self.key}/session/{self.session}"

    @classmethod
    async def begin(cls, foundry: Foundry, acme: Acme, prompt: str) -> Self:
        """Create a task with this prompt."""
        return cls(foundry, acme, await acme.create(prompt))

    @property
    def sandbox(self) -> str:
        """Return the id of its sandbox."""
        rows = query(self.foundry, "SELECT id FROM task_sandbox WHERE actor_key = %s", self.key)
        assert rows, "the task has not begun yet"
        return str(rows[0]["id"])

    @property
    def keys(self) -> dict[str, str]:
        """Return the key of each entity that takes part in an agent turn, by its kind."""
        return {
            "sandbox_instance": f"org/{self.acme.organization}/sandbox/local/{self.sandbox}",
            "task_session": self.session_key,
            "session_status_sync": f"{self.session_key}/status-sync",
            "task": self.key,
        }

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return epoch, revision and host of each of these entities."""
        return {kind: entity(self.foundry, key) for kind, key in self.keys.items()}

    @property
    def home(self) -> Path:
        """Return the sandbox's home."""
        return self.foundry.data_dir / "sandboxes" / self.sandbox / "home"

    def journal(self) -> list[dict[str, Any]]:
        """Return every whole record that the shim wrote, from its files."""
        return read_journal(self.home, self.session)

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API below the task; a moment without an answer counts as "not yet"."""
        try:
            return await self.acme.call(method, f"/tasks/{self.task['id']}{path}", body)
        except (httpx.TransportError, Unavailable, Internal) as trouble:
            raise AssertionError(f"{method} {path}: {trouble!r}") from trouble

    async def see(self) -> dict[str, Any]:
        """Return the session's summary."""
        seen = await self.call("GET", "")
        [session] = seen["sessions"]
        trouble = seen["provisioning"]["error"]
        return {**session, "task_status": seen["status"], "provisioning_error": trouble}

    async def transcript(self) -> list[dict[str, Any]]:
        """Return the whole transcript, page by page."""
        events: list[dict[str, Any]] = []
        while True:
            path = f"/sessions/{self.session}/events?limit=1000&after={len(events)}"
            page = await self.call("GET", path)
            if not page["items"]:
                return events
            events += page["items"]

    async def finished(self) -> None:
        """Wait until the agent has ended its turn and the task is ready."""

        async def look() -> dict[str, Any] | None:
            seen = await self.see()
            if seen["provisioning_error"]:
                return seen  # waiting is in vain
            assert (seen["status"], seen["task_status"]) == ("idle", "ready"), seen
            return seen

        seen = await eventually(look, timeout=90, every=0.1)
        assert seen["task_status"] == "ready", seen["provisioning_error"]

    def issues(self) -> list[dict[str, Any]]:
        """Return the runtime issues that are open."""
        return query(
            self.foundry,
            "SELECT code, entity, workflow, step, message FROM rt_issue WHERE resolved_at IS NULL",
        )

    async def check_complete(self) -> dict[str, Any]:
        """Compare the transcript with the journal, index by index, and the witness with both.

        Returns:
            What was compared, as evidence.
        """
        records = self.journal()
        assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
        told = [record for record in records if record["direction"] != "note"]
        events = await self.transcript()
        assert [event["index"] for event in events] == list(range(1, len(events) + 1))
        for record, event in zip(told, events, strict=True):
            assert event["id"] == f"{self.session}-{record['seq']}"
            if record["direction"] == "end":
                assert event["payload"]["method"] == "_foundry/turn_ended"
                assert event["payload"]["params"]["message_id"] == record["message_id"]
            else:
                assert event["payload"] == record["payload"]
                assert event["sender"] == ("client" if record["direction"] == "in" else "agent")
        given = Counter(record["message_id"] for record in told if _is_prompt(record))
        seen = Counter(self.witness())
        assert set(seen.values()) <= {1}, f"a prompt was given twice: {seen}"
        assert set(seen) <= set(given), "the agent knows of a prompt that nobody gave it"
        assert set(given.values()) <= {1}
        return {
            "journal_records": len(records),
            "transcript_events": len(events),
            "prompts_given": len(given),
            "prompts_witnessed": len(seen),
        }

    def witness(self) -> list[str]:
        """Return the message ids that the agent itself wrote down when it got them."""
        path = self.home / ".foundry" / "witness.jsonl"
        return [json.loads(line)["message_id"] for line in path.read_text().splitlines()]


def said(events: list[dict[str, Any]]) -> list[str]:
    """Return what the agent said in a transcript, chunk by chunk."""
    updates = [event["payload"].get("params", {}).get("update", {}) for event in events]
    return [
        update["content"]["text"]
        for update in updates
        if update.get("sessionUpdate") == "agent_message_chunk"
    ]


def _is_prompt(record: dict[str, Any]) -> bool:
    return record["direction"] == "in" and record["payload"].get("method") == "session/prompt"
