"""The port of sandbox providers: who makes the places where agents work.

A provider is the control plane only (S32): it makes, finds, starts, stops and deletes
sandboxes, starts sandbox-agent inside them (S35) and says where it answers. Everything
that happens inside a sandbox goes through sandbox-agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

SandboxState = Literal["creating", "started", "stopped", "error", "gone"]


class SandboxSpec(BaseModel):
    """What is asked for.

    Attributes:
        sandbox_id: Foundry's name of the sandbox; the provider finds it again by this.
        instance_id: The Foundry instance that owns it.
        labels: Facts for people who look at the provider's own console.
        environment: What the agents need, such as model keys; never a secret of Foundry.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sandbox_id: str
    instance_id: str
    labels: Mapping[str, str] = Field(default_factory=dict)
    environment: Mapping[str, str] = Field(default_factory=dict, repr=False)


class SandboxFacts(BaseModel):
    """What the provider says about a sandbox (S36).

    Attributes:
        provider_id: The provider's own name of the sandbox.
        state: Where it is in its life.
        home: ``$HOME`` inside the sandbox.
        work_dir: Where the repository is cloned to, inside the sandbox.
        detail: The provider's words on a state of ``error``; else empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider_id: str
    state: SandboxState
    home: str
    work_dir: str
    detail: str = ""


class Endpoint(BaseModel):
    """Where sandbox-agent answers from outside the sandbox.

    Attributes:
        url: Base address, without a slash at the end.
        headers: What the provider's proxy asks for; the bearer token is not among them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    headers: Mapping[str, str] = Field(default_factory=dict, repr=False)


class SandboxProvider(Protocol):
    """Makes sandboxes and starts sandbox-agent inside them.

    Every method raises ``ProviderUnavailable`` (retryable) when the provider does not answer.
    """

    name: str

    async def create(self, spec: SandboxSpec) -> SandboxFacts:
        """Find or create the sandbox of ``spec.sandbox_id``, prepared but not yet serving.

        Raises:
            QuotaExceeded: Nothing was left behind; show it to the person who asked.
            SandboxStartFailed: The provider could not make it; look at its detail.
        """
        ...

    async def get(self, sandbox_id: str) -> SandboxFacts:
        """Return the facts of a sandbox.

        Raises:
            SandboxGone: It was deleted or never made.
        """
        ...

    async def start(self, sandbox_id: str) -> SandboxFacts:
        """Start a stopped sandbox; harmless on a started one.

        Raises:
            SandboxGone: It was deleted or never made.
        """
        ...

    async def stop(self, sandbox_id: str) -> None:
        """End the sandbox's processes and keep its files; harmless on one stopped or gone."""
        ...

    async def delete(self, sandbox_id: str) -> None:
        """End the sandbox and remove its files; harmless on one that is gone."""
        ...

    async def start_sandbox_agent(self, sandbox_id: str, token: str) -> None:
        """See to it that sandbox-agent runs in the sandbox and guards itself with *token*.

        A live one with this token is adopted; one with another token is replaced.

        Raises:
            SandboxAgentMissing: The program is not in the sandbox.
            SandboxStartFailed: It ended; context ``log_tail`` has its words.
            SandboxGone: The sandbox was deleted or never made.
        """
        ...

    async def preview_endpoint(self, sandbox_id: str) -> Endpoint:
        """Return where sandbox-agent answers.

        Raises:
            SandboxStartFailed: No sandbox-agent runs there.
            SandboxGone: The sandbox was deleted or never made.
        """
        ...
