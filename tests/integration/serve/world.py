"""The whole HTTP interface in one process: real PostgreSQL, real actors, real forge.

Sandboxes stay passive, as if nobody could host them: their mail waits, and tests say
themselves to a session what its agent would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urljoin

import httpx
import uvicorn
from fastapi import FastAPI
from httpx_sse import ServerSentEvent, aconnect_sse
from starlette.types import ASGIApp, Receive, Scope, Send

from foundry_ray import bootstrap
from foundry_ray.actors.task_session.messages import AgentSessionOpened, AppendRecords, Record
from foundry_ray.cluster.hints import Hinter
from foundry_ray.core import keys
from foundry_ray.core import settings as settings_module
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.settings import Settings
from foundry_ray.runtime.local import LocalHost
from foundry_ray.runtime.refs import Client
from foundry_ray.serve.app import Services, api_app, streams_app, webhooks_app
from foundry_ray.store.engine import Database
from foundry_ray.testing.forge.process import ForgeProcess
from tests.helpers import eventually


class Joined:
    """The three applications behind one door, as the proxy joins them: longest prefix wins."""

    def __init__(self, api: FastAPI, streams: FastAPI, webhooks: FastAPI) -> None:
        self._doors: tuple[tuple[str, ASGIApp], ...] = (
            ("/api/stream", streams),
            ("/webhooks", webhooks),
            ("/", api),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for prefix, app in self._doors:
            if scope["path"].startswith(prefix):
                # Ray Serve says where it hangs an application; routes carry full paths.
                root = prefix if prefix != "/" else ""
                await app({**scope, "root_path": root}, receive, send)
                return


class Host(LocalHost):
    """Hosts every entity but the sandboxes that a test did not ask for."""

    def __init__(self) -> None:
        super().__init__(supervise=True)
        self.sandboxes: set[str] = set()

    def ring(self, key: str) -> None:
        """Wake or start the activation of *key*."""
        if keys.kind_of(key) != "sandbox_instance" or key in self.sandboxes:
            super().ring(key)


class Server(uvicorn.Server):
    """uvicorn without its hands on the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class World:
    """A running Foundry without sandboxes."""

    settings: Settings
    forge: ForgeProcess
    database: Database
    host: Host
    services: Services
    streams: FastAPI
    server: Server
    serving: asyncio.Task[None]
    hinter: Hinter
    people: dict[str, Person] = field(default_factory=dict)

    @classmethod
    async def start(cls, forge: ForgeProcess, port: int, database_url: str) -> Self:
        """Start everything on a loopback port."""
        settings = settings_module.load(
            forge.data_dir,
            {
                "FOUNDRY_PORT": str(port),
                "FOUNDRY_SANDBOX_AGENT_BIN": str(forge.data_dir / "no-such-program"),
            },
        )
        clock = SystemClock()
        outside = bootstrap.adapters(settings, clock)
        database = Database(database_url, size=10)
        await database.open()
        hinter = Hinter(database)
        host = Host()
        host.kernel = bootstrap.kernel(outside, database, host, hinter.hint)
        client = Client(database, host, clock, actors=bootstrap.BY_KIND)
        services = Services(settings, database, client, outside, clock)
        streams = streams_app(services)
        app = Joined(api_app(services), streams, webhooks_app(services))
        config = uvicorn.Config(
            app, host="127.0.0.1", port=port, lifespan="off", log_config=None, access_log=False
        )
        server = Server(config)
        serving = asyncio.create_task(server.serve())
        host.ring(keys.APP)
        await eventually(lambda: server.started)
        return cls(settings, forge, database, host, services, streams, server, serving, hinter)

    async def close(self) -> None:
        """End everything; each activation finishes its turn."""
        for person in self.people.values():
            await person.http.aclose()
        self.server.should_exit = self.server.force_exit = True
        await self.serving
        await self.host.close()
        await self.hinter.close()
        await self.services.outside.aclose()
        await self.database.close()

    async def person(self, login: str) -> Person:
        """Return a signed-in person; the same one each time."""
        if login not in self.people:
            person = Person(self, self.browser())
            await person.sign_in(login)
            self.people[login] = person
        return self.people[login]

    def browser(self) -> httpx.AsyncClient:
        """Return a client without cookies."""
        return httpx.AsyncClient(base_url=self.settings.public_url, timeout=20, trust_env=False)

    async def fetch(self, sql: str, values: Any = None) -> list[dict[str, Any]]:
        """Run a query."""
        async with self.database.transaction() as transaction:
            return await transaction.fetch(sql, values)

    async def calm(self) -> None:
        """Wait until nothing is to do that earlier requests have begun."""

        async def idle() -> bool:
            waiting = await self.fetch(
                "SELECT target FROM rt_mailbox WHERE parked_at IS NULL AND due_at <= now()"
                " AND target NOT LIKE '%/sandbox/%'"
            )
            return not waiting

        await eventually(idle)

    async def totals(self) -> dict[str, int]:
        """Return the number of rows of everything that a request could change, once it is calm."""
        await self.calm()
        tables = (
            "rt_entity", "rt_inbox_seen", "repository_task", "task_session_message",
            "github_state_delivery", "app_shell_token",
        )  # fmt: skip
        [row] = await self.fetch(
            "SELECT " + ", ".join(f"(SELECT count(*) FROM {t}) AS {t}" for t in tables)
        )
        return dict(row)


@dataclass
class Person:
    """Somebody with a browser."""

    world: World
    http: httpx.AsyncClient

    async def sign_in(self, login: str, return_to: str = "/") -> httpx.Response:
        """Go through the OAuth pages; return the page at the end."""
        page = await self.http.get(
            "/api/auth/github/login", params={"return_to": return_to, "login": login}
        )
        for _ in range(5):
            if not page.is_redirect:
                break
            page = await self.http.get(urljoin(str(page.url), page.headers["location"]))
        return page

    async def call(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> httpx.Response:
        """Ask the API as a page of Foundry's own would."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.request(
            method,
            path,
            json=body,
            headers={"Origin": self.world.settings.public_url, **named},
        )

    async def get(self, path: str, status: int = 200) -> Any:
        """Read something."""
        answer = await self.call("GET", path)
        assert answer.status_code == status, answer.text
        return answer.json()

    @contextlib.asynccontextmanager
    async def stream(self, *topics: str, cursor: str | None = None) -> AsyncIterator[Stream]:
        """Watch topics."""
        headers = {"Last-Event-ID": cursor} if cursor else {}
        async with aconnect_sse(
            self.http, "GET", "/api/stream", params={"topics": ",".join(topics)}, headers=headers
        ) as source:
            assert source.response.status_code == 200, await source.response.aread()
            yield Stream(source.aiter_sse())


class Stream:
    """What comes on an open stream."""

    def __init__(self, events: AsyncIterator[ServerSentEvent]) -> None:
        self._events = events
        self.cursor = ""

    async def next(self, within: float = 10) -> tuple[str, dict[str, Any]]:
        """Return kind and data of the next event."""
        async with asyncio.timeout(within):
            event = await anext(self._events)
        self.cursor = event.id or self.cursor
        return event.event, json.loads(event.data)

    async def until(self, kind: str, within: float = 10) -> dict[str, Any]:
        """Return the data of the next event of a kind; others are passed over."""
        async with asyncio.timeout(within):
            while True:
                found, data = await self.next(within)
                if found == kind:
                    return data

    async def ended(self, within: float = 10) -> bool:
        """Return whether the stream ends, whatever comes before."""
        async with asyncio.timeout(within):
            async for _ in self._events:
                pass
        return True


@dataclass
class Acme:
    """The sample organization, as ada sees it."""

    world: World
    ada: Person
    id: str
    repository: str

    @property
    def place(self) -> str:
        """Return where it is."""
        return f"/api/organizations/{self.id}"

    async def create(self, prompt: str = "say hello", **more: Any) -> dict[str, Any]:
        """Make a task."""
        body = {"repository_id": self.repository, "prompt": prompt, "agent": "scripted", **more}
        answer = await self.ada.call("POST", f"{self.place}/tasks", body)
        assert answer.status_code == 201, answer.text
        task: dict[str, Any] = answer.json()
        return task

    def task_key(self, task: dict[str, Any]) -> str:
        """Return the key of a task."""
        return keys.task(keys.repository(self.id, self.repository), task["id"])

    def host_sandbox(self, task: dict[str, Any]) -> None:
        """Let the sandbox of a task begin; there is no sandbox-agent, so it fails."""
        [sandbox] = task["sandboxes"]
        key = keys.sandbox(self.id, sandbox["provider"], sandbox["id"])
        self.world.host.sandboxes.add(key)
        self.world.host.ring(key)

    def session(self, task: dict[str, Any]) -> Talk:
        """Return the first session of a task."""
        return Talk(self, task)


@dataclass
class Talk:
    """A session whose agent is the test."""

    acme: Acme
    task: dict[str, Any]
    seq: int = 0

    @property
    def id(self) -> str:
        """Return the session's id."""
        return str(self.task["active_session_id"])

    @property
    def key(self) -> str:
        """Return the session's key."""
        return keys.session(self.acme.task_key(self.task), self.id)

    @property
    def place(self) -> str:
        """Return where the session is."""
        return f"{self.acme.place}/tasks/{self.task['id']}/sessions/{self.id}"

    @property
    def topic(self) -> str:
        """Return the session's topic."""
        return f"session:{self.acme.id}/{self.task['id']}/{self.id}"

    async def open(self) -> None:
        """Let the agent be there; its first turn begins."""
        opened = AgentSessionOpened(server_id="test", agent_session_id="one")
        await self.acme.world.services.client.tell(self.key, opened)
        await self.until("running")

    async def until(self, status: str) -> dict[str, Any]:
        """Wait for a status; return the session."""

        async def seen() -> dict[str, Any] | None:
            said: dict[str, Any] = await self.acme.ada.get(self.place)
            return said if said["status"] == status else None

        found = await eventually(seen)
        assert found is not None
        return found

    async def agent(self, *payloads: dict[str, Any]) -> None:
        """Let the agent say something."""
        await self._append([("out", payload) for payload in payloads])

    async def end(self) -> None:
        """Let the running turn end."""
        await self._append([("end", {"stopReason": "end_turn"})])

    async def _append(self, said: list[tuple[str, dict[str, Any]]]) -> None:
        [row] = await self.acme.world.fetch(
            "SELECT turn_message_id, cursor FROM task_session WHERE actor_key = %s", (self.key,)
        )
        first = row["cursor"] + 1
        records = [
            Record(
                seq=first + place,
                at_ms=0,
                direction=direction,  # type: ignore[arg-type]
                message_id=row["turn_message_id"],
                payload=payload,
            )
            for place, (direction, payload) in enumerate(said)
        ]
        await self.acme.world.host.hand(self.key, AppendRecords(records=records))


def note(text: str) -> dict[str, Any]:
    """Return an update of the agent."""
    return {"jsonrpc": "2.0", "method": "session/update", "params": {"text": text}}


def question(rpc_id: int) -> dict[str, Any]:
    """Return a permission request of the agent."""
    return {
        "jsonrpc": "2.0",
        "id": rpc_id,
        "method": "session/request_permission",
        "params": {
            "toolCall": {"title": "Write a file"},
            "options": [{"optionId": "yes", "name": "Yes", "kind": "allow_once"}],
        },
    }


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a problem document; return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    said: dict[str, Any] = answer.json()
    assert said["code"] == code, said
    assert said["status"] == status
    assert said["detail"]
    assert re.fullmatch(r"[0-9a-z]{26}", said["request_id"])
    assert answer.headers["x-request-id"] == said["request_id"]
    return said
