"""Running the forge: its directory, its port, its life as a process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import Busy, Unavailable
from foundry_ray.testing.forge import pushes, seed
from foundry_ray.testing.forge.app import build_app
from foundry_ray.testing.forge.context import Forge
from foundry_ray.testing.forge.shapes import Addresses
from foundry_ray.testing.forge.store import Store

HOST = "127.0.0.1"
GRACE = 1  # seconds that open requests have when the forge is told to stop


async def serve(
    data_dir: Path,
    *,
    port: int | None,
    seeding: bool,
    webhook_url: str | None,
    settings_file: Path,
) -> None:
    """Run a forge until SIGTERM or SIGINT; print one line of JSON when it serves.

    Args:
        data_dir: Holds the forge in its directory ``forge``.
        port: None: the one of last time, the first time a free one.
        settings_file: Where a seeded App's settings are written.

    Raises:
        Busy: Another forge runs on this directory.
        Unavailable: The port is taken.
    """
    root = data_dir / "forge"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_one(root), contextlib.closing(Store(root / "forge.sqlite3", SystemClock())) as store:
        listener = _listen(store, port)
        with contextlib.closing(listener):
            url = f"http://{HOST}:{listener.getsockname()[1]}"
            forge = Forge(root, Addresses(url), store, _admin_secret(root))
            await _prepare(forge, seeding, webhook_url, settings_file)
            await _Server(forge).serve(sockets=[listener])


async def _prepare(
    forge: Forge, seeding: bool, webhook_url: str | None, settings_file: Path
) -> None:
    forge.repositories.mkdir(exist_ok=True, mode=0o700)
    shutil.rmtree(forge.workroom, ignore_errors=True)
    if webhook_url is not None:
        # For the App that the seed is about to make, and for those that are there.
        forge.store.set_setting("first_webhook_url", webhook_url)
        forge.store.run("UPDATE apps SET webhook_url = ?", webhook_url)
    if seeding:
        await seed.seed_demo(forge)
        seed.tell_foundry(forge, settings_file)
    await pushes.settle_all(forge)


@contextlib.contextmanager
def _only_one(root: Path) -> Iterator[None]:
    with (root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as trouble:
            raise Busy(f"Another forge runs on {root}.") from trouble
        yield


def _listen(store: Store, port: int | None) -> socket.socket:
    """Bind the port that every stored URL of this forge names."""
    wanted = port or int(store.setting("port") or 0)
    # asyncio turns Nagle's delay (40 ms for each answer) off only where the protocol is said.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, wanted))
    except OSError as trouble:
        listener.close()
        raise Unavailable(
            f"Port {wanted} of {HOST} is taken.",
            hint="End the program that listens there, or choose another one with --port.",
        ) from trouble
    store.set_setting("port", str(listener.getsockname()[1]))
    return listener


def _admin_secret(root: Path) -> str:
    path = root / "admin.secret"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        found = path.read_text().strip()
        if found:
            return found
        handle = os.open(path, os.O_WRONLY)  # a start that died before it wrote
    secret = secrets.token_hex(24)
    with os.fdopen(handle, "w") as file:
        file.write(secret + "\n")
    return secret


class _Server(uvicorn.Server):
    """Ends with status 0 when it is told to, and says when it serves."""

    def __init__(self, forge: Forge) -> None:
        self.forge = forge
        super().__init__(
            uvicorn.Config(
                build_app(forge),
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=GRACE,
                server_header=False,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own way ends by raising the signal again, which looks like a crash.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            at = self.forge.at
            port = int(at.base.rsplit(":", 1)[1])
            print(json.dumps({"url": at.base, "port": port, "pid": os.getpid()}))
            sys.stdout.flush()
