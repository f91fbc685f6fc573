"""The adapter against a local forge of the demo's world: ada, ben, eve, acme/demo."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import subprocess
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from foundry_ray.integrations.github.base import GitHubSettings
from foundry_ray.integrations.github.client import PyGithubAdapter
from foundry_ray.testing.forge.process import ForgeProcess, start_forge

BACK = "http://127.0.0.1:9/auth/callback"


@dataclass
class World:
    """A forge and what a test may do there beside the adapter."""

    forge: ForgeProcess
    settings: GitHubSettings
    http: httpx.AsyncClient

    async def admin(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Do what on GitHub a person does in the browser."""
        answer = await self.http.request(
            verb,
            f"{self.forge.url}/-{path}",
            json=body or {},
            headers={"X-Forge-Admin": self.forge.admin_secret},
        )
        answer.raise_for_status()
        return answer.json()

    async def repository(self, full_name: str = "acme/demo") -> dict[str, Any]:
        """Return id and git directory of a repository."""
        state = await self.admin("GET", "/state")
        found = [r for r in state["repositories"] if r["full_name"] == full_name]
        assert len(found) == 1
        return dict(found[0])

    async def branch(self, name: str, token: SecretStr) -> str:
        """Make a branch with a commit of its own in acme/demo; return the commit."""
        git_dir = (await self.repository())["git_dir"]
        sha = git(git_dir, "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", f"Work on {name}")
        answer = await self.http.post(
            f"{self.forge.api_url}/repos/acme/demo/git/refs",
            json={"ref": f"refs/heads/{name}", "sha": sha},
            headers={"Authorization": f"Bearer {token.get_secret_value()}"},
        )
        answer.raise_for_status()
        return sha


def git(git_dir: str, *arguments: str) -> str:
    """Run git in a bare repository and return what it printed."""
    who = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Ada"), ("EMAIL", "ada@acme.example"))
    }
    done = subprocess.run(
        ["git", f"--git-dir={git_dir}", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | who,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    forge = await start_forge(tmp_path_factory.mktemp("forge"))
    said = tomllib.loads(forge.settings_file.read_text())
    settings = GitHubSettings(
        web_url=said["github_url"],
        api_url=said["github_api_url"],
        app_id=said["github_app_id"],
        app_slug="foundry-demo",
        app_key=SecretStr(Path(said["github_app_key_file"]).read_text()),
        client_id=said["github_client_id"],
        client_secret=SecretStr(said["github_client_secret"]),
        webhook_secret=SecretStr(said["github_webhook_secret"]),
        retries=1,
        seconds_between_requests=None,
        seconds_between_writes=None,
    )
    async with httpx.AsyncClient(timeout=10) as http:
        yield World(forge, settings, http)
    await forge.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def github(world: World) -> AsyncIterator[PyGithubAdapter]:
    adapter = PyGithubAdapter(world.settings)
    yield adapter
    await adapter.aclose()


@dataclass(frozen=True)
class Consent:
    """What a browser brings back from the sign-in page."""

    code: str
    state: str
    verifier: str


@pytest.fixture(scope="session")
def consent(world: World, github: PyGithubAdapter) -> Callable[[str], Awaitable[Consent]]:
    """Return a function that goes through the sign-in page as this person."""

    async def go(login: str) -> Consent:
        verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        url = github.authorize_url(
            state=state, code_challenge=challenge, redirect_uri=BACK, login=login
        )
        answer = await world.http.get(url)
        assert answer.status_code == 302
        back = parse_qs(urlsplit(answer.headers["Location"]).query)
        assert back["state"] == [state]
        return Consent(back["code"][0], state, verifier)

    return go


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ada(github: PyGithubAdapter, consent: Callable[[str], Awaitable[Consent]]) -> SecretStr:
    """Ada's token, by signing in."""
    given = await consent("ada")
    return (await github.exchange_code(given.code, given.verifier, BACK)).access_token
