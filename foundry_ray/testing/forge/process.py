"""Starting a forge from a test or a program and ending exactly that one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from foundry_ray.core.errors import Unavailable

READY_WITHIN = 30.0  # seconds: a first start makes keys and a repository on a busy machine
STOP_WITHIN = 5.0  # seconds before it is ended by force


@dataclass
class ForgeProcess:
    """A forge that runs in a session of its own."""

    url: str
    port: int
    pid: int
    data_dir: Path
    settings_file: Path
    process: asyncio.subprocess.Process

    @property
    def api_url(self) -> str:
        """The base of the REST API."""
        return f"{self.url}/api/v3"

    @property
    def admin_secret(self) -> str:
        """What the header ``X-Forge-Admin`` must say."""
        return (self.data_dir / "forge" / "admin.secret").read_text().strip()

    async def stop(self) -> int:
        """End it and everything it started; return its exit status (0 when it ended itself)."""
        if self.process.returncode is None:
            self.process.terminate()
        try:
            return await asyncio.wait_for(self._ended(), STOP_WITHIN)
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """End it without a word, as a crash would."""
        _end_session(self.pid)
        return await self._ended()

    async def _ended(self) -> int:
        status = await self.process.wait()
        if self.process.stdout is not None:
            await self.process.stdout.read()  # to its end, which closes our side of the pipe
        return status


async def start_forge(
    data_dir: Path,
    *,
    seed: str | None = "demo",
    webhook_url: str | None = None,
    settings_file: Path | None = None,
    port: int | None = None,
) -> ForgeProcess:
    """Start a forge on *data_dir* and return once it serves.

    Args:
        settings_file: Gets the seeded App's settings; ``<data_dir>/foundry.toml`` if not given.
        port: The loopback port; the one of last time, or a free one, if not given.

    Raises:
        Unavailable: It did not start; its own words are in ``<data_dir>/forge/forge.log``.
    """
    data_dir = data_dir.resolve()
    root = data_dir / "forge"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings_file = settings_file or data_dir / "foundry.toml"
    options = ["--data-dir", str(data_dir), "--settings-file", str(settings_file)]
    if seed is not None:
        options += ["--seed", seed]
    if webhook_url is not None:
        options += ["--webhook-url", webhook_url]
    if port is not None:
        options += ["--port", str(port)]
    with (root / "forge.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "foundry_ray.testing.forge"),
            *options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdout is not None, "asked for a pipe"
    try:
        line = await asyncio.wait_for(process.stdout.readline(), READY_WITHIN)
    except BaseException as trouble:
        _end_session(process.pid)
        await process.wait()
        if isinstance(trouble, TimeoutError):
            raise Unavailable("The local forge did not start in time.") from trouble
        raise
    if not line:
        status = await process.wait()
        words = (root / "forge.log").read_text(errors="replace").strip().splitlines()[-1:]
        raise Unavailable(f"The local forge ended with {status}: {' '.join(words)}")
    ready = json.loads(line)
    return ForgeProcess(
        url=ready["url"],
        port=ready["port"],
        pid=ready["pid"],
        data_dir=data_dir,
        settings_file=settings_file,
        process=process,
    )


def _end_session(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself meanwhile
