"""Local sandboxes: a directory and a real sandbox-agent process each.

They separate work, not trust: the agent runs as Foundry's user and can read what it can.

A sandbox is ``<root>/<sandbox id>/`` with ``home/`` (``$HOME`` of the agents), ``home/work/``
(the clone), ``environment.json`` (what the agents need, keys included: mode 0600),
``sandbox.json`` (what runs, so that another process can adopt or end it) and ``agent.log``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import platform
import re
import shutil
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field

from foundry_ray.core.errors import (
    InvalidInput,
    ProviderUnavailable,
    SandboxAgentMissing,
    SandboxGone,
    SandboxStartFailed,
)
from foundry_ray.providers import launcher
from foundry_ray.providers.base import Endpoint, SandboxFacts, SandboxSpec
from foundry_ray.providers.processes import (
    ID_VARIABLE,
    INSTANCE_VARIABLE,
    Mark,
    end,
    is_alive,
    members,
)

VERSION = "0.4.2"  # of sandbox-agent, the one whose behaviour this code was written against

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")  # becomes a directory name
_HOST = "127.0.0.1"
_START_TRIES = 3  # a port found free may be taken before sandbox-agent binds it
_START_PATIENCE = 10.0  # seconds; it usually answers after a tenth of one
_HEALTH_PATIENCE = 2.0  # seconds that a live sandbox-agent has to answer before it is replaced
_LOCK_PATIENCE = 30.0  # seconds to wait for another process at work on the same sandbox
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


class LocalRecord(BaseModel):
    """What ``sandbox.json`` says: whose sandbox this is and what runs in it.

    The token is not in it, only its hash, so that a live sandbox-agent can be recognised.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sandbox_id: str
    instance_id: str
    state: Literal["started", "stopped"] = "started"
    labels: Mapping[str, str] = Field(default_factory=dict)
    pid: int | None = None
    start: int | None = None
    port: int | None = None
    token_sha256: str | None = None

    @property
    def is_serving(self) -> bool:
        """Whether its sandbox-agent is alive."""
        return is_alive(self.pid, self.start)

    @property
    def mark(self) -> Mark:
        """How its processes are known; the session of a double-forked program is its parent's."""
        session = _session_of(self.pid) if self.pid is not None and self.is_serving else None
        return Mark(self.sandbox_id, self.instance_id, session)


def list_local(root: Path) -> list[LocalRecord]:
    """Return every local sandbox under *root*, by id; look at ``is_serving`` for life."""
    if not root.is_dir():
        return []
    return [
        LocalRecord.model_validate_json(file.read_bytes())
        for file in sorted(root.glob("*/sandbox.json"))
    ]


def end_all(root: Path) -> list[LocalRecord]:
    """End the processes of every sandbox under *root* at once, within three seconds.

    The sandboxes stay, ready to be served again. Returns those whose processes were ended.

    Raises:
        ProviderUnavailable: Some would not end; context ``pids`` names them.
    """
    records = list_local(root)
    marks = {record.sandbox_id: record.mark for record in records}
    busy = [record for record in records if members(marks[record.sandbox_id])]
    _end(lambda: set().union(*(members(marks[record.sandbox_id]) for record in busy)))
    for record in busy:
        _write_record(root / record.sandbox_id, record.model_copy(update=_NOT_SERVING))
    return busy


class LocalProvider:
    """Makes sandboxes on this machine; see the module's words on trust.

    Args:
        root: Directory of all sandboxes.
        instance_id: The Foundry instance whose sandboxes these are.
        binary: The sandbox-agent program; looked for by ``find_binary`` if None.
        files: What every home gets: content and mode by path relative to the home.
        environment: What every sandbox's programs get besides their own.
    """

    name = "local"

    def __init__(
        self,
        root: Path,
        *,
        instance_id: str,
        binary: Path | None = None,
        files: Mapping[str, tuple[bytes, int]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._root = root.absolute()
        self._instance_id = instance_id
        self._binary = binary
        self._files = dict(files or {})
        self._environment = dict(environment or {})

    async def create(self, spec: SandboxSpec) -> SandboxFacts:
        """Make the directory with everything in it, or refresh the one that is there."""
        async with self._locked(spec.sandbox_id, make=True) as directory:
            await asyncio.to_thread(self._prepare, directory, spec)
            return self._facts(self._read(spec.sandbox_id))

    async def get(self, sandbox_id: str) -> SandboxFacts:
        """Return the facts of a sandbox; ``SandboxGone`` if there is none."""
        return self._facts(self._read(sandbox_id))

    async def start(self, sandbox_id: str) -> SandboxFacts:
        """Let a stopped sandbox be served again."""
        async with self._locked(sandbox_id):
            record = self._read(sandbox_id).model_copy(update={"state": "started"})
            _write_record(self._directory(sandbox_id), record)
            return self._facts(record)

    async def stop(self, sandbox_id: str) -> None:
        """End every process of the sandbox, within three seconds; its files stay."""
        with contextlib.suppress(SandboxGone):
            async with self._locked(sandbox_id) as directory:
                record = self._read(sandbox_id)
                await _end_processes(record)
                stopped = record.model_copy(update={"state": "stopped", **_NOT_SERVING})
                _write_record(directory, stopped)

    async def delete(self, sandbox_id: str) -> None:
        """End every process of the sandbox and remove its directory."""
        with contextlib.suppress(SandboxGone):
            async with self._locked(sandbox_id) as directory:
                await _end_processes(self._read(sandbox_id))
                await asyncio.to_thread(_remove, directory)

    async def start_sandbox_agent(self, sandbox_id: str, token: str) -> None:
        """Adopt a live and answering sandbox-agent with this token, or start one."""
        async with self._locked(sandbox_id) as directory:
            record = self._read(sandbox_id)
            if record.state != "started":
                raise SandboxStartFailed("The sandbox is stopped.", hint="Start it first.")
            if await self._is_ours(record, token):
                return
            await _end_processes(record)
            await self._serve(directory, record, token)

    async def preview_endpoint(self, sandbox_id: str) -> Endpoint:
        """Return the loopback address of the sandbox's sandbox-agent."""
        record = self._read(sandbox_id)
        if not record.is_serving:
            raise SandboxStartFailed(
                "No sandbox-agent runs in the sandbox.",
                log_tail=_log_tail(self._directory(sandbox_id)),
            )
        return Endpoint(url=f"http://{_HOST}:{record.port}")

    # -- one sandbox's directory -----------------------------------------------

    def _directory(self, sandbox_id: str) -> Path:
        if not _SAFE_ID.fullmatch(sandbox_id):
            raise InvalidInput(f"{sandbox_id!r} cannot be the name of a local sandbox.")
        return self._root / sandbox_id

    def _read(self, sandbox_id: str) -> LocalRecord:
        try:
            content = (self._directory(sandbox_id) / "sandbox.json").read_bytes()
        except FileNotFoundError:
            raise SandboxGone(sandbox_id=sandbox_id) from None
        return LocalRecord.model_validate_json(content)

    def _facts(self, record: LocalRecord) -> SandboxFacts:
        home = self._directory(record.sandbox_id) / "home"
        return SandboxFacts(
            provider_id=record.sandbox_id,
            state=record.state,
            home=str(home),
            work_dir=str(home / "work"),
        )

    def _prepare(self, directory: Path, spec: SandboxSpec) -> None:
        home = directory / "home"
        (home / "work").mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, (content, mode) in self._files.items():
            _write(home / path, content, mode)
        _write(directory / "environment.json", json.dumps(dict(spec.environment)).encode(), 0o600)
        try:
            record = self._read(spec.sandbox_id)
        except SandboxGone:
            record = LocalRecord(sandbox_id=spec.sandbox_id, instance_id=spec.instance_id)
        _write_record(directory, record.model_copy(update={"labels": dict(spec.labels)}))

    @contextlib.asynccontextmanager
    async def _locked(self, sandbox_id: str, *, make: bool = False) -> AsyncIterator[Path]:
        """Work on a sandbox while no other process does; the lock dies with its holder."""
        directory = self._directory(sandbox_id)
        if make:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise SandboxGone(sandbox_id=sandbox_id) from None
        try:
            until = time.monotonic() + _LOCK_PATIENCE
            while not _try_lock(lock):
                if time.monotonic() > until:
                    raise ProviderUnavailable("Somebody else is at work on this sandbox.")
                await asyncio.sleep(_POLL)
            yield directory
        finally:
            os.close(lock)

    # -- its sandbox-agent -----------------------------------------------------

    async def _is_ours(self, record: LocalRecord, token: str) -> bool:
        known = record.token_sha256 or ""
        if not record.is_serving or not hmac.compare_digest(known, _digest(token)):
            return False
        until = time.monotonic() + _HEALTH_PATIENCE
        while time.monotonic() < until:
            if await _answers(record.port, token):
                return True
            await asyncio.sleep(_POLL)
        return False

    async def _serve(self, directory: Path, record: LocalRecord, token: str) -> None:
        binary = find_binary(self._binary)
        log = directory / "agent.log"
        if log.exists() and log.stat().st_size > _LOG_LIMIT:
            log.unlink()
        for _ in range(_START_TRIES):
            port = _free_port()
            arguments = ["--host", _HOST, "--port", str(port), "--token", token]
            started = await _launch(
                {
                    "argv": [str(binary), "server", *arguments, "--no-telemetry"],
                    "environment": self._environment_of(directory, record),
                    "cwd": str(directory / "home" / "work"),
                    "log": str(log),
                }
            )
            serving = record.model_copy(
                update={**started, "port": port, "token_sha256": _digest(token)}
            )
            # Written before it answers, so that it can be ended if we die now.
            _write_record(directory, serving)
            until = time.monotonic() + _START_PATIENCE
            while serving.is_serving and time.monotonic() < until:
                if await _answers(port, token):
                    return
                await asyncio.sleep(_POLL)
            await _end_processes(serving)
        _write_record(directory, record.model_copy(update=_NOT_SERVING))
        raise SandboxStartFailed(
            "sandbox-agent ended or did not answer after it was started.",
            hint="Its last words are below; run the program by hand to see more.",
            log_tail=_log_tail(directory),
        )

    def _environment_of(self, directory: Path, record: LocalRecord) -> dict[str, str]:
        """Return the whole environment of a sandbox: built from nothing, never Foundry's own."""
        own = json.loads((directory / "environment.json").read_bytes())
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            "LANG": "C.UTF-8",
            **self._environment,
            **own,
            "HOME": str(directory / "home"),
            ID_VARIABLE: record.sandbox_id,
            INSTANCE_VARIABLE: record.instance_id,
            "SANDBOX_AGENT_REQUIRE_PREINSTALL": "1",
            "SANDBOX_AGENT_ACP_REQUEST_TIMEOUT_MS": str(_REQUEST_TIMEOUT_MS),
            "SANDBOX_AGENT_LOG_STDOUT": "1",
            "RUST_LOG": "warn",  # it would log two lines for every request, for ever
        }


_NOT_SERVING: dict[str, Any] = {"pid": None, "start": None, "port": None, "token_sha256": None}


async def _launch(order: dict[str, Any]) -> dict[str, int]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-B", launcher.__file__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer, trouble = await process.communicate(json.dumps(order).encode())
    if process.returncode != 0:
        raise SandboxStartFailed(
            "The launcher of sandbox-agent failed.", log_tail=trouble[-_LOG_TAIL:].decode()
        )
    started: dict[str, Any] = json.loads(answer)
    if "error" in started:
        raise SandboxStartFailed(
            "sandbox-agent could not be started.", log_tail=started["error"]["message"]
        )
    return started


async def _answers(port: int | None, token: str) -> bool:
    """Return whether sandbox-agent answers on *port* and takes *token*."""
    headers = {"Authorization": f"Bearer {token}"}
    # Not through a proxy of the environment: this is the own machine.
    async with httpx.AsyncClient(trust_env=False, timeout=_HEALTH_PATIENCE) as http:
        try:
            answer = await http.get(f"http://{_HOST}:{port}/v1/health", headers=headers)
        except httpx.TransportError:
            return False
    return answer.status_code == httpx.codes.OK


async def _end_processes(record: LocalRecord) -> None:
    mark = record.mark
    await asyncio.to_thread(_end, lambda: members(mark))


def _end(find: Callable[[], set[Any]]) -> None:
    if left := end(find):
        raise ProviderUnavailable(
            "Some processes of the sandbox would not end.",
            pids=sorted(member.pid for member in left),
        )


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _log_tail(directory: Path) -> str:
    log = directory / "agent.log"
    return log.read_bytes()[-_LOG_TAIL:].decode(errors="replace") if log.exists() else ""


def _write_record(directory: Path, record: LocalRecord) -> None:
    _write(directory / "sandbox.json", record.model_dump_json().encode(), 0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a whole file at once: a reader sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
    draft.replace(path)


def _remove(directory: Path) -> None:
    """Remove a tree, directories that its owner made read-only included."""

    def make_writable(_call: Any, path: str, error: Any) -> None:
        if not isinstance(error[1], PermissionError):
            raise error[1]
        parent = Path(path).parent
        parent.chmod(parent.stat().st_mode | stat.S_IRWXU)
        if Path(path).is_dir():
            Path(path).chmod(stat.S_IRWXU)
            shutil.rmtree(path, onerror=make_writable)
        else:
            Path(path).unlink()

    shutil.rmtree(directory, onerror=make_writable)
