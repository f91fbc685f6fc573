"""Connections to GitHub: one per identity, each used by one call at a time.

PyGithub is synchronous and a client of it must not be shared by two threads at
once (it keeps the request on the connection object until it is sent). GitHub
also asks that one identity's requests come one after another. So each identity
has a line: callers queue on it without holding a thread, and a bounded pool of
threads serves all lines.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TypeVar

from github import Auth, BadAttributeException, Github, GithubException

from foundry_ray.core.clock import Clock
from foundry_ray.core.errors import FoundryError, GitHubUnavailable, Unauthenticated
from foundry_ray.integrations.github.app_auth import RENEW_BEFORE, app_auth, connect, mint
from foundry_ray.integrations.github.base import GitHubSettings
from foundry_ray.integrations.github.errors import Malformed, classify

R = TypeVar("R")

THREADS = 8
MOST_LINES = 64  # identities whose connections are kept open

_APP = "app"


class Line:
    """One identity's client, the lock of its queue, and what must never be printed of it."""

    def __init__(self, github: Github, *secrets: str, good_until: datetime | None = None) -> None:
        self.github = github
        self.secrets = secrets
        self.good_until = good_until
        self.lock = asyncio.Lock()
        self.discarded = False


class Lines:
    """The lines of one adapter; belongs to one event loop."""

    def __init__(self, settings: GitHubSettings, clock: Clock) -> None:
        _keep_answers_out_of_the_log()
        self._settings = settings
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="github")
        self._lines: OrderedDict[str, Line] = OrderedDict()
        self._minting: dict[str, asyncio.Lock] = {}
        self._closing = False

    async def as_app(self, work: Callable[[Github], R]) -> R:
        """Run *work* in a thread as the App."""
        line = self._find(_APP)
        if line is None:
            client = connect(self._settings, app_auth(self._settings), mints=True)
            secret = self._settings.webhook_secret.get_secret_value()
            line = self._keep(_APP, Line(client, secret))
        return await self._call(_APP, line, work)

    async def as_user(self, token: str, work: Callable[[Github], R]) -> R:
        """Run *work* in a thread with a person's token."""
        if not token:
            raise Unauthenticated
        key = f"user/{hashlib.sha256(token.encode()).hexdigest()}"
        line = self._find(key)
        if line is None:
            line = self._keep(key, Line(connect(self._settings, Auth.Token(token)), token))
        return await self._call(key, line, work)

    async def as_installation(
        self, installation_id: int, permissions: dict[str, str], work: Callable[[Github], R]
    ) -> R:
        """Run *work* in a thread as an installation with these permissions only."""
        key = f"installation/{installation_id}/{json.dumps(permissions, sort_keys=True)}"
        minting = self._minting.setdefault(key, asyncio.Lock())
        async with minting:
            line = self._find(key)
            if line is None:
                granted = await self.as_app(
                    lambda app: mint(
                        app, installation_id, repository_ids=None, permissions=permissions
                    )
                )
                token = granted.token.get_secret_value()
                client = connect(self._settings, Auth.Token(token))
                line = self._keep(
                    key, Line(client, token, good_until=granted.expires_at - RENEW_BEFORE)
                )
        return await self._call(key, line, work)

    async def aclose(self) -> None:
        """Wait for the requests on their way, then close every connection and thread."""
        self._closing = True
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        for line in self._lines.values():
            line.github.close()
        self._lines.clear()

    async def _call(self, key: str, line: Line, work: Callable[[Github], R]) -> R:
        await line.lock.acquire()
        if self._closing:
            line.lock.release()
            raise GitHubUnavailable(reason="closing")
        try:
            running = asyncio.get_running_loop().run_in_executor(
                self._threads, self._attempt, line, work
            )
        except BaseException:
            line.lock.release()
            raise
        # The lock is held until the thread is done, even when the caller has left.
        running.add_done_callback(lambda _: self._release(line))
        outcome: R | FoundryError
        try:
            async with asyncio.timeout(self._settings.timeout):
                outcome = await asyncio.shield(running)
        except TimeoutError:
            outcome = GitHubUnavailable(reason="timeout", seconds=self._settings.timeout)
        except asyncio.CancelledError:
            if not running.cancelled():
                raise
            outcome = GitHubUnavailable(reason="closing")
        if isinstance(outcome, FoundryError):
            if isinstance(outcome, Unauthenticated):
                self._discard(key, line)
            # Raised here and not where it was caught: a chained cause would hold the
            # request with its headers, and so a token.
            raise outcome
        return outcome

    def _attempt(self, line: Line, work: Callable[[Github], R]) -> R | FoundryError:
        """Do the work (in a thread) and return the result or what its failure means."""
        try:
            return work(line.github)
        except FoundryError as error:
            return error
        except (
            GithubException,
            BadAttributeException,
            Malformed,
            OSError,  # requests and sockets
            json.JSONDecodeError,
            UnicodeDecodeError,
        ) as error:
            return classify(error, now=self._clock.now(), secrets=line.secrets)

    def _find(self, key: str) -> Line | None:
        line = self._lines.get(key)
        if line is None:
            return None
        if line.good_until is not None and self._clock.now() >= line.good_until:
            self._discard(key, line)
            return None
        self._lines.move_to_end(key)
        return line

    def _keep(self, key: str, line: Line) -> Line:
        self._lines[key] = line
        while len(self._lines) > MOST_LINES:
            oldest = next(iter(self._lines))
            self._discard(oldest, self._lines[oldest])
            if (minting := self._minting.get(oldest)) and not minting.locked():
                del self._minting[oldest]
        return line

    def _discard(self, key: str, line: Line) -> None:
        if self._lines.get(key) is line:
            del self._lines[key]
        line.discarded = True
        if not line.lock.locked():
            line.github.close()

    def _release(self, line: Line) -> None:
        line.lock.release()
        if line.discarded:
            # A caller still queued on it opens a connection anew and closes it here too.
            line.github.close()


def _without_debug(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


def _keep_answers_out_of_the_log() -> None:
    """Drop PyGithub's debug records: they quote whole answers, fresh tokens among them."""
    logging.getLogger("github.Requester").addFilter(_without_debug)
