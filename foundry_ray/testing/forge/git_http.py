"""Clone, fetch and push over HTTP by git's own ``http-backend``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from foundry_ray.testing.forge import pushes
from foundry_ray.testing.forge.auth import AsApp, BadCredentials, Principal, Suspended
from foundry_ray.testing.forge.context import Forge
from foundry_ray.testing.forge.git import CLEAN_ENVIRONMENT
from foundry_ray.testing.forge.records import Account, Repository

log = logging.getLogger("foundry.forge")

CHUNK = 1 << 16
SERVICES = ("git-upload-pack", "git-receive-pack")


async def advertise(request: Request) -> Response:
    """Tell which refs there are: the first request of every fetch and push."""
    service = request.query_params.get("service", "")
    if service not in SERVICES:
        return PlainTextResponse("Please upgrade your git client.\n", 403)
    allowed = _allow(request, service)
    if isinstance(allowed, Response):
        return allowed
    repository, _ = allowed
    return await _pass_on(request, repository, "info/refs")


async def upload_pack(request: Request) -> Response:
    """Send objects: clone and fetch."""
    allowed = _allow(request, "git-upload-pack")
    if isinstance(allowed, Response):
        return allowed
    return await _pass_on(request, allowed[0], "git-upload-pack")


async def receive_pack(request: Request) -> Response:
    """Take a push; it is answered once everything that follows from it is written down."""
    forge: Forge = request.app.state.forge
    allowed = _allow(request, "git-receive-pack")
    if isinstance(allowed, Response):
        return allowed
    repository, actor = allowed
    assert actor is not None, "nobody pushes without a name"
    async with pushes.changing(forge, repository, actor):
        return await _pass_on(request, repository, "git-receive-pack", whole=True)


def _allow(request: Request, service: str) -> tuple[Repository, Account | None] | Response:
    """Return the repository and who acts, or the answer that refuses."""
    forge: Forge = request.app.state.forge
    try:
        principal = forge.gate.recognize(request.headers.get("authorization", ""))
    except BadCredentials:
        return _ask()
    except Suspended:
        return PlainTextResponse("This installation has been suspended.\n", 403)
    name = request.path_params["repo"].removesuffix(".git")
    repository = forge.directory.repository(request.path_params["owner"], name)
    level = "write" if service == "git-receive-pack" else "read"
    if principal is None and (repository is None or repository.private or level == "write"):
        return _ask()  # before credentials were shown, nothing is said about what exists
    if repository is None or not forge.gate.sees(principal, repository):
        return PlainTextResponse("Repository not found.\n", 404)
    if not forge.gate.may(principal, repository, "contents", level):
        return PlainTextResponse(f"Write access to repository not granted: {level}.\n", 403)
    if repository.archived and level == "write":
        return PlainTextResponse("This repository was archived so it is read-only.\n", 403)
    return repository, _actor(principal)


def _actor(principal: Principal | None) -> Account | None:
    if principal is None or isinstance(principal, AsApp):
        return None
    return getattr(principal, "user", None) or getattr(principal, "bot", None)


def _ask() -> Response:
    # Without this header git never sends the credentials that it has.
    headers = {"WWW-Authenticate": 'Basic realm="GitHub"'}
    return PlainTextResponse("Authentication required.\n", 401, headers=headers)


async def _pass_on(
    request: Request, repository: Repository, path: str, *, whole: bool = False
) -> Response:
    """Run the CGI program for one request.

    Args:
        whole: Wait for the end of its answer (of a push: a few lines) before answering.
    """
    forge: Forge = request.app.state.forge
    # What a fetch asks for is short. Reading it while the answer already streams would compete
    # with the server, which then watches the same channel for the client's leaving.
    body = request.stream() if whole else _at_once(await request.body())
    environment = {
        **CLEAN_ENVIRONMENT,
        "GIT_PROJECT_ROOT": str(forge.repositories),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": f"/{repository.git_dir}/{path}",
        "QUERY_STRING": request.url.query,
        "REQUEST_METHOD": request.method,
        "CONTENT_TYPE": request.headers.get("content-type", ""),
        "REMOTE_ADDR": "127.0.0.1",
    }
    # A chunked request has no length: the program then reads to the end. A packed one it unpacks.
    for header, variable in (
        ("content-length", "CONTENT_LENGTH"),
        ("content-encoding", "HTTP_CONTENT_ENCODING"),
        ("git-protocol", "GIT_PROTOCOL"),
    ):
        if header in request.headers:
            environment[variable] = request.headers[header]
    process = await asyncio.create_subprocess_exec(
        "git",
        "http-backend",
        env=environment,
        cwd=forge.repositories,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None, "asked for a pipe"
    assert process.stdout is not None, "asked for a pipe"
    feeding = asyncio.create_task(_feed(request, body, process.stdin))
    try:
        status, headers = await _head(process.stdout)
        if whole:
            content = await process.stdout.read()
            await _ended(process, feeding)
            return Response(content, status, headers)
    except BaseException:
        await _stop(process, feeding)
        raise
    return StreamingResponse(_stream(process, feeding), status, headers)


async def _at_once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _feed(request: Request, body: AsyncIterator[bytes], pipe: asyncio.StreamWriter) -> None:
    """Give the request's body to the program as it arrives."""
    try:
        async for chunk in body:
            if chunk:
                pipe.write(chunk)
                await pipe.drain()
    except ClientDisconnect:
        log.info("git_client_left path=%s", request.url.path)
    except (BrokenPipeError, ConnectionResetError):
        log.info("git_backend_stopped_reading path=%s", request.url.path)
    finally:
        pipe.close()


async def _head(pipe: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read the CGI headers."""
    status, headers = 200, {}
    while line := (await pipe.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        if name.lower() == "status":
            status = int(value.split()[0])
        else:
            headers[name] = value.strip()
    if not headers:
        status = 500  # it ended without a word
    return status, headers


async def _stream(
    process: asyncio.subprocess.Process, feeding: asyncio.Task[None]
) -> AsyncIterator[bytes]:
    assert process.stdout is not None, "asked for a pipe"
    try:
        while chunk := await process.stdout.read(CHUNK):
            yield chunk
        await _ended(process, feeding)
    finally:
        await _stop(process, feeding)


async def _ended(process: asyncio.subprocess.Process, feeding: asyncio.Task[None]) -> None:
    await feeding
    if await process.wait():
        log.warning("git_backend_failed status=%s", process.returncode)


async def _stop(process: asyncio.subprocess.Process, feeding: asyncio.Task[None]) -> None:
    """Leave nothing behind of a request that ended early."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if not feeding.done():
        feeding.cancel()
        with suppress(asyncio.CancelledError):
            await feeding


ROUTES = [
    Route("/{owner}/{repo}/info/refs", advertise, methods=["GET"]),
    Route("/{owner}/{repo}/git-upload-pack", upload_pack, methods=["POST"]),
    Route("/{owner}/{repo}/git-receive-pack", receive_pack, methods=["POST"]),
]
