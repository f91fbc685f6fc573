"""What surrounds every request: its id, its size, and the last word on what went wrong."""

from __future__ import annotations

import re
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foundry_ray.core.errors import Internal, TooLarge
from foundry_ray.core.ids import new_id
from foundry_ray.core.logging import get_logger
from foundry_ray.serve import errors

JSON_LIMIT = 2 * 1024 * 1024  # bytes
WEBHOOK_LIMIT = 25 * 1024 * 1024  # bytes

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PROBES = frozenset({"/healthz", "/readyz"})
log = get_logger("serve")


class _TooMuch(Exception):
    """The body is larger than the limit."""


class Edge:
    """The outermost middleware of each application.

    It takes back the prefix that the proxy cut off (routes carry full paths), names the
    request, bounds its body, and answers 500 for what nobody expected.

    Args:
        limit: Bytes of a body at most.
    """

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else new_id()
        scope = {**scope, "root_path": ""}
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._bounded(scope, receive, send, headers.get(b"content-length"), request_id)

    async def _bounded(
        self, scope: Scope, receive: Receive, send: Send, length: bytes | None, request_id: str
    ) -> None:
        begun = time.monotonic()
        status = 0
        read = 0
        exceeded = False

        async def counted() -> Message:
            nonlocal read, exceeded
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._limit:
                    exceeded = True
                    raise _TooMuch
            return message

        async def named(message: Message) -> None:
            nonlocal status
            if exceeded and status == 0:
                raise _TooMuch  # whoever caught it inside thinks that the body was broken
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode()), *_SAFE]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            if length is not None and (not length.isdigit() or int(length) > self._limit):
                raise _TooMuch
            await self._app(scope, counted, named)
        except _TooMuch:
            exceeded = False
            limit = self._limit // (1024 * 1024)
            refusal = TooLarge(f"A body has at most {limit} MiB here.", limit=self._limit)
            await errors.answer(refusal)(scope, receive, named)
        except Exception as trouble:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            if status:
                raise  # too late for an answer: the connection must break
            unexpected = Internal(hint="The log has this request's id.")
            unexpected.__cause__ = trouble
            await errors.answer(unexpected)(scope, receive, named)
        finally:
            # Somebody probes all the time; that is no news.
            say = log.debug if scope["path"] in _PROBES else log.info
            say(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.monotonic() - begun) * 1000, 1),
            )


_SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)
