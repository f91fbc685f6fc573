"""What comes over the wire, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from foundry_ray.integrations.sandbox_agent.transport import Wire

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@contextlib.asynccontextmanager
async def saying(words: bytes) -> AsyncIterator[str]:
    """A server that says this to whoever comes; give its address."""

    async def say(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        await client.readuntil(b"\r\n\r\n")
        back.write(HEAD + words)
        await back.drain()
        back.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_heartbeats_between_events_are_no_events() -> None:
    words = b': heartbeat\n\nid: 1\ndata: {"n": 1}\n\n: heartbeat\n\n: heartbeat\n\n'
    words += b'id: 2\ndata: {"n": 2}\n\n: heartbeat\n\n'
    async with saying(words) as url:
        wire = Wire(url, token="t", headers={})
        async with wire.events("/v1/acp/one", "0") as events:
            assert events is not None
            assert [event async for event in events] == [{"n": 1}, {"n": 2}]
        await wire.aclose()
