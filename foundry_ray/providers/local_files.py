"""The directory of a local sandbox, and what it says about what runs.

``<root>/<sandbox id>/`` holds ``home/`` (``$HOME`` of the agents), ``home/work/`` (the
clone), ``environment.json`` (what the agents need, keys included: mode 0600),
``sandbox.json`` (what runs, so that another process can adopt or end it) and ``agent.log``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foundry_ray.core.errors import ProviderUnavailable, SandboxGone
from foundry_ray.providers.processes import Mark, is_alive, session_of

LOCK_PATIENCE = 30.0  # seconds to wait for another process at work on the same sandbox
_POLL = 0.02  # seconds


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
        """How its processes are known."""
        session = session_of(self.pid) if self.pid is not None and self.is_serving else None
        return Mark(self.sandbox_id, self.instance_id, session)

    def without_server(self) -> LocalRecord:
        """Return the same with no sandbox-agent."""
        nothing = {"pid": None, "start": None, "port": None, "token_sha256": None}
        return self.model_copy(update=nothing)


def list_local(root: Path) -> list[LocalRecord]:
    """Return every local sandbox under *root*, by id; look at ``is_serving`` for life."""
    files = sorted(root.glob("*/sandbox.json"))
    return [LocalRecord.model_validate_json(file.read_bytes()) for file in files]


def read_record(directory: Path) -> LocalRecord:
    """Return what is known of a sandbox; ``SandboxGone`` if there is none."""
    try:
        content = (directory / "sandbox.json").read_bytes()
    except FileNotFoundError:
        raise SandboxGone(sandbox_id=directory.name) from None
    return LocalRecord.model_validate_json(content)


def write_record(directory: Path, record: LocalRecord) -> None:
    """Replace what is known of a sandbox."""
    write(directory / "sandbox.json", record.model_dump_json().encode(), 0o600)


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a whole file at once: a reader sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
    draft.replace(path)


def remove(directory: Path) -> None:
    """Remove a tree, directories that its owner made read-only included."""

    def make_writable(_call: Any, path: str, error: Any) -> None:
        if not isinstance(error[1], PermissionError):
            raise error[1]
        here = Path(path)
        here.parent.chmod(here.parent.stat().st_mode | stat.S_IRWXU)
        if here.is_dir() and not here.is_symlink():
            here.chmod(stat.S_IRWXU)
            shutil.rmtree(here, onerror=make_writable)
        else:
            here.unlink()

    shutil.rmtree(directory, onerror=make_writable)


@contextlib.asynccontextmanager
async def locked(directory: Path) -> AsyncIterator[None]:
    """Work on a sandbox while no other process does; the lock dies with its holder.

    Raises:
        SandboxGone: There is no such directory.
        ProviderUnavailable: Another process is at work for too long.
    """
    until = time.monotonic() + LOCK_PATIENCE
    path = directory / ".lock"
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise SandboxGone(sandbox_id=directory.name) from None
        try:
            if _try_lock(lock) and _is_still(path, lock):
                yield
                return
        finally:
            os.close(lock)
        if time.monotonic() > until:
            raise ProviderUnavailable("Somebody else is at work on this sandbox.")
        await asyncio.sleep(_POLL)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, lock: int) -> bool:
    """Return whether *path* is the file that was locked, not one of a new directory."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(lock))
    except FileNotFoundError:
        return False
