"""One running Foundry with its local GitHub, shared by the end-to-end tests.

The idle times are short, so that entities passivate and come back all the time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from foundry_ray.cli.demo.client import Browser
from foundry_ray.cli.ports import choose_free
from foundry_ray.core import settings as settings_module
from foundry_ray.core.settings import Settings
from foundry_ray.providers.local import find_binary
from foundry_ray.store.embedded import EmbeddedPostgres
from tests.helpers import eventually

IDLE_FACTOR = "0.015"  # 4.5 s for a session or a task


class Foundry:
    """A Foundry on a data directory of its own, started and asked by the real command line."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.port = choose_free(1)[0]
        # The tests take the program away for a while: they need a name of their own for it.
        self.sandbox_agent = data_dir / "sandbox-agent"
        self.sandbox_agent.symlink_to(find_binary())
        self.environment = {
            **os.environ,
            "FOUNDRY_PORT": str(self.port),
            "FOUNDRY_IDLE_AFTER": IDLE_FACTOR,
            "FOUNDRY_SANDBOX_AGENT_BIN": str(self.sandbox_agent),
        }

    def cli(self, *words: str, code: int = 0) -> str:
        """Run a verb; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "foundry_ray.cli", *words, "--data-dir", str(self.data_dir)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        """Return ``foundry status --json``."""
        found: dict[str, Any] = json.loads(self.cli("status", "--json"))
        return found

    @property
    def settings(self) -> Settings:
        """Return the settings as Foundry reads them."""
        return settings_module.load(self.data_dir, self.environment)

    @property
    def ray_environment(self) -> dict[str, str]:
        """Return the environment of a driver or command on this Foundry's Ray."""
        environment = dict(self.environment)
        for line in (self.data_dir / "run" / "ray.env").read_text().splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            environment[name] = value.strip("'\"")
        return environment

    def ray(self, *words: str) -> str:
        """Run Ray's own command line against this Foundry's Ray."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), *words],
            env=self.ray_environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def actors(self) -> set[str]:
        """Return the names of the live actors in our namespace, from Ray itself."""
        listed = json.loads(
            self.ray("list", "actors", "--format", "json", "--limit", "1000", "--detail")
        )
        return {
            actor["name"]
            for actor in listed
            if actor["state"] == "ALIVE" and actor["ray_namespace"] == "foundry"
        }

    def destroy(self) -> None:
        """End everything and remove what lies outside the data directory."""
        run_dir = self.settings.run_dir
        self.cli("down")
        EmbeddedPostgres(self.data_dir).destroy()
        shutil.rmtree(run_dir)


class Acme:
    """The sample organization as one signed-in person sees it."""

    def __init__(self, browser: Browser, organization: str, repository: str) -> None:
        self.browser = browser
        self.organization = organization
        self.repository = repository
        self.place = f"/api/organizations/{organization}"

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API below the organization."""
        return await self.browser.call(method, self.place + path, body)

    async def create(self, prompt: str, **more: Any) -> dict[str, Any]:
        """Create a task of the scripted agent."""
        body = {"repository_id": self.repository, "prompt": prompt, "agent": "scripted", **more}
        task: dict[str, Any] = await self.call("POST", "/tasks", body)
        return task

    async def until(self, task: str, *statuses: str, timeout: float = 40) -> dict[str, Any]:
        """Return the task as soon as its status is one of these."""

        async def look() -> dict[str, Any] | None:
            seen: dict[str, Any] = await self.call("GET", f"/tasks/{task}")
            assert seen["status"] in statuses, (seen["status"], seen["provisioning"])
            return seen

        found: dict[str, Any] = await eventually(look, timeout=timeout, every=0.1)
        return found

    async def settled(self, task: str, timeout: float = 40) -> dict[str, Any]:
        """Return the task when it is ready and its agent has ended its turn."""

        async def look() -> dict[str, Any] | None:
            seen: dict[str, Any] = await self.call("GET", f"/tasks/{task}")
            assert seen["provisioning"]["phase"] == "ready", seen["provisioning"]
            assert seen["status"] == "ready", seen["status"]
            assert [s["status"] for s in seen["sessions"]] == ["idle"], seen["sessions"]
            return seen

        found: dict[str, Any] = await eventually(look, timeout=timeout, every=0.1)
        return found

    async def said(self, task: dict[str, Any]) -> str:
        """Return everything the agent said in the task's session, from the transcript."""
        session = task["active_session_id"]
        events = await self.call("GET", f"/tasks/{task['id']}/sessions/{session}/events?limit=1000")
        updates = [e["payload"].get("params", {}).get("update", {}) for e in events["items"]]
        return "\n".join(
            update["content"]["text"]
            for update in updates
            if update.get("sessionUpdate") == "agent_message_chunk"
        )


@pytest.fixture(scope="session")
def foundry() -> Iterator[Foundry]:
    """A running Foundry with its local GitHub."""
    folder = Path(tempfile.mkdtemp(prefix="foundry-e2e-"))
    folder.chmod(0o711)
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    running = Foundry(data_dir)
    try:
        running.cli("up", "--demo", "--detach")
        yield running
    finally:
        running.destroy()
        shutil.rmtree(folder)


@pytest.fixture
async def acme(foundry: Foundry) -> AsyncIterator[Acme]:
    """The sample organization as its owner sees it."""
    async with Browser(foundry.settings.public_url) as browser:
        await browser.sign_in("ada")
        app = await browser.call("GET", "/api/app")
        organization = next(o["id"] for o in app["organizations"] if o["login"] == "acme")

        async def repositories() -> list[dict[str, Any]]:
            answer = await browser.call("GET", f"/api/organizations/{organization}/repositories")
            found: list[dict[str, Any]] = answer["items"]
            return found

        listed: list[dict[str, Any]] = await eventually(repositories, timeout=30)
        repository = next(r["id"] for r in listed if r["full_name"] == "acme/demo")
        yield Acme(browser, organization, repository)


@pytest.fixture
async def ben(foundry: Foundry) -> AsyncIterator[httpx.AsyncClient]:
    """A colleague on GitHub's REST."""
    settings = foundry.settings
    secret = (foundry.data_dir / "forge" / "admin.secret").read_text().strip()
    async with httpx.AsyncClient(base_url=settings.github_api_url, trust_env=False) as client:
        minted = await client.post(
            f"{settings.github_url}/-/users/ben/tokens", headers={"X-Forge-Admin": secret}
        )
        client.headers["Authorization"] = f"Bearer {minted.json()['token']}"
        yield client
