"""A tiny HTTP server whose answers each test writes, and the adapter in front of it."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from foundry_ray.integrations.github.base import GitHubSettings
from foundry_ray.integrations.github.client import PyGithubAdapter


@dataclass
class Request:
    verb: str
    path: str
    headers: dict[str, str]
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False
    wait: threading.Event | None = None


@dataclass
class Server:
    """Answers with what `answer` makes of a request; keeps what came."""

    url: str
    answer: Callable[[Request], Answer] = lambda request: Answer(404, {"message": "Not Found"})
    seen: list[Request] = field(default_factory=list)

    def always(self, status: int = 200, body: Any = None, **headers: str) -> None:
        fixed = Answer(
            status,
            {} if body is None else body,
            {k.replace("_", "-"): v for k, v in headers.items()},
        )
        self.answer = lambda request: fixed


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10  # seconds
        wbufsize = 65536  # one packet per answer

        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            request = Request(
                self.command, self.path, dict(self.headers), self.rfile.read(length).decode()
            )
            state.seen.append(request)
            answer = state.answer(request)
            if answer.wait is not None:
                answer.wait.wait(10)
            if answer.hang_up:
                self.close_connection = True
                return
            body = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            raw = body.encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _handle  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(url=f"http://127.0.0.1:{httpd.server_address[1]}")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(scope="session")
def app_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


@pytest.fixture
def settings(server: Server, app_key: str) -> GitHubSettings:
    return GitHubSettings(
        web_url=server.url,
        api_url=f"{server.url}/api/v3",
        app_id=7,
        app_slug="foundry-demo",
        app_key=SecretStr(app_key),
        client_id="Iv1.client",
        client_secret=SecretStr("client-secret-0123456789"),
        webhook_secret=SecretStr("webhook-secret-0123456789"),
        retries=0,
        seconds_between_requests=None,
        seconds_between_writes=None,
    )


@pytest.fixture
async def github(settings: GitHubSettings) -> AsyncIterator[PyGithubAdapter]:
    adapter = PyGithubAdapter(settings)
    yield adapter
    await adapter.aclose()
