"""One reader of the feed per process, whatever the number of streams.

A notification is a hint that there is something to read. It may be lost, and a change may
have to wait until older transactions are over: the reader also looks by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import psycopg

from foundry_ray.actors.app_shell import read_models as app_shell
from foundry_ray.core.clock import Clock
from foundry_ray.core.logging import get_logger
from foundry_ray.runtime import feed
from foundry_ray.runtime.feed import CHANNEL, Change, Cursor
from foundry_ray.serve.streams.dressing import dress
from foundry_ray.store.engine import Database, StoreUnavailable, Transaction

log = get_logger("streams")

ROWS = 1000  # read at once
LOOK_EVERY = 5.0  # seconds without a hint
WAITING_FIRST, WAITING_MOST = 0.02, 1.0  # seconds, while rows wait for older transactions
RECHECK_EVERY = 5.0  # seconds between two looks at who still has access
LISTEN_AGAIN = 1.0  # seconds
BUFFER = 8 * 1024 * 1024  # bytes that wait for a slow client, before it is cut
BUFFER_ROWS = 5000


class Row(NamedTuple):
    """A change, written as JSON once for all who get it."""

    cursor: Cursor
    topic: str
    kind: str
    item_id: str
    revision: int
    text: str | None


class Access(NamedTuple):
    """What a stream stands on: a session or token, and memberships."""

    token_hash: str
    user_id: str
    organization_ids: frozenset[str]


@dataclass(eq=False)
class Subscriber:
    """One open stream: rows that wait for it, and whether it is over.

    Attributes:
        start: Rows after this position come by the hub.
        cut: Set when the client is too slow: even a write that waits for it must end.
        end: Why the stream is over: ``revoked``, ``slow``, ``failed`` or ``left``; empty before.
        read: Everything up to here has been handed out.
    """

    topics: frozenset[str]
    access: Access
    cut: asyncio.Event
    start: Cursor
    read: Cursor
    end: str = ""
    rows: deque[Row] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    size: int = 0

    def offer(self, rows: Iterable[Row], upto: Cursor) -> None:
        """Let rows wait for the client; too many, and it is cut."""
        for row in rows:
            self.rows.append(row)
            self.size += len(row.text or "")
        self.read = upto
        if len(self.rows) > BUFFER_ROWS or (self.size > BUFFER and len(self.rows) > 1):
            self.finish("slow")
        elif self.rows:
            self.news.set()

    def finish(self, why: str) -> None:
        """End the stream; one whose client does not read cannot be told why."""
        self.end = self.end or why
        self.news.set()
        if why == "slow":
            self.cut.set()

    def take(self) -> list[Row]:
        """Return what waits."""
        taken = list(self.rows)
        self.rows.clear()
        self.size = 0
        self.news.clear()
        if self.end:
            self.news.set()
        return taken


class Hub:
    """Reads the feed for every stream of this process; works only while there is one."""

    def __init__(self, database: Database, clock: Clock, install_url: Callable[[str], str]) -> None:
        self._database = database
        self._clock = clock
        self._install_url = install_url
        self._subscribers: set[Subscriber] = set()
        self._position: Cursor | None = None
        self._turn = asyncio.Lock()
        self._hint = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        # Counts the times that reading began; the work of an earlier time ends by itself, for
        # a cancellation may get lost on its way (asyncio.wait_for before Python 3.12).
        self._time = 0

    def __len__(self) -> int:
        """Return how many streams are open."""
        return len(self._subscribers)

    async def join(self, topics: frozenset[str], access: Access, cut: asyncio.Event) -> Subscriber:
        """Add a stream: rows after its ``start`` come to it by themselves."""
        async with self._turn:
            if self._position is None:
                async with self._database.transaction(snapshot=True) as transaction:
                    self._position = await feed.present(transaction)
            made = Subscriber(topics, access, cut, self._position, self._position)
            self._subscribers.add(made)
            if not self._tasks:
                self._tasks = [
                    asyncio.create_task(work(self._time), name=f"streams {work.__name__}")
                    for work in (self._listen, self._read, self._recheck)
                ]
                for task in self._tasks:
                    task.add_done_callback(self._over)
        return made

    async def leave(self, subscriber: Subscriber) -> None:
        """Forget a stream; the last one lets the reader rest."""
        self._subscribers.discard(subscriber)
        if not self._subscribers:
            tasks, self._tasks, self._position = self._tasks, [], None
            self._time += 1
            self._hint.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _over(self, task: asyncio.Task[None]) -> None:
        """A reader ended by a bug: let every client come back to a fresh one."""
        if not task.cancelled() and (trouble := task.exception()) is not None:
            log.error("streams_failed", exc_info=trouble)
            for subscriber in self._subscribers:
                subscriber.finish("failed")

    # -- reading -------------------------------------------------------------------

    async def _read(self, time: int) -> None:
        """Read when hinted, sooner while rows wait, and now and then in any case."""
        wait = WAITING_FIRST
        while time == self._time:
            waiting = False
            try:
                more, waiting = await self.tick()
                if more:
                    continue
            except StoreUnavailable as trouble:
                log.warning("feed_unread", reason=trouble.context.get("reason"))
                await asyncio.sleep(WAITING_MOST)
            wait = min(wait * 2, WAITING_MOST) if waiting else WAITING_FIRST
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait if waiting else LOOK_EVERY):
                    await self._hint.wait()
            self._hint.clear()

    async def tick(self) -> tuple[bool, bool]:
        """Read what is new for all topics and hand it out.

        Returns:
            Whether there is more to read at once, and whether rows wait for older transactions.
        """
        async with self._turn:
            if self._position is None:
                return False, False
            topics = sorted({topic for one in self._subscribers for topic in one.topics})
            async with self._database.transaction(snapshot=True) as transaction:
                present = await feed.present(transaction)
                found = await feed.changes(transaction, self._position, topics, ROWS)
                waiting = await _rows_wait(transaction, topics)
                found = await dress(transaction, found, self._install_url)
            full = len(found) == ROWS
            self._position = found[-1].cursor if full else max(present, self._position)
            self._hand_out([written(change) for change in found], self._position)
        return full, waiting

    def _hand_out(self, rows: list[Row], upto: Cursor) -> None:
        by_topic: dict[str, list[Row]] = {}
        for row in rows:
            by_topic.setdefault(row.topic, []).append(row)
        for subscriber in self._subscribers:
            mine = [by_topic[topic] for topic in subscriber.topics if topic in by_topic]
            merged = mine[0] if len(mine) == 1 else sorted(row for part in mine for row in part)
            subscriber.offer(merged, upto)

    # -- hints and access ------------------------------------------------------------

    async def _listen(self, time: int) -> None:
        """Hear the hints, on a connection of its own."""
        while time == self._time:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    self._database.url,
                    autocommit=True,
                    application_name="foundry-streams",
                    connect_timeout=5,
                )
                async with connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self._hint.set()
                    async for _ in connection.notifies():
                        self._hint.set()
            except (psycopg.Error, OSError) as trouble:
                log.warning("hints_lost", reason=type(trouble).__name__)
            await asyncio.sleep(LISTEN_AGAIN)

    async def _recheck(self, time: int) -> None:
        """End streams whose session, token or membership is over."""
        while time == self._time:
            await asyncio.sleep(RECHECK_EVERY)
            try:
                await self.recheck()
            except StoreUnavailable as trouble:
                log.warning("access_unchecked", reason=trouble.context.get("reason"))

    async def recheck(self) -> None:
        """Look once who still has access, with one query for all streams."""
        held = {one: one.access for one in self._subscribers}
        hashes = {access.token_hash for access in held.values()}
        members = {(a.user_id, org) for a in held.values() for org in a.organization_ids}
        async with self._database.transaction() as transaction:
            valid, known = await app_shell.list_valid(
                transaction, sorted(hashes), sorted(members), self._clock.now()
            )
        for one, access in held.items():
            needed = {(access.user_id, org) for org in access.organization_ids}
            if access.token_hash not in valid or not needed <= known:
                one.finish("revoked")


def written(change: Change) -> Row:
    """Return a change as JSON; a transcript's without its wrapping."""
    text = None
    if change.data is not None:
        shown = change.data["events"] if change.kind == "append" else change.data
        text = json.dumps(shown, separators=(",", ":"), ensure_ascii=False)
    return Row(change.cursor, change.topic, change.kind, change.item_id, change.item_revision, text)


async def _rows_wait(transaction: Transaction, topics: list[str]) -> bool:
    row = await transaction.one(
        "SELECT EXISTS (SELECT 1 FROM rt_feed WHERE topic = ANY(%s)"
        " AND xid >= pg_snapshot_xmin(pg_current_snapshot())) AS waiting",
        (topics,),
    )
    return row is not None and bool(row["waiting"])
