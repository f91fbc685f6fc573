"""The composition root: settings become adapters, adapters become a kernel.

The one list of actor kinds stands here. Everything is made when asked for; importing
this module does nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from foundry_ray.actors.app_shell.actor import AppShellOrganization
from foundry_ray.actors.github_state.actor import GitHubStateActor
from foundry_ray.actors.github_state.steps import GitHubTools
from foundry_ray.actors.history.actor import HistoryActor
from foundry_ray.actors.organization.actor import OrganizationActor
from foundry_ray.actors.repository.actor import RepositoryActor
from foundry_ray.actors.sandbox_instance.actor import SandboxInstanceActor
from foundry_ray.actors.sandbox_instance.steps import SandboxTools
from foundry_ray.actors.session_status_sync.actor import SessionStatusSyncActor
from foundry_ray.actors.session_status_sync.steps import ReaderTools
from foundry_ray.actors.task.actor import TaskActor
from foundry_ray.actors.task_session.actor import TaskSessionActor
from foundry_ray.actors.user_github_data.actor import UserGitHubDataActor
from foundry_ray.core.clock import Clock, SystemClock
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.secrets import Sealer
from foundry_ray.core.settings import Settings
from foundry_ray.integrations.github.base import GitHub, GitHubSettings
from foundry_ray.integrations.github.client import PyGithubAdapter
from foundry_ray.integrations.sandbox_agent.client import SandboxAgentClient
from foundry_ray.integrations.sandbox_agent.install import launcher_files
from foundry_ray.providers.base import Endpoint, SandboxProvider
from foundry_ray.providers.local import LocalProvider
from foundry_ray.runtime.actor import Actor
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.ports import Waker
from foundry_ray.store.engine import Database

ACTORS: tuple[type[Actor[Any]], ...] = (
    AppShellOrganization,
    UserGitHubDataActor,
    OrganizationActor,
    GitHubStateActor,
    RepositoryActor,
    HistoryActor,
    TaskActor,
    TaskSessionActor,
    SessionStatusSyncActor,
    SandboxInstanceActor,
)
BY_KIND: dict[str, type[Actor[Any]]] = {actor.actor_type: actor for actor in ACTORS}

# What runs in a sandbox's agent slots, by agent. Real agents are programs on its PATH.
AGENT_COMMANDS: dict[str, tuple[str, ...]] = {
    "scripted": (sys.executable, "-m", "foundry_ray.testing.scripted_agent"),
    "claude": ("claude-agent-acp",),
    "codex": ("codex-acp",),
    "opencode": ("opencode", "acp"),
}
# The variables that agents get from Foundry's own environment, if they are there.
AGENT_ENVIRONMENT = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "HTTPS_PROXY", "NO_PROXY")


@dataclass
class Adapters:
    """The outside of one process; close it when the process ends."""

    settings: Settings
    clock: Clock
    sealer: Sealer
    github: GitHub | None
    providers: dict[str, SandboxProvider]

    async def aclose(self) -> None:
        """Let go of connections and threads."""
        if self.github is not None:
            await self.github.aclose()


def database_url(settings: Settings) -> str:
    """Return where PostgreSQL is; `foundry up` tells its children of the embedded one.

    Raises:
        Unavailable: Nobody said; start Foundry with `foundry up`.
    """
    if settings.database_url is None:
        raise Unavailable("There is no database.", hint="Start Foundry with `foundry up`.")
    return settings.database_url.get_secret_value()


def sealer(settings: Settings) -> Sealer:
    """Return the sealer of this installation."""
    return Sealer(settings.secret_key.get_secret_value().encode())


def github(settings: Settings, clock: Clock) -> GitHub | None:
    """Return the GitHub adapter, or None if no GitHub App is configured."""
    if not settings.github_configured:
        return None
    assert settings.github_app_id is not None
    assert settings.github_app_key_file is not None
    assert settings.github_client_id is not None
    assert settings.github_client_secret is not None
    assert settings.github_webhook_secret is not None
    return PyGithubAdapter(
        GitHubSettings(
            web_url=settings.github_url,
            api_url=settings.github_api_url,
            app_id=int(settings.github_app_id),
            app_slug=settings.github_app_slug,
            app_key=SecretStr(settings.github_app_key_file.read_text()),
            client_id=settings.github_client_id,
            client_secret=settings.github_client_secret,
            webhook_secret=settings.github_webhook_secret,
        ),
        clock,
    )


def local_provider(settings: Settings) -> LocalProvider:
    """Return the provider of sandboxes on this machine."""
    return LocalProvider(
        settings.data_dir / "sandboxes",
        instance_id=settings.instance_id,
        binary=settings.sandbox_agent_bin,
        files=launcher_files(sys.executable, AGENT_COMMANDS),
        environment={},
    )


def connect(endpoint: Endpoint, token: SecretStr, home: str) -> SandboxAgentClient:
    """Return the client of the sandbox-agent behind an endpoint."""
    return SandboxAgentClient(
        endpoint.url, token=token.get_secret_value(), home=home, headers=endpoint.headers
    )


def adapters(settings: Settings, clock: Clock | None = None) -> Adapters:
    """Make the outside of one process."""
    time = clock or SystemClock()
    return Adapters(
        settings=settings,
        clock=time,
        sealer=sealer(settings),
        github=github(settings, time),
        providers={"local": local_provider(settings)},
    )


def kernel(
    outside: Adapters, database: Database, waker: Waker, hint: Callable[[], None] = lambda: None
) -> Kernel:
    """Make the kernel of one process."""
    own = outside.sealer
    environment = {name: os.environ[name] for name in AGENT_ENVIRONMENT if name in os.environ}
    tools: dict[str, Any] = {
        "sandbox_instance": SandboxTools(
            providers=outside.providers,
            connect=connect,
            instance_id=outside.settings.instance_id,
            clock=outside.clock,
            environment=environment,
        ),
        "session_status_sync": ReaderTools(providers=outside.providers, connect=connect),
    }
    if outside.github is not None:
        tools["github_state"] = GitHubTools(
            github=outside.github,
            derive=own.derive,
            open_sealed=lambda sealed, purpose: own.open(sealed, purpose).get_secret_value(),
            clock=outside.clock,
        )
    return Kernel(
        database=database,
        clock=outside.clock,
        sealer=own,
        waker=waker,
        tools=tools,
        actors=BY_KIND,
        idle_factor=outside.settings.idle_after,
        hint=hint,
    )
