"""A client of Foundry's HTTP API as a frontend would be one: cookies, JSON, server-sent events."""

from __future__ import annotations

import asyncio
import html.parser
import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urljoin

import httpx
from httpx_sse import aconnect_sse

from foundry_ray.cli.demo.evidence import NotSeen
from foundry_ray.core.errors import FoundryError, Internal, family

TIMEOUT = 30.0  # seconds
LOOK_AGAIN = 0.2  # seconds; a program at a terminal has no event to wait for


class _Form(html.parser.HTMLParser):
    """Reads the one form of a page: where it goes, its fields, its buttons."""

    def __init__(self) -> None:
        super().__init__()
        self.action = ""
        self.fields: dict[str, str] = {}
        self.buttons: set[tuple[str, str]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.action = said.get("action", "")
        elif tag == "input" and "name" in said:
            self.fields[said["name"]] = said.get("value", "")
        elif tag == "button":
            self.buttons.add((said.get("name", ""), said.get("value", "")))


class Browser:
    """One person's browser."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.http = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False)
        self._watches: list[Watch] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for watch in self._watches:
            await watch.end()
        await self.http.aclose()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API; return the JSON answer, waiting for one that is durable but not there yet.

        Raises:
            FoundryError: The API refused; the error has its code.
        """
        answer = await self._answer(method, path, body)
        said = answer.json() if answer.content else None
        if answer.status_code == 202 and isinstance(said, dict) and "command_id" in said:
            return await self._outcome(said["url"])
        return said

    async def _outcome(self, url: str) -> Any:
        """Return what came of a command that was not answered at once."""
        try:
            async with asyncio.timeout(TIMEOUT):
                while True:
                    said = (await self._answer("GET", url, None)).json()
                    if said["state"] == "done":
                        return said["answer"]
                    if said["state"] == "refused":
                        raise _refusal(said["answer"], url)
                    await asyncio.sleep(LOOK_AGAIN)
        except TimeoutError:
            raise NotSeen(f"{url} was not answered in {TIMEOUT:.0f} s.") from None

    async def _answer(self, method: str, path: str, body: Any) -> httpx.Response:
        """Return a good answer; what did not come from Foundry itself is asked for again."""
        until = time.monotonic() + TIMEOUT
        while True:
            answer = await self.http.request(
                method, self.base_url + path, json=body, headers={"Origin": self.base_url}
            )
            if answer.is_success:
                return answer
            ours = answer.headers.get("content-type", "").startswith("application/problem+json")
            busy = method == "GET" and answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
            if (ours and not busy) or time.monotonic() > until:
                said = answer.json() if ours else {}
                raise _refusal(said, f"{method} {path} answered {answer.status_code}")
            await asyncio.sleep(LOOK_AGAIN)

    async def sign_in(self, login: str) -> list[str]:
        """Go through the OAuth pages as a person would; return the pages that were seen."""
        seen = []
        url = f"{self.base_url}/api/auth/github/login?return_to=/"
        for _ in range(10):
            page = await self.http.get(url)
            seen.append(page.url.path)
            if page.is_redirect:
                url = urljoin(str(page.url), page.headers["location"])
                continue
            form = _Form()
            form.feed(page.text)
            if ("login", login) not in form.buttons:
                return seen
            fields = {**form.fields, "login": login}
            url = f"{urljoin(str(page.url), form.action)}?{urlencode(fields)}"
        raise NotSeen("Signing in goes round in circles.", pages=seen)

    def watch(self, topic: str) -> Watch:
        """Watch a topic from now on."""
        watch = Watch(self, topic)
        self._watches.append(watch)
        return watch


def _refusal(said: dict[str, Any], where: str) -> FoundryError:
    cls: type[FoundryError] = family().get(said.get("code", ""), Internal)
    return cls(f"{where}: {said.get('detail') or said.get('title') or 'no reason given'}")


class Watch:
    """What a stream says about one topic."""

    def __init__(self, browser: Browser, topic: str) -> None:
        self.topic = topic
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._browser = browser
        self._news = asyncio.Event()
        self._trouble: BaseException | None = None
        self._task = asyncio.create_task(self._read(), name=topic)

    async def _read(self) -> None:
        url = f"{self._browser.base_url}/api/stream"
        try:
            async with aconnect_sse(
                self._browser.http,
                "GET",
                url,
                params={"topics": self.topic},
                timeout=httpx.Timeout(TIMEOUT, read=60),
            ) as source:
                async for event in source.aiter_sse():
                    self.events.append((event.event, json.loads(event.data)))
                    self._news.set()
        except Exception as trouble:  # kept for whoever waits on this stream
            self._trouble = trouble
        finally:
            self._news.set()

    async def until(
        self, found: Callable[[str, dict[str, Any]], Any], what: str, patience: float
    ) -> Any:
        """Return the first true answer of *found* for an event, past ones included.

        Raises:
            NotSeen: Nothing of the kind came in *patience* seconds.
        """
        place = 0
        try:
            async with asyncio.timeout(patience):
                while True:
                    self._news.clear()
                    while place < len(self.events):
                        kind, data = self.events[place]
                        place += 1
                        if answer := found(kind, data):
                            return answer
                    if self._task.done():
                        raise NotSeen(
                            f"The stream of {self.topic} ended before {what}: {self._trouble!r}"
                        )
                    await self._news.wait()
        except TimeoutError:
            raise NotSeen(f"{what} was not seen in {patience:.0f} s on {self.topic}.") from None

    async def end(self) -> None:
        """Stop watching."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def items(kind: str, data: dict[str, Any], wanted: str) -> list[dict[str, Any]]:
    """Return the data of the items of one kind in an ``update`` event."""
    if kind != "update":
        return []
    return [item["data"] for item in data["items"] if item["kind"] == wanted]
