"""Starts the sandbox-agent of a local sandbox, and finds the program.

sandbox-agent takes its token only in its command line, where other programs of the same
user can read it; on this machine they could read everything else of the sandbox as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from foundry_ray.core.errors import ProviderUnavailable, SandboxAgentMissing, SandboxStartFailed
from foundry_ray.providers import launcher
from foundry_ray.providers.local_files import LocalRecord, write_record
from foundry_ray.providers.processes import ID_VARIABLE, INSTANCE_VARIABLE, end, members

VERSION = "0.4.2"  # of sandbox-agent, the one whose behaviour this code was written against
HOST = "127.0.0.1"

_START_TRIES = 3  # a port found free may be taken before sandbox-agent binds it
_START_PATIENCE = 40.0  # seconds; it usually answers after a tenth of one
_HEALTH_PATIENCE = 2.0  # seconds that a live sandbox-agent has to answer before it is replaced
_POLL = 0.02  # seconds
_LOG_TAIL = 4096  # bytes
_LOG_LIMIT = 1024 * 1024  # bytes after which the log begins anew with the next start
_REQUEST_TIMEOUT_MS = 600_000  # what an agent may take to answer; the client is less patient
_INHERITED = (
    "PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)


def find_binary(explicit: Path | None = None, project: Path | None = None) -> Path:
    """Return the sandbox-agent program: the *explicit* one, else the project's, else PATH's.

    Args:
        explicit: What the setting ``FOUNDRY_SANDBOX_AGENT_BIN`` names; nothing else is tried.
        project: Directory with ``.tools/``; the one that holds this package if None.

    Raises:
        SandboxAgentMissing: It is not there, or not executable.
    """
    project = project or Path(__file__).resolve().parents[2]
    arch = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    package = f"@sandbox-agent/cli-{platform.system().lower()}-{arch}"
    fetched = project / ".tools" / "node_modules" / package / "bin" / "sandbox-agent"
    if explicit is not None:
        candidates = [explicit]
    else:
        on_path = shutil.which("sandbox-agent")
        candidates = [fetched, *([Path(on_path)] if on_path else [])]
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.absolute()
    raise SandboxAgentMissing(
        f"The sandbox-agent program was not found at {candidates[0]}.",
        hint="Run `make setup`, or `npm install --prefix .tools --ignore-scripts "
        f"{package}@{VERSION} && chmod 0755 .tools/node_modules/{package}/bin/sandbox-agent`, "
        "or name one with FOUNDRY_SANDBOX_AGENT_BIN.",
    )


async def is_ours(record: LocalRecord, token: str) -> bool:
    """Return whether a live sandbox-agent with this token answers.

    Raises:
        ProviderUnavailable: It answers 503; it comes to itself, or must be asked later.
    """
    known = record.token_sha256 or ""
    if not record.is_serving or not hmac.compare_digest(known, _digest(token)):
        return False
    until = time.monotonic() + _HEALTH_PATIENCE
    while time.monotonic() < until:
        if await _answers(record.port, token):
            return True
        await asyncio.sleep(_POLL)
    return False


async def serve(
    directory: Path, record: LocalRecord, token: str, binary: Path, base: Mapping[str, str]
) -> None:
    """Start sandbox-agent and return when it answers; *base* is what every sandbox gets.

    Raises:
        SandboxStartFailed: It ended; context ``log_tail`` has its words.
        ProviderUnavailable: It runs and does not answer yet, or answers 503.
    """
    log = directory / "agent.log"
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.unlink()
    for _ in range(_START_TRIES):
        port = _free_port()
        arguments = ["--host", HOST, "--port", str(port), "--token", token]
        started = await _launch(
            {
                "argv": [str(binary), "server", *arguments, "--no-telemetry"],
                "environment": _environment(directory, record, base),
                "cwd": str(directory / "home" / "work"),
                "log": str(log),
            }
        )
        serving = record.model_copy(
            update={**started, "port": port, "token_sha256": _digest(token)}
        )
        # Written before it answers, so that it can be ended if we die now.
        write_record(directory, serving)
        until = time.monotonic() + _START_PATIENCE
        while serving.is_serving and time.monotonic() < until:
            if await _answers(port, token):
                return
            await asyncio.sleep(_POLL)
        silent = serving.is_serving
        await end_processes(serving)
        if silent:
            write_record(directory, record.without_server())
            raise ProviderUnavailable(
                "sandbox-agent was started and did not answer in time.",
                hint="This machine may have too much to do; see its load.",
                log_tail=log_tail(directory),
            )
    write_record(directory, record.without_server())
    raise SandboxStartFailed(
        "sandbox-agent ended after it was started.",
        hint="Context log_tail has its last words; run the program by hand to see more.",
        log_tail=log_tail(directory),
    )


async def end_processes(*records: LocalRecord) -> None:
    """End everything that runs in these sandboxes, within three seconds.

    Raises:
        ProviderUnavailable: Some processes would not end; context ``pids`` names them.
    """
    marks = [record.mark for record in records]
    left = await asyncio.to_thread(end, lambda: members(*marks))
    if left:
        pids = sorted(member.pid for member in left)
        raise ProviderUnavailable("Some processes of the sandbox would not end.", pids=pids)


def log_tail(directory: Path) -> str:
    """Return the last words of a sandbox's sandbox-agent."""
    log = directory / "agent.log"
    return log.read_bytes()[-_LOG_TAIL:].decode(errors="replace") if log.exists() else ""


def _environment(directory: Path, record: LocalRecord, base: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of a sandbox: built from nothing, never Foundry's own."""
    own = json.loads((directory / "environment.json").read_bytes())
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        **{name: os.environ[name] for name in _INHERITED if name in os.environ},
        "LANG": "C.UTF-8",
        **base,
        **own,
        "HOME": str(directory / "home"),
        ID_VARIABLE: record.sandbox_id,
        INSTANCE_VARIABLE: record.instance_id,
        "SANDBOX_AGENT_REQUIRE_PREINSTALL": "1",
        "SANDBOX_AGENT_ACP_REQUEST_TIMEOUT_MS": str(_REQUEST_TIMEOUT_MS),
        "SANDBOX_AGENT_LOG_STDOUT": "1",
        "RUST_LOG": "warn",  # it would log two lines for every request, for ever
    }


async def _launch(order: dict[str, Any]) -> dict[str, int]:
    # In a thread: uvloop hears of the end of a child only in the main thread, and Ray runs
    # its actors' loop in another one (asyncio's own subprocess waited for ever there).
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-I", "-S", "-B", launcher.__file__],
        input=json.dumps(order).encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        words = done.stderr[-_LOG_TAIL:].decode(errors="replace")
        raise SandboxStartFailed("The launcher of sandbox-agent failed.", log_tail=words)
    started: dict[str, Any] = json.loads(done.stdout)
    if "error" in started:
        words = started["error"]["message"]
        raise SandboxStartFailed("sandbox-agent could not be started.", log_tail=words)
    return started


async def _answers(port: int | None, token: str) -> bool:
    """Return whether sandbox-agent answers on *port* and takes *token*.

    Raises:
        ProviderUnavailable: Something answers 503 in its place: it is to be asked later.
    """
    headers = {"Authorization": f"Bearer {token}"}
    # Not through a proxy of the environment: this is the own machine.
    async with httpx.AsyncClient(trust_env=False, timeout=_HEALTH_PATIENCE) as http:
        try:
            answer = await http.get(f"http://{HOST}:{port}/v1/health", headers=headers)
        except httpx.TransportError:
            return False
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise ProviderUnavailable(
            "The sandbox answers that it is not available.",
            hint="Foundry tries again for minutes; see whether the provider has trouble.",
            status=answer.status_code,
        )
    return answer.status_code == httpx.codes.OK


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
