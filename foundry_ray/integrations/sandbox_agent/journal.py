"""Reads what the shim wrote: from its segment files, and live.

The files are the truth. The event stream is faster, but sandbox-agent drops events under
load; each carries the number and the place of its record, so a gap is seen at once and
filled from the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from foundry_ray.core.errors import AgentExited, Unavailable
from foundry_ray.integrations.sandbox_agent.base import JournalRecord
from foundry_ray.integrations.sandbox_agent.transport import ONLY_NEW, Wire, problem_of

BATCH = 1000  # records, at most, in one batch
COALESCE = 0.05  # seconds in which what comes together is told together
IDLE = 0.3  # seconds of silence after which the files are compared with what was told
CALM = 5.0  # seconds between such comparisons while nothing happens
BROKEN_PATIENCE = 3.0  # seconds without a connection after which it is somebody else's trouble
RECONNECT = 0.15  # seconds
QUEUE = 4 * BATCH  # events that wait here before sandbox-agent has to wait, or drop


@dataclass(frozen=True)
class Segment:
    """One file of the journal: the number of its first record, and its size in bytes."""

    first: int
    size: int
    path: str


class Journal:
    """Reads the segment files of one server id.

    Args:
        wire: To the sandbox that holds it.
        directory: Where the shim writes it.
    """

    def __init__(self, wire: Wire, directory: str) -> None:
        self._wire = wire
        self._directory = directory
        self._told: tuple[int, int] | None = None  # segment and byte where what was read ends

    async def read(self, from_seq: int, limit: int) -> list[JournalRecord]:
        """Return complete records from number *from_seq* on, in order, at most *limit*."""
        found: list[JournalRecord] = []
        segments = await self._segments()
        for position, segment in enumerate(segments, 1):
            if position < len(segments) and segments[position].first <= from_seq:
                continue
            content = await self._content(segment)
            whole = content.rfind(b"\n") + 1
            lines = content[:whole].split(b"\n")[:-1]
            for line in lines[max(0, from_seq - segment.first) :]:
                found.append(_parse(line))
                if len(found) == limit:
                    return found
            self.note_place(segment.first, whole)
        return found

    def note_place(self, segment: int, end: int) -> None:
        """Note that everything up to byte *end* of *segment* is known."""
        self._told = (segment, end)

    async def has_more(self) -> bool:
        """Return whether the files hold more than what is known."""
        segments = await self._segments()
        last = segments[-1] if segments else None
        return last is not None and (last.first, last.size) != self._told

    async def _segments(self) -> list[Segment]:
        answer = await self._wire.send("GET", "/v1/fs/entries", params={"path": self._directory})
        if answer.is_error:  # there is no such directory: nothing was ever written
            return []
        return sorted(
            (
                Segment(int(entry["name"][:-6]), entry["size"], entry["path"])
                for entry in answer.json()
                if entry["name"].endswith(".jsonl")
            ),
            key=lambda segment: segment.first,
        )

    async def _content(self, segment: Segment) -> bytes:
        answer = await self._wire.send("GET", "/v1/fs/file", params={"path": segment.path})
        if answer.status_code != httpx.codes.OK:
            raise Unavailable("The journal cannot be read.", problem=problem_of(answer)[1])
        return answer.content


class Follower:
    """Tells the records of one server id as they come, each once, in order, without gaps."""

    def __init__(self, wire: Wire, journal: Journal, path: str, from_seq: int) -> None:
        self._wire = wire
        self._journal = journal
        self._path = path
        self._next = from_seq

    async def batches(self) -> AsyncGenerator[list[JournalRecord], None]:
        """Yield batches until the shim is gone (``AgentExited``) or nobody answers."""
        clock = asyncio.get_running_loop()
        alive_at = clock.time()
        while True:
            is_connected = False
            try:
                async with self._wire.events(self._path, ONLY_NEW) as events:
                    async for batch in self._catch_up():
                        yield batch
                    if events is None or await self._is_gone():
                        async for batch in self._catch_up():  # its last words
                            yield batch
                        raise AgentExited("Nothing runs under this server id.")
                    is_connected = True
                    async with contextlib.aclosing(self._live(events)) as live:
                        async for batch in live:
                            yield batch
            except Unavailable:
                if not is_connected and clock.time() - alive_at > BROKEN_PATIENCE:
                    raise
            if is_connected:
                alive_at = clock.time()
            await asyncio.sleep(RECONNECT)

    async def _live(
        self, events: AsyncIterator[dict[str, Any]]
    ) -> AsyncGenerator[list[JournalRecord], None]:
        """Yield what the stream tells, and from the files what it does not, until it ends."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE)
        pump = asyncio.create_task(_pump(events, queue))
        patience = IDLE
        try:
            while True:
                heard = await _hear(queue, patience)
                batch, is_behind = self._consecutive(heard)
                if batch:
                    yield batch
                is_calm = not heard and patience == CALM
                patience = IDLE if heard else CALM
                last = heard[-1].get("method") if heard else None
                is_gone = last == EXITED or (is_calm and await self._is_gone())
                if is_behind or is_gone or not heard:
                    async for missed in self._missed():
                        yield missed
                if is_gone:
                    raise AgentExited("The agent's shim ended.")
                if last == _ENDED:
                    return  # what was missed is read with the next connection
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    def _consecutive(self, heard: list[dict[str, Any]]) -> tuple[list[JournalRecord], bool]:
        """Return the records that come next, and whether some between them were dropped."""
        batch: list[JournalRecord] = []
        for event in heard:
            place = event.get("_foundry")
            if place is None or place["seq"] < self._next:
                continue
            if place["seq"] > self._next:
                return batch, True
            batch.append(_record_of(event, place))
            self._next += 1
            self._journal.note_place(place["segment"], place["end"])
        return batch, False

    async def _is_gone(self) -> bool:
        """Return whether the shim is gone; its last event may have been dropped, too."""
        ping = {"jsonrpc": "2.0", "method": "_foundry/ping"}
        return (await self._wire.send("POST", self._path, body=ping)).is_error

    async def _missed(self) -> AsyncGenerator[list[JournalRecord], None]:
        if await self._journal.has_more():
            async for batch in self._catch_up():
                yield batch

    async def _catch_up(self) -> AsyncGenerator[list[JournalRecord], None]:
        while batch := await self._journal.read(self._next, BATCH):
            self._next = batch[-1].seq + 1
            yield batch
            if len(batch) < BATCH:
                return


EXITED = "_adapter/agent_exited"  # sandbox-agent's word
_ENDED = "_foundry/ended"  # our own word in the queue: the stream is over


async def _pump(
    events: AsyncIterator[dict[str, Any]], queue: asyncio.Queue[dict[str, Any]]
) -> None:
    try:
        async for event in events:
            await queue.put(event)
            if event.get("method") == EXITED:
                return
    except httpx.TransportError:
        pass  # the end of the stream in another way; who follows connects again
    await queue.put({"method": _ENDED})


async def _hear(queue: asyncio.Queue[dict[str, Any]], patience: float) -> list[dict[str, Any]]:
    """Return what comes within *patience* seconds, and what comes together with it."""
    try:
        heard = [await asyncio.wait_for(queue.get(), patience)]
    except TimeoutError:
        return []
    until = asyncio.get_running_loop().time() + COALESCE
    while len(heard) < BATCH and heard[-1].get("method") not in (_ENDED, EXITED):
        left = until - asyncio.get_running_loop().time()
        try:
            heard.append(
                queue.get_nowait() if left <= 0 else await asyncio.wait_for(queue.get(), left)
            )
        except (TimeoutError, asyncio.QueueEmpty):
            break
    return heard


def _parse(line: bytes) -> JournalRecord:
    return _clean_record(json.loads(line), is_suspect=b"\\u" in line)


def _record_of(event: dict[str, Any], place: dict[str, Any]) -> JournalRecord:
    """Return the record that an event of the stream carries."""
    direction = place.get("direction", "out")
    payload = {key: value for key, value in event.items() if key != "_foundry"}
    return _clean_record(
        {
            "seq": place["seq"],
            "at_ms": place["at_ms"],
            "direction": direction,
            "message_id": place["message_id"],
            "payload": payload if direction == "out" else payload["params"],
        },
        is_suspect=True,
    )


def _clean_record(fields: dict[str, Any], *, is_suspect: bool) -> JournalRecord:
    if is_suspect:
        fields["payload"] = _clean(fields["payload"])
    return JournalRecord.model_construct(**fields)


def _clean(value: Any) -> Any:
    """Replace characters that no database takes: NUL and halves of surrogate pairs."""
    if isinstance(value, str):
        if "\0" in value or _SURROGATES.search(value):
            return _SURROGATES.sub("\ufffd", value).replace("\0", "\ufffd")
        return value
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


_SURROGATES = re.compile("[\ud800-\udfff]")
