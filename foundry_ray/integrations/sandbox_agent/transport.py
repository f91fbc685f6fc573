"""HTTP to one sandbox-agent: what goes wrong on the way, told in Foundry's words."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
from httpx_sse import EventSource

from foundry_ray.core.errors import FoundryError, SandboxStartFailed, TooLarge, Unavailable

CONNECT_PATIENCE = 5.0  # seconds
READ_PATIENCE = 30.0  # seconds
HEARTBEAT_PATIENCE = 45.0  # seconds; sandbox-agent sends a heartbeat every 15
ONLY_NEW = str(2**53)  # as Last-Event-ID: an event number that is never reached

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
# What sandbox-agent itself answers in plain text; any other such error is a proxy's.
_PLAIN_STATUS = {400, 413, 415, 422}


class Wire:
    """Sends requests to one sandbox-agent.

    Args:
        url: Its base address.
        token: Its bearer token.
        headers: What a proxy in between asks for.
    """

    def __init__(self, url: str, *, token: str, headers: Mapping[str, str]) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={**headers, "Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(READ_PATIENCE, connect=CONNECT_PATIENCE),
            trust_env=urlsplit(url).hostname not in _LOOPBACK,
            limits=httpx.Limits(max_connections=None),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: Any = None,
        content: bytes | None = None,
        read: float = READ_PATIENCE,
    ) -> httpx.Response:
        """Return sandbox-agent's answer, an error answer of its own included.

        Args:
            method: Of HTTP.
            path: Below the base address.
            params: Of the query.
            body: Sent as JSON if not None.
            content: Sent as it is.
            read: Seconds of silence after which to give up.

        Raises:
            Unavailable: It cannot be reached; context ``sent`` is False if surely nothing
                arrived.
            SandboxStartFailed: It refuses the token.
            TooLarge: It does not take a request of this size.
        """
        timeout = httpx.Timeout(read, connect=CONNECT_PATIENCE)
        headers = {"Content-Type": "application/octet-stream"} if content is not None else None
        try:
            answer = await self._http.request(
                method,
                path,
                params=params,
                json=body,
                content=content,
                timeout=timeout,
                headers=headers,
            )
        except httpx.TransportError as error:
            raise _unreachable(error) from error
        _check(answer)
        return answer

    @contextlib.asynccontextmanager
    async def events(
        self, path: str, last_event_id: str
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]] | None]:
        """Open a stream of JSON events after *last_event_id*; None if there is no such stream.

        Raises:
            Unavailable: It cannot be reached, or the stream broke off.
        """
        headers = {"Accept": "text/event-stream", "Last-Event-ID": last_event_id}
        timeout = httpx.Timeout(CONNECT_PATIENCE, read=HEARTBEAT_PATIENCE)
        try:
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
                if answer.is_error:
                    await answer.aread()
                    _check(answer)
                    yield None
                else:
                    yield _parsed(EventSource(answer))
        except httpx.TransportError as error:
            raise _unreachable(error) from error


def problem_of(answer: httpx.Response) -> tuple[str, dict[str, Any]]:
    """Return the last word of a problem's type and the problem; empty ones for plain text."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return "", {}
    problem: dict[str, Any] = answer.json()
    return str(problem.get("type", "")).rpartition(":")[2], problem


def refused(answer: httpx.Response, otherwise: FoundryError) -> FoundryError:
    """Return *otherwise* with what sandbox-agent said about it."""
    otherwise.context.update(status=answer.status_code, problem=problem_of(answer)[1])
    return otherwise


async def _parsed(source: EventSource) -> AsyncIterator[dict[str, Any]]:
    async for event in source.aiter_sse():
        if event.data:  # a heartbeat after an event comes as an empty one with its number
            yield json.loads(event.data)


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise SandboxStartFailed("sandbox-agent refuses the token.")
    if answer.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        raise TooLarge("This is more than sandbox-agent takes in one request (about 2 MiB).")
    if not problem_of(answer)[0] and answer.status_code not in _PLAIN_STATUS:
        raise Unavailable("The way to the sandbox is broken.", status=answer.status_code)


def _unreachable(error: httpx.TransportError) -> Unavailable:
    # Without a connection nothing arrived; with one, nobody knows.
    sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return Unavailable(
        "The sandbox does not answer.", sent=sent, cause=type(error).__name__, words=str(error)
    )
