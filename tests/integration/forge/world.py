"""A running forge with the clients that tests speak to it with."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from github import Auth, Github, GithubIntegration

from foundry_ray.testing.forge.process import ForgeProcess

CALLBACK = "http://127.0.0.1:9/callback"
# git asks this helper, so the token is in no argument, URL or configuration file.
HELPER = '!f() { echo username=x-access-token; echo "password=$FORGE_TOKEN"; }; f'


@dataclass
class World:
    """One forge; everything opened here is closed by `close`."""

    forge: ForgeProcess
    settings: dict[str, Any] = field(init=False)
    http: httpx.Client = field(init=False)
    _open: list[Any] = field(default_factory=list)
    _tokens: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = tomllib.loads(self.forge.settings_file.read_text())
        self.http = httpx.Client(timeout=20, trust_env=False, verify=False)

    def close(self) -> None:
        self.http.close()
        for client in self._open:
            client.close()

    # -- credentials ------------------------------------------------------------

    @property
    def app_auth(self) -> Auth.AppAuth:
        key = Path(self.settings["github_app_key_file"]).read_text()
        return Auth.AppAuth(self.settings["github_app_id"], key)

    def personal_token(self, login: str) -> str:
        if login not in self._tokens:
            self._tokens[login] = self.admin("POST", f"/users/{login}/tokens")["token"]
        return self._tokens[login]

    def user_token(self, login: str, scope: str = "read:org") -> str:
        """Sign in as *login* the way a browser and Foundry do."""
        verifier = secrets.token_urlsafe(40)
        hashed = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(hashed).decode().rstrip("=")
        back = self.authorize(login=login, scope=scope, code_challenge=challenge)
        answer = self.exchange(code=back["code"], code_verifier=verifier)
        return str(answer["access_token"])

    def authorize(self, **query: str) -> dict[str, str]:
        """Return the query that the authorize page sends the browser back with."""
        asked = {"client_id": self.settings["github_client_id"], "redirect_uri": CALLBACK, **query}
        answered = self.http.get(f"{self.forge.url}/login/oauth/authorize", params=asked)
        assert answered.status_code == 302, answered.text
        where = httpx.URL(answered.headers["location"])
        assert str(where.copy_with(query=None)) == CALLBACK
        return dict(where.params)

    def exchange(self, **fields: str) -> dict[str, str]:
        own = {
            "client_id": self.settings["github_client_id"],
            "client_secret": self.settings["github_client_secret"],
        }
        answered = self.http.post(
            f"{self.forge.url}/login/oauth/access_token",
            data={**own, **fields},
            headers={"Accept": "application/json"},
        )
        assert answered.status_code == 200
        found: dict[str, str] = answered.json()
        return found

    def installation_id(self) -> int:
        found: int = self.app("GET", "/app/installations").json()[0]["id"]
        return found

    def installation_token(self, **asked: Any) -> str:
        path = f"/app/installations/{self.installation_id()}/access_tokens"
        answered = self.app("POST", path, json=asked)
        assert answered.status_code == 201, answered.text
        return str(answered.json()["token"])

    # -- clients ----------------------------------------------------------------

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        answered = self.http.request(
            method,
            f"{self.forge.url}/-{path}",
            json=body,
            headers={"X-Forge-Admin": self.forge.admin_secret},
        )
        assert answered.status_code == 200, answered.text
        return answered.json()

    def rest(self, token: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= more.pop("headers", {})
        return self.http.request(method, self.forge.api_url + path, headers=headers, **more)

    def app(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self.rest(self.app_auth.token, method, path, **more)

    def github(self, token: str) -> Github:
        client = Github(auth=Auth.Token(token), **self._options())
        self._open.append(client)
        return client

    def integration(self) -> GithubIntegration:
        client = GithubIntegration(auth=self.app_auth, **self._options())
        self._open.append(client)
        return client

    def _options(self) -> dict[str, Any]:
        return {
            "base_url": self.forge.api_url,
            "seconds_between_requests": None,
            "seconds_between_writes": None,
            "retry": None,
        }

    # -- repositories -----------------------------------------------------------

    def repository(self, **more: Any) -> dict[str, Any]:
        """Make a repository of this test's own in the organization."""
        body = {"name": f"r-{secrets.token_hex(4)}", "files": {"a.txt": "one\n"}, **more}
        made: dict[str, Any] = self.admin("POST", "/orgs/acme/repositories", body)
        return made

    def checkout(self, made: dict[str, Any], token: str, folder: Path) -> WorkTree:
        tree = WorkTree(folder, token)
        tree.git("clone", "-q", made["clone_url"], str(folder), cwd=folder.parent)
        tree.git("config", "user.name", "Ada Byron")
        tree.git("config", "user.email", "ada@acme.example")
        return tree


@dataclass
class WorkTree:
    """A clone over HTTP."""

    folder: Path
    token: str

    def git(self, *arguments: str, cwd: Path | None = None, ok: bool = True) -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder.parent),
            "FORGE_TOKEN": self.token,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "credential.helper",
            "GIT_CONFIG_VALUE_0": HELPER,
        }
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd or self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) is ok, done.stderr
        return (done.stdout if ok else done.stderr).strip()

    def push(self, branch: str, files: dict[str, str], *, start: str | None = "main") -> str:
        """Commit *files* on *branch* (begun at *start*) and push it; return the commit."""
        if start is not None:
            self.git("checkout", "-q", "-B", branch, f"origin/{start}")
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "-q", "-m", f"Change {', '.join(files)}")
        self.git("push", "-q", "origin", branch)
        return self.git("rev-parse", "HEAD")


# -- a receiver of webhooks ------------------------------------------------------


@dataclass
class Arrival:
    """One request that a receiver got."""

    headers: dict[str, str]
    raw: bytes

    @property
    def event(self) -> str:
        return self.headers["X-GitHub-Event"]

    @property
    def guid(self) -> str:
        return self.headers["X-GitHub-Delivery"]

    @property
    def payload(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw)
        return found


@dataclass
class Receiver:
    """A real HTTP server for webhooks; while `open` is cleared it does not answer."""

    url: str
    arrivals: list[Arrival] = field(default_factory=list)
    status: int = 202
    open: threading.Event = field(default_factory=threading.Event)

    def of(self, event: str, action: str | None = None) -> list[Arrival]:
        return [
            one
            for one in self.arrivals
            if one.event == event and (action is None or one.payload.get("action") == action)
        ]


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.open.wait(10)
            receiver.arrivals.append(Arrival(dict(self.headers.items()), raw))
            self.send_response(receiver.status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/webhooks/github")
    receiver.open.set()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.open.set()
        server.shutdown()
        thread.join()
        server.server_close()
