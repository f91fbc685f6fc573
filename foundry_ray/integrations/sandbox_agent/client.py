"""Speaks to the sandbox-agent of one sandbox over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from foundry_ray.integrations.sandbox_agent.agents import Agents
from foundry_ray.integrations.sandbox_agent.commands import Commands
from foundry_ray.integrations.sandbox_agent.files import Files
from foundry_ray.integrations.sandbox_agent.transport import Wire


class SandboxAgentClient(Commands, Files, Agents):
    """Everything that happens inside one sandbox; see the port for what each method promises.

    Args:
        url: Where sandbox-agent answers.
        token: Its bearer token.
        home: ``$HOME`` inside the sandbox.
        headers: What a proxy in between asks for.
    """

    def __init__(
        self, url: str, *, token: str, home: str, headers: Mapping[str, str] | None = None
    ) -> None:
        wire = Wire(url, token=token, headers=headers or {})
        Commands.__init__(self, wire)
        Files.__init__(self, wire)
        Agents.__init__(self, wire, home)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connections; what runs in the sandbox goes on."""
        await self._wire.aclose()

    async def health(self) -> None:
        """Return if sandbox-agent answers and accepts the token."""
        await self._wire.send("GET", "/v1/health")
