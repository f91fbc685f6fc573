"""What stands in front of a sandbox at a provider: it forwards, or says 503.

Stands in the place of sandbox-agent. The program called ``real`` beside it is started behind
it; while a file called ``away`` lies beside it, every request is answered 503.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import sys
from pathlib import Path

PLACE = Path(__file__).resolve().parent
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 4\r\nConnection: close\r\n\r\naway"
)


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass  # the other side has gone; so does this one
    finally:
        sink.close()


async def main(words: list[str]) -> int:
    place = words.index("--port") + 1
    port = int(words[place])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        behind = int(probe.getsockname()[1])
    real = [*words[:place], str(behind), *words[place + 1 :]]

    async def serve(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        head = await client.readuntil(b"\r\n\r\n")
        if (PLACE / "away").exists():
            back.write(REFUSAL)
            await back.drain()
            back.close()
            return
        try:
            server, forth = await asyncio.open_connection("127.0.0.1", behind)
        except ConnectionError:  # the real one is not up yet
            back.close()
            return
        forth.write(head)
        await asyncio.gather(copy(client, forth), copy(server, back))

    gate = await asyncio.start_server(serve, "127.0.0.1", port)
    async with gate:
        process = await asyncio.create_subprocess_exec(str(PLACE / "real"), *real)
        return await process.wait()


def put(place: Path, real: Path) -> Path:
    """Make the directory *place* with a gateway in front of the program *real*; return it."""
    place.mkdir()
    (place / "real").symlink_to(real)
    program = place / "gateway"
    program.write_text(f"#!{sys.executable}\n{inspect.getsource(sys.modules[__name__])}")
    program.chmod(0o755)
    return program


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
