"""One open stream, from its first snapshot to its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from datetime import datetime
from itertools import groupby

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foundry_ray.core.errors import FoundryError
from foundry_ray.core.logging import get_logger
from foundry_ray.runtime import feed
from foundry_ray.runtime.feed import Cursor
from foundry_ray.serve.services import Services
from foundry_ray.serve.streams import cursor as cursors
from foundry_ray.serve.streams.cursor import Place
from foundry_ray.serve.streams.dressing import dress
from foundry_ray.serve.streams.hub import Access, Hub, Row, Subscriber, written
from foundry_ray.serve.streams.topics import Topic, snapshot

log = get_logger("streams")

HEARTBEAT = 15.0  # seconds
CATCH_UP_ROWS = 200
LAST_WORD = 1.0  # seconds that a cut client gets to hear that it is over


class EventStream(Response):
    """Server-sent events about some topics.

    Args:
        places: How far the client has read each topic; others begin with a snapshot.
        stale: Topics whose cursor is too old to go on from.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        services: Services,
        hub: Hub,
        topics: list[Topic],
        access: Access,
        places: dict[str, Place],
        stale: list[str],
    ) -> None:
        super().__init__(
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        del self.headers["content-length"]
        self._services = services
        self._hub = hub
        self._topics = {topic.name: topic for topic in topics}
        self._short = {topic.name: cursors.name_of(topic.name) for topic in topics}
        self._access = access
        self._places = places
        self._stale = stale
        self._subscriber: Subscriber | None = None
        self._over = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve until the client leaves, is cut, or has no access any more."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._send = send
        cut = asyncio.Event()
        tasks = {
            asyncio.create_task(self._write(cut), name="stream write"),
            asyncio.create_task(_left(receive), name="stream left"),
            asyncio.create_task(_set(cut), name="stream cut"),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The writer looks at this too: a cancellation may get lost on its way
            # (asyncio.wait_for before Python 3.12, as the connection pool uses it).
            self._over = True
            if self._subscriber is not None:
                self._subscriber.finish("left")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._subscriber is not None:
                await self._hub.leave(self._subscriber)
        if cut.is_set():
            log.info("stream_cut", topics=sorted(self._topics))
        try:
            async with asyncio.timeout(LAST_WORD):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            pass  # it does not read; the server closes the connection

    # -- writing ---------------------------------------------------------------------

    async def _write(self, cut: asyncio.Event) -> None:
        try:
            await self._say(b": foundry\n")
            if self._stale:
                await self._say(event("resync", {"topics": self._stale}))
            await self._catch_up(None)
            self._subscriber = await self._hub.join(frozenset(self._topics), self._access, cut)
            await self._catch_up(self._subscriber.start)
            await self._snapshots()
            await self._follow(self._subscriber)
        except FoundryError as trouble:
            log.warning("stream_ended", code=trouble.code)
        except OSError as trouble:
            log.info("stream_broken", reason=type(trouble).__name__)
        except Exception:
            log.exception("stream_failed")

    async def _say(self, words: bytes) -> None:
        if self._over:
            raise ConnectionResetError
        await self._send({"type": "http.response.body", "body": words, "more_body": True})

    async def _snapshots(self) -> None:
        """Begin every topic that has no place yet, all as of one instant."""
        fresh = [topic for name, topic in self._topics.items() if name not in self._places]
        if not fresh:
            return
        shown = []
        async with self._services.database.transaction(snapshot=True) as transaction:
            seen = await cursors.sight(transaction)
            for topic in fresh:
                shown.append((topic, await snapshot(self._services, transaction, topic)))
        place = Place.after(seen, self._now())
        for topic, data in shown:
            self._places[topic.name] = place
            said = {"topic": topic.name, "data": data}
            await self._say(event("snapshot", said, self._cursor()))

    async def _catch_up(self, upto: Cursor | None) -> None:
        """Read what a returning client has missed: all of it, or up to a position."""
        groups: dict[Place, list[str]] = {}
        for name, place in self._places.items():
            groups.setdefault(place, []).append(name)
        for start, names in groups.items():
            place, more = start, True
            while more:
                async with self._services.database.transaction(snapshot=True) as transaction:
                    present = await feed.present(transaction)
                    found = await feed.changes(transaction, place.at, names, CATCH_UP_ROWS)
                    found = await dress(transaction, found, self._services.install_url)
                more = len(found) == CATCH_UP_ROWS
                end = found[-1].cursor if more else present
                if upto is not None and end >= upto:
                    found, more = [one for one in found if one.cursor <= upto], False
                    end = upto
                await self._tell([written(one) for one in found], names, max(end, place.at))
                place = self._places[names[0]]

    async def _follow(self, subscriber: Subscriber) -> None:
        while not subscriber.end and not self._over:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await subscriber.news.wait()
            except TimeoutError:
                await self._say(b": heartbeat\n")
                continue
            rows, upto = subscriber.take(), subscriber.read
            await self._tell(rows, list(self._topics), upto)
        if subscriber.end == "revoked":
            await self._say(event("revoked", {"topics": sorted(self._topics)}))

    async def _tell(self, rows: list[Row], names: list[str], upto: Cursor) -> None:
        """Send the rows that are news, in order; then everything up to *upto* is read."""
        when = self._now()
        news = [row for row in rows if self._places[row.topic].wants(row.cursor)]
        runs = [list(run) for _, run in groupby(news, key=lambda r: (r.topic, r.kind == "append"))]
        for number, run in enumerate(runs, 1):
            # The last event stands for all that was read, also of quiet topics.
            self._move(names, upto if number == len(runs) else run[-1].cursor, when)
            await self._say(rendered(run, self._cursor()))
        self._move(names, upto, when)

    def _move(self, names: Iterable[str], to: Cursor, when: int) -> None:
        for name in names:
            self._places[name] = self._places[name].move(to, when)

    def _cursor(self) -> str:
        return cursors.write((self._short[name], place) for name, place in self._places.items())

    def _now(self) -> int:
        return seconds(self._services.clock.now())


def seconds(instant: datetime) -> int:
    """Return whole seconds since the epoch."""
    return int(instant.timestamp())


def event(kind: str, data: object, cursor: str | None = None) -> bytes:
    """Return an event in the text/event-stream format."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return _framed(kind, text, cursor)


def _framed(kind: str, text: str, cursor: str | None) -> bytes:
    name = f"id: {cursor}\n" if cursor is not None else ""
    return f"event: {kind}\n{name}data: {text}\n\n".encode()


def rendered(rows: list[Row], cursor: str) -> bytes:
    """Return one event for rows of one topic that are all transcript, or none of them."""
    topic = json.dumps(rows[0].topic)
    if rows[0].kind == "append":
        events = ",".join((row.text or "[]")[1:-1] for row in rows)
        return _framed("append", f'{{"topic":{topic},"events":[{events}]}}', cursor)
    items, removed = [], []
    for row in rows:
        head = f'{{"kind":{json.dumps(row.kind)},"id":{json.dumps(row.item_id)}'
        if row.text is None:
            removed.append(f"{head}}}")
        else:
            items.append(f'{head},"revision":{row.revision},"data":{row.text}}}')
    said = f'{{"topic":{topic},"items":[{",".join(items)}],"removed":[{",".join(removed)}]}}'
    return _framed("update", said, cursor)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _set(cut: asyncio.Event) -> None:
    await cut.wait()
