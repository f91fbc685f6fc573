"""The file system of the whole data directory runs full under load, and is given room again.

PostgreSQL, the sandboxes with their journals, the local GitHub and the logs lie on one small
tmpfs. PostgreSQL first refuses to write, then cannot begin its next log file and ends; so does
every attempt to start it, until there is room.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from foundry_ray.cli.chaos.outside import count_journal
from foundry_ray.cli.places import Places
from foundry_ray.cli.processes import NodeFile, carrying, end
from foundry_ray.store.embedded import EmbeddedPostgres
from foundry_ray.store.engine import Database, StoreUnavailable
from tests.durability.conftest import Evidence, enter
from tests.durability.outside import Work, connect, query, said
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually

SIZE = "320m"
CHUNKS = 1500
PATIENCE = 120.0  # seconds; the supervisor tries every 30 s at last
NO_ROOM, SEVERITIES = "No space left on device", ("ERROR", "FATAL", "PANIC")


@pytest.fixture
def small(orphans: None) -> Iterator[Foundry]:
    """A Foundry whose data directory, the database included, is a small file system."""
    folder = Path(tempfile.mkdtemp(prefix="foundry-full-"))
    with ExitStack() as stack:
        stack.callback(folder.rmdir)
        options = f"size={SIZE},mode=0711"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        stack.callback(subprocess.run, ["umount", folder], check=True)
        data_dir = folder / "data"
        (data_dir / "postgres").mkdir(parents=True)
        data_dir.chmod(0o700)
        (data_dir / "postgres").chmod(0o711)
        # The account that runs the server cannot pass through the data directory.
        places = {"server": str(folder / "server")}
        (data_dir / "postgres" / "places.json").write_text(json.dumps(places))
        made = Foundry(data_dir)
        stack.callback(_end_all, made)
        stack.callback(made.destroy)
        made.cli("up", "--demo", "--detach")
        yield made


def _end_all(foundry: Foundry) -> None:
    """End what a failed `down` left: it would keep the file system busy."""
    left = end(carrying(foundry.settings.instance_id), grace=0, first=signal.SIGKILL)
    assert not left


@pytest.fixture
async def acme(small: Foundry) -> AsyncIterator[Acme]:
    async with enter(small) as seen:
        yield seen


class Ballast:
    """A file that takes all the room there is, and what others free meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        self._full = asyncio.Event()
        self._task = asyncio.create_task(self._grow())

    async def _grow(self) -> None:
        size = 1 << 20
        while True:
            try:
                os.write(self._file, bytes(size))
            except OSError as trouble:
                if trouble.errno != errno.ENOSPC:
                    raise
                if size > 1:
                    size //= 2
                    continue
                self._full.set()
                await asyncio.sleep(0.05)
                size = 4096

    async def full(self) -> None:
        """Return when nothing more fits."""
        await self._full.wait()

    async def remove(self) -> None:
        """Make room."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        os.close(self._file)
        self._path.unlink()


@dataclass
class Writer:
    """Sends one message after the other to a session, each until it is acknowledged."""

    work: Work
    name: str
    acknowledged: list[str] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    over: bool = False

    async def run(self) -> None:
        """Go on until told that it is over."""
        number = 0
        while not self.over:
            number += 1
            word = f"{self.name}-{number}"
            while not await self._sent(word):
                await asyncio.sleep(0.2)
            self.acknowledged.append(word)
            await asyncio.sleep(0.2)

    async def _sent(self, word: str) -> bool:
        browser, acme = self.work.acme.browser, self.work.acme
        path = f"{acme.place}/tasks/{self.work.task['id']}/sessions/{self.work.session}/messages"
        headers = {"Origin": browser.base_url, "Idempotency-Key": word}
        try:
            answer = await browser.http.post(
                browser.base_url + path, json={"text": f"say {word}"}, headers=headers, timeout=30
            )
        except httpx.TransportError as trouble:
            self.refused.append({"status": 0, "detail": repr(trouble)})
            return False
        if answer.status_code == httpx.codes.ACCEPTED and "command_id" in answer.json():
            return False  # not answered yet: ask again under the same key
        if not answer.is_success:
            self.refused.append(answer.json())
        return answer.is_success

    async def check(self) -> None:
        """Each acknowledged message was answered once, or failed visibly: agents write, too."""
        rows = query(
            self.work.foundry,
            "SELECT text, state FROM task_session_message WHERE actor_key = %s ORDER BY id",
            self.work.session_key,
        )
        states = {row["text"].removeprefix("say "): row["state"] for row in rows}
        assert list(states) == ["ready", *self.acknowledged]
        done = [word for word, state in states.items() if state == "done"]
        failed = [word for word, state in states.items() if state == "failed"]
        assert len(done) + len(failed) == len(states)
        events = await self.work.transcript()
        assert said(events) == done
        ends = [one["payload"]["params"] for one in events if "_foundry/turn_ended" in str(one)]
        assert len([end for end in ends if end.get("error")]) == len(failed) <= 2


def server_log(foundry: Foundry) -> Counter[str]:
    """Return how often PostgreSQL complained of the full disk, by severity."""
    log = (Places(foundry.data_dir).logs / "postgres.log").read_text()
    lines = [line for line in log.splitlines() if NO_ROOM in line]
    return Counter(word for line in lines for word in SEVERITIES if f" {word}: " in line)


async def test_a_full_disk_is_told_and_loses_nothing(
    small: Foundry, acme: Acme, evidence: Evidence
) -> None:
    supervisor = _supervisor(small)
    streaming, *others = [await Work.begin(small, acme, "say ready") for _ in range(3)]
    for work in (streaming, *others):
        await work.finished()
    writers = [Writer(work, f"w{n}") for n, work in enumerate(others)]
    home, session = streaming.home, streaming.session

    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(writer.run())
        prompt = {"text": f"stream {CHUNKS} 10\nsay end"}
        await streaming.call("POST", f"/sessions/{session}/messages", prompt)
        await eventually(lambda: count_journal(home, session) > CHUNKS // 10, PATIENCE)

        ballast = Ballast(small.data_dir.parent / "ballast")
        await ballast.full()
        try:
            refusal = await _write(small)
            await eventually(lambda: _stopped(small), PATIENCE, every=0.2)
            told = await eventually(lambda: _unavailable(writers), PATIENCE, every=0.1)
            journalled, before = count_journal(home, session), len(_acknowledged(writers))
            status = await asyncio.to_thread(small.status)
            doctor = await asyncio.to_thread(small.cli, "doctor", "--json", code=1)
        finally:
            await ballast.remove()

        await eventually(lambda: small.status()["state"] == "up", PATIENCE, every=1)
        await eventually(lambda: len(_acknowledged(writers)) >= before + 6, PATIENCE, every=0.1)
        for writer in writers:
            writer.over = True

    [disk] = status["disks"]
    [space] = [one for one in json.loads(doctor)["checks"] if one["name"] == "disk space"]
    evidence.add(
        journalled=journalled, acknowledged_before_room=before,
        acknowledged=len(_acknowledged(writers)), refused=_told(writers), answer=told,
        postgres_log=server_log(small), status=status["state"], disk=disk, doctor=space,
    )  # fmt: skip
    assert refusal.message == "The disk of the database is full."
    assert refusal.hint
    assert told["hint"]
    assert status["state"] == "degraded"
    assert disk["free_mib"] == 0
    assert disk["hint"]
    assert not space["ok"]
    assert space["hint"]
    assert journalled < CHUNKS, "the agent had finished already"
    assert server_log(small)["PANIC"] + server_log(small)["FATAL"]
    assert _supervisor(small) == supervisor

    for work in (streaming, *others):
        await work.finished()
        evidence.add(**await work.check_complete())
    words = said(await streaming.transcript())
    assert words == ["ready", *(f"chunk {number}\n" for number in range(CHUNKS)), "end"]
    for writer in writers:
        await writer.check()
    await eventually(lambda: not streaming.issues(), timeout=30)


def _supervisor(foundry: Foundry) -> int:
    written = NodeFile.read(Places(foundry.data_dir).node_file)
    assert written is not None
    return written.supervisor.pid


def _acknowledged(writers: list[Writer]) -> list[str]:
    return [word for writer in writers for word in writer.acknowledged]


def _unavailable(writers: list[Writer]) -> dict[str, Any] | None:
    """Return a refusal that says what to do."""
    found = [one for writer in writers for one in writer.refused if one.get("hint")]
    return found[0] if found else None


def _told(writers: list[Writer]) -> dict[str, int]:
    return Counter(f"{one['status']} {one['detail']}" for w in writers for one in w.refused)


async def _write(foundry: Foundry) -> StoreUnavailable:
    """Return what a writer hears while PostgreSQL itself goes on."""
    database = Database(Places(foundry.data_dir).database_url.read_text().strip())
    await database.open()
    try:
        with pytest.raises(StoreUnavailable) as refused:
            async with database.transaction() as transaction:
                # Temporary, so the log of the database is not what has no room.
                await transaction.execute(
                    "CREATE TEMPORARY TABLE large AS"
                    " SELECT repeat(n::text, 1000) FROM generate_series(1, 10000) AS n"
                )
    finally:
        await database.close()
    return refused.value


def _stopped(foundry: Foundry) -> bool:
    """Return whether PostgreSQL has ended; until then, let it want its next log file."""
    if EmbeddedPostgres(foundry.data_dir).record is None:
        return True
    try:
        with connect(foundry) as connection:
            connection.execute("SELECT pg_switch_wal()")
            connection.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 100000))")
    except psycopg.Error:
        pass  # that is what it is for
    return False
