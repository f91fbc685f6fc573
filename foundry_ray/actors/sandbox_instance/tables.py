"""What a sandbox instance remembers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlmodel import Field

from foundry_ray.core import keys
from foundry_ray.store.columns import StateRow, json_field
from foundry_ray.store.engine import Transaction


class SandboxInstance(StateRow, table=True):
    """One sandbox.

    Attributes:
        state: ``new``, ``provisioning``, ``ready``, ``stopped``, ``deleted`` or ``error``.
        facts: What the provider and sandbox-agent last said (S36).
        run_id: The provisioning run, while it is not over.
    """

    __tablename__ = "sandbox_instance"

    provider: str
    task_key: str
    repository_id: str
    clone_url: str
    branch: str
    base_branch: str
    owner: dict[str, Any] = json_field()
    state: str = "new"
    provider_id: str = ""
    home: str = ""
    work_dir: str = ""
    facts: dict[str, Any] = json_field(default=dict)
    run_id: str | None = None
    push_run_id: str | None = None
    changes_wanted: bool = False
    changes_run_id: str | None = None


class SandboxInstanceSession(StateRow, table=True):
    """One agent session inside the sandbox.

    Attributes:
        server_id: sandbox-agent's name of the agent process (and of its journal).
        agent_session_id: The agent's own name of the session.
    """

    __tablename__ = "sandbox_instance_session"

    session_key: str = Field(primary_key=True)
    agent: str
    server_id: str
    agent_session_id: str = ""
    run_id: str | None = None


@dataclass
class SandboxState:
    """A sandbox and the agent sessions in it."""

    key: str
    row: SandboxInstance | None
    sessions: dict[str, SandboxInstanceSession]

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> SandboxState:
        """Read the state of one sandbox."""
        rows = await transaction.owned(SandboxInstance, key)
        sessions = await transaction.owned(SandboxInstanceSession, key)
        return cls(key, rows[0] if rows else None, {s.session_key: s for s in sessions})

    @property
    def sandbox(self) -> SandboxInstance:
        """Return the row; a sandbox that was never asked for has none."""
        assert self.row is not None
        return self.row

    @property
    def sandbox_id(self) -> str:
        """Foundry's id of the sandbox, its name at the provider."""
        return keys.last_id(self.key)

    @property
    def token_secret(self) -> str:
        """Id of the sealed bearer token of the sandbox's sandbox-agent."""
        return f"{self.key}#token"
