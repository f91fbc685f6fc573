"""Stands between processes and PostgreSQL, reads the protocol, and cuts at a COMMIT.

Only transactions that write are cut. What the server answered is known here, and nowhere on the
other side: the kernel and its clients have to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import parse_qs, quote, unquote, urlsplit

LATE_BY = 0.5  # seconds


class Cut(StrEnum):
    """When the connection breaks."""

    BEFORE = "before COMMIT reaches the server"
    SENT = "with COMMIT on its way"
    ANSWERED = "before the server's answer comes back"
    LATE = "and COMMIT reaches the server later"


COMMITTED = (Cut.ANSWERED, Cut.LATE)  # of the others, one never is and one may be


@dataclass(frozen=True)
class Done:
    """One cut.

    Attributes:
        who: The connection's application name.
        wrote: What the transaction had written, as "UPDATE rt_entity".
        answer: What the server said to COMMIT; "" when nobody heard.
    """

    cut: Cut
    who: str
    wrote: tuple[str, ...]
    answer: str


@dataclass
class Cutter:
    """A proxy to a server on a Unix socket.

    Args:
        url: The server's.
        cut: How to cut.
        choice: Decides at which COMMIT, with *chance*; the first of its sort is always cut.
    """

    url: str
    cut: Cut
    choice: random.Random
    chance: float
    cuts: list[Done] = field(default_factory=list)
    passed: int = 0
    _seen: set[tuple[str, ...]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve; give the URL by which clients come here."""
        parts = urlsplit(self.url)
        self._path = f"{unquote(parse_qs(parts.query)['host'][0])}/.s.PGSQL.5432"
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert parts.username and parts.password
        user = f"{quote(parts.username)}:{parts.password}"
        # Encryption would only hide from us what we came to see.
        options = "sslmode=disable&gssencmode=disable"
        try:
            yield f"postgresql://{user}@127.0.0.1:{port}{parts.path}?{options}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            ended = await asyncio.gather(*self._tasks, return_exceptions=True)
            for trouble in ended:
                if isinstance(trouble, Exception):
                    raise trouble

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._pass_on(reader, writer)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(self._path)
        connection = _Connection(self, (reader, writer), there)
        try:
            await connection.run()
        finally:
            for end in (writer, there[1]):
                end.transport.abort()

    def now(self, wrote: tuple[str, ...]) -> bool:
        """Say whether to cut at the COMMIT that comes now."""
        chosen = wrote not in self._seen or self.choice.random() < self.chance
        self._seen.add(wrote)
        self.passed += not chosen
        return chosen


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_GONE = (asyncio.IncompleteReadError, ConnectionError)
_CANCEL = 80877102  # what a connection begins with that only cancels another one's query
_WRITES = re.compile(r"\s*(INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)")


class _Connection:
    def __init__(self, cutter: Cutter, here: Stream, there: Stream) -> None:
        self._cutter = cutter
        self._from_client, self._to_client = here
        self._from_server, self._to_server = there
        self._who = ""
        self._statements: dict[bytes, str] = {}
        self._wrote: list[str] = []
        self._withheld = False
        self._answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Pass on what both say, until one ends or this cuts."""
        back = asyncio.create_task(self._back())
        try:
            await self._forth()
        finally:
            back.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await back

    async def _forth(self) -> None:
        with contextlib.suppress(*_GONE):
            size = await self._from_client.readexactly(4)
            start = await self._from_client.readexactly(int.from_bytes(size) - 4)
            self._to_server.write(size + start)
            if int.from_bytes(start[:4]) == _CANCEL:
                await self._from_server.read()
                return
            words = start[4:].split(b"\0")
            self._who = words[words.index(b"application_name") + 1].decode()
            while True:
                kind, message = await _read(self._from_client)
                self._note(kind, message[5:])
                if kind == b"Q" and message[5:] == b"COMMIT\0":
                    wrote, self._wrote = tuple(dict.fromkeys(self._wrote)), []
                    if wrote and self._cutter.now(wrote):
                        answer = await self._cut(message)
                        done = Done(self._cutter.cut, self._who, wrote, answer)
                        self._cutter.cuts.append(done)
                        return
                self._to_server.write(message)
                await self._to_server.drain()

    def _note(self, kind: bytes, body: bytes) -> None:
        """Remember what the transaction writes; statements may be prepared and named."""
        first, _, rest = body.partition(b"\0")
        match kind:
            case b"P":
                text = rest.partition(b"\0")[0].decode()
                assert text.upper().strip() != "COMMIT", "a COMMIT that nobody would see"
                self._statements[first] = text
            case b"B":
                self._add(self._statements[rest.partition(b"\0")[0]])
            case b"Q":
                self._add(first.decode())

    def _add(self, text: str) -> None:
        if text.upper() == "ROLLBACK":
            self._wrote = []
        if (found := _WRITES.match(text)) is not None:
            self._wrote.append(f"{found[1].split()[0]} {found[2]}")

    async def _cut(self, commit: bytes) -> str:
        cut = self._cutter.cut
        if cut is Cut.BEFORE:
            return ""
        if cut is Cut.LATE:
            self._to_client.transport.abort()
            await asyncio.sleep(LATE_BY)
        self._withheld = True
        self._to_server.write(commit)
        await self._to_server.drain()
        if cut is Cut.SENT:
            self._to_client.transport.abort()
            self._to_server.close()
            await self._to_server.wait_closed()
            return ""
        return await self._answer

    async def _back(self) -> None:
        with contextlib.suppress(*_GONE):
            while True:
                kind, message = await _read(self._from_server)
                if not self._withheld:
                    self._to_client.write(message)
                    await self._to_client.drain()
                elif kind == b"C":
                    self._answer.set_result(message[5:-1].decode())
        if self._withheld and not self._answer.done():
            self._answer.set_result("")


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(int.from_bytes(head[1:]) - 4)
