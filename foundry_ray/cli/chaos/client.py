"""A client that does not give up: it asks again under the same name, and resumes its streams."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
from httpx_sse import aconnect_sse

from foundry_ray.cli.demo.client import Browser, items
from foundry_ray.cli.demo.evidence import NotSeen
from foundry_ray.core.errors import FoundryError, Internal, family

PATIENCE = 180.0  # seconds for one command, whatever dies meanwhile
ASK_AGAIN = 0.25  # seconds
STREAM_SILENCE = 40.0  # seconds; a heartbeat comes every 15
_LEFT = "http11.send_request_body.complete"


class Patient:
    """Calls the API as a good client should.

    Answers that did not come from Foundry itself, and those that say "later", are asked for
    again with the same ``Idempotency-Key``.

    Attributes:
        count: Requests, and why some were repeated.
    """

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.count: Counter[str] = Counter()

    async def get(self, path: str) -> Any:
        """Return what is there.

        Raises:
            FoundryError: The API refused, or nobody answered for long.
        """
        return (await self._answer("GET", path, None, None, None)).json()

    async def command(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str,
        left: Callable[[], None] | None = None,
    ) -> Any:
        """Give a command; return its answer, however long it takes.

        Args:
            method: Of HTTP.
            path: Of the API.
            body: Sent as JSON.
            key: The command's own name: repeated, it still happens once.
            left: Called at the moment at which the request has left for the first time.

        Raises:
            FoundryError: The API refused, or nobody answered for long.
        """
        answer = await self._answer(method, path, body, key, left)
        said = answer.json() if answer.content else None
        if answer.status_code == 202 and isinstance(said, dict) and "command_id" in said:
            return await self._outcome(said["url"])
        return said

    async def _outcome(self, url: str) -> Any:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            said = await self.get(url)
            if said["state"] == "done":
                return said["answer"]
            if said["state"] == "refused":
                raise _refusal(said["answer"], url)
            await asyncio.sleep(ASK_AGAIN)
        raise NotSeen(f"{url} was not answered in {PATIENCE:.0f} s.")

    async def _answer(
        self, method: str, path: str, body: Any, key: str | None, left: Callable[[], None] | None
    ) -> httpx.Response:
        headers = {"Origin": self.browser.base_url}
        if key is not None:
            headers["Idempotency-Key"] = key
        until = time.monotonic() + PATIENCE
        why = "nobody answered"
        while time.monotonic() < until:
            self.count["requests"] += 1
            try:
                answer = await self.browser.http.request(
                    method,
                    self.browser.base_url + path,
                    json=body,
                    headers=headers,
                    extensions={"trace": _tracer(left)} if left else {},
                )
            except httpx.TransportError as trouble:
                self.count["connections broken"] += 1
                why = type(trouble).__name__
            else:
                if answer.is_success:
                    return answer
                why = f"{answer.status_code} {answer.text[:200]}"
                if _is_final(answer):
                    raise _refusal(answer.json(), f"{method} {path} answered {answer.status_code}")
                self.count["asked again"] += 1
            left = None
            await asyncio.sleep(ASK_AGAIN)
        raise NotSeen(f"{method} {path} was not answered in {PATIENCE:.0f} s: {why}")


def _tracer(left: Callable[[], None]) -> Callable[[str, Any], Any]:
    async def trace(event: str, _info: Any) -> None:
        if event == _LEFT:
            left()

    return trace


def _is_final(answer: httpx.Response) -> bool:
    """Tell whether asking again is in vain: Foundry itself said no."""
    ours = answer.headers.get("content-type", "").startswith("application/problem+json")
    later = answer.status_code >= 500 or answer.status_code == httpx.codes.TOO_MANY_REQUESTS
    return ours and not later


def _refusal(said: dict[str, Any], where: str) -> FoundryError:
    cls: type[FoundryError] = family().get(said.get("code", ""), Internal)
    return cls(f"{where}: {said.get('detail') or said.get('title') or said.get('code')}")


class Follower:
    """What one client knows of a task and its session, from a stream that it resumes.

    Attributes:
        task: The task as last told.
        session: The session as last told.
        asked: Open permission requests by id.
        ended: How each agent turn ended, by message id.
        last: Index of the last event of the transcript that was told.
        problems: What the stream told wrong: a gap, or something twice.
    """

    def __init__(self, patient: Patient, topics: tuple[str, str], events_path: str) -> None:
        self.task: dict[str, Any] = {}
        self.session: dict[str, Any] = {}
        self.asked: dict[str, dict[str, Any]] = {}
        self.ended: dict[str, dict[str, Any]] = {}
        self.last = 0
        self.problems: list[str] = []
        self.connections = 0
        self._patient = patient
        self._topics = topics
        self._events_path = events_path
        self._cursor = ""
        self._known = 0  # index up to which a snapshot was the source
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read(), name=topics[0])

    async def until(self, found: Callable[[], Any], what: str, patience: float) -> Any:
        """Return the first true answer of *found*; asked again with all news.

        Raises:
            NotSeen: Nothing of the kind came in *patience* seconds.
        """
        try:
            async with asyncio.timeout(patience), self._news:
                while not (answer := found()):
                    await self._news.wait()
                return answer
        except TimeoutError:
            raise NotSeen(f"{what} was not seen in {patience:.0f} s") from None

    async def end(self) -> None:
        """Stop reading."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            try:
                await self._connect()
            except (httpx.TransportError, httpx.StreamError, FoundryError, _Refused):
                pass  # come back with the cursor
            await asyncio.sleep(ASK_AGAIN)

    async def _connect(self) -> None:
        browser = self._patient.browser
        async with aconnect_sse(
            browser.http,
            "GET",
            f"{browser.base_url}/api/stream",
            params={"topics": ",".join(self._topics)},
            headers={"Last-Event-ID": self._cursor} if self._cursor else {},
            timeout=httpx.Timeout(STREAM_SILENCE, connect=10),
        ) as source:
            content = source.response.headers.get("content-type", "")
            if source.response.status_code != 200 or not content.startswith("text/event-stream"):
                raise _Refused
            self.connections += 1
            async for event in source.aiter_sse():
                await self._take(event.event, json.loads(event.data))
                if event.id:
                    self._cursor = event.id
                async with self._news:
                    self._news.notify_all()

    async def _take(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "snapshot" and data["topic"] == self._topics[0]:
            self.task = data["data"]
        elif kind == "snapshot":
            self.session = data["data"]
            asked = self.session.get("permission_requests", [])
            self.asked = {one["id"]: one for one in asked if one["state"] == "open"}
            self._known = self.session["last_index"]
            await self._catch_up(self._known)
        elif kind == "append":
            for event in data["events"]:
                if event["index"] <= self._known:
                    continue  # the snapshot was younger
                if event["index"] != self.last + 1:
                    self.problems.append(f"index {event['index']} came after {self.last}")
                self._event(event)
        for one in items(kind, data, "task"):
            self.task = _newer(self.task, one)
        for one in items(kind, data, "session"):
            self.session = _newer(self.session, one)
        for one in items(kind, data, "permission"):
            self.asked.pop(one["id"], None)
            if one["state"] == "open":
                self.asked[one["id"]] = one

    async def _catch_up(self, to: int) -> None:
        """Read the transcript that is older than a snapshot."""
        while self.last < to:
            path = f"{self._events_path}?after={self.last}&limit=1000"
            page = await self._patient.get(path)
            for event in page["items"]:
                if self.last < event["index"] <= to:
                    self._event(event)

    def _event(self, event: dict[str, Any]) -> None:
        self.last = max(self.last, event["index"])
        if event["payload"].get("method") == "_foundry/turn_ended":
            ended = event["payload"]["params"]
            self.ended[ended["message_id"]] = ended


def _newer(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return other if other["revision"] > mine.get("revision", -1) else mine


class _Refused(Exception):
    """The stream was not opened: a proxy said so, or Foundry has no place at the moment."""
