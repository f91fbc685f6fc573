"""Local sandboxes: a directory and a real sandbox-agent process each.

They separate work, not trust: the agent runs as Foundry's user and can read what it can.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import structlog

from foundry_ray.core.errors import InvalidInput, SandboxGone, SandboxStartFailed
from foundry_ray.providers.base import Endpoint, SandboxFacts, SandboxSpec
from foundry_ray.providers.local_files import (
    LocalRecord,
    list_local,
    locked,
    read_record,
    remove,
    write,
    write_record,
)
from foundry_ray.providers.local_server import (
    HOST,
    end_processes,
    find_binary,
    is_ours,
    log_tail,
    serve,
)
from foundry_ray.providers.processes import members

__all__ = ["LocalProvider", "LocalRecord", "end_all", "find_binary", "list_local"]

log = structlog.get_logger(__name__)

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")  # becomes a directory name


async def end_all(root: Path) -> list[LocalRecord]:
    """End the processes of every sandbox under *root* at once, within three seconds.

    The sandboxes stay, ready to be served again. Returns those whose processes were ended.

    Raises:
        ProviderUnavailable: Some would not end; context ``pids`` names them.
    """
    busy = [record for record in list_local(root) if members(record.mark)]
    await end_processes(*busy)
    for record in busy:
        write_record(root / record.sandbox_id, record.without_server())
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
        """Make the directory with everything in it, or refresh the one that is there.

        A changed environment reaches programs when sandbox-agent is started the next time.
        """
        directory = self._directory(spec.sandbox_id)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with locked(directory):
            return _facts(directory, await asyncio.to_thread(self._prepare, directory, spec))

    async def get(self, sandbox_id: str) -> SandboxFacts:
        """Return the facts of a sandbox; ``SandboxGone`` if there is none."""
        directory = self._directory(sandbox_id)
        return _facts(directory, read_record(directory))

    async def start(self, sandbox_id: str) -> SandboxFacts:
        """Let a stopped sandbox be served again."""
        directory = self._directory(sandbox_id)
        async with locked(directory):
            record = read_record(directory).model_copy(update={"state": "started"})
            write_record(directory, record)
            return _facts(directory, record)

    async def stop(self, sandbox_id: str) -> None:
        """End every process of the sandbox, within three seconds; its files stay."""
        directory = self._directory(sandbox_id)
        with contextlib.suppress(SandboxGone):
            async with locked(directory):
                record = read_record(directory)
                await end_processes(record)
                stopped = record.without_server().model_copy(update={"state": "stopped"})
                write_record(directory, stopped)
                log.info("sandbox_stopped", sandbox_id=sandbox_id)

    async def delete(self, sandbox_id: str) -> None:
        """End every process of the sandbox and remove its directory."""
        directory = self._directory(sandbox_id)
        with contextlib.suppress(SandboxGone):
            async with locked(directory):
                with contextlib.suppress(SandboxGone):  # its making was interrupted
                    await end_processes(read_record(directory))
                await asyncio.to_thread(remove, directory)
                log.info("sandbox_deleted", sandbox_id=sandbox_id)

    async def start_sandbox_agent(self, sandbox_id: str, token: str) -> None:
        """Adopt a live and answering sandbox-agent with this token, or start one."""
        directory = self._directory(sandbox_id)
        async with locked(directory):
            record = read_record(directory)
            if record.state != "started":
                raise SandboxStartFailed("The sandbox is stopped.", hint="Start it first.")
            if await is_ours(record, token):
                log.info("sandbox_agent_adopted", sandbox_id=sandbox_id, pid=record.pid)
                return
            binary = find_binary(self._binary)
            await end_processes(record)
            await serve(directory, record, token, binary, self._environment)
            log.info("sandbox_agent_started", sandbox_id=sandbox_id)

    async def preview_endpoint(self, sandbox_id: str) -> Endpoint:
        """Return the loopback address of the sandbox's sandbox-agent."""
        directory = self._directory(sandbox_id)
        record = read_record(directory)
        if not record.is_serving:
            words = "No sandbox-agent runs in the sandbox."
            raise SandboxStartFailed(words, log_tail=log_tail(directory))
        return Endpoint(url=f"http://{HOST}:{record.port}")

    def _directory(self, sandbox_id: str) -> Path:
        if not _SAFE_ID.fullmatch(sandbox_id):
            raise InvalidInput(f"{sandbox_id!r} cannot be the name of a local sandbox.")
        return self._root / sandbox_id

    def _prepare(self, directory: Path, spec: SandboxSpec) -> LocalRecord:
        home = directory / "home"
        (home / "work").mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, (content, mode) in self._files.items():
            write(home / path, content, mode)
        write(directory / "environment.json", json.dumps(dict(spec.environment)).encode(), 0o600)
        try:
            known = read_record(directory)
        except SandboxGone:
            known = LocalRecord(sandbox_id=spec.sandbox_id, instance_id=self._instance_id)
        record = known.model_copy(update={"labels": dict(spec.labels)})
        write_record(directory, record)
        return record


def _facts(directory: Path, record: LocalRecord) -> SandboxFacts:
    home = directory / "home"
    return SandboxFacts(
        provider_id=record.sandbox_id,
        state=record.state,
        home=str(home),
        work_dir=str(home / "work"),
    )
