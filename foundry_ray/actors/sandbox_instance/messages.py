"""What others may say to a sandbox."""

from __future__ import annotations

from typing import Literal

from foundry_ray.core.facts import Trouble
from foundry_ray.core.messages import Command, Event, Lane, Person


class ProvisionSandbox(Command):
    """Make the sandbox, start sandbox-agent in it, clone, and check the branch out.

    As a control message it comes before a stop or deletion that was told after it.
    """

    lane = Lane.CONTROL
    kind: Literal["sandbox_instance.provision"] = "sandbox_instance.provision"
    task_key: str
    clone_url: str
    branch: str
    base_branch: str
    on_branch: str | None
    owner: Person


class RetrySandbox(Command):
    """Begin failed work again, perhaps with another branch name."""

    kind: Literal["sandbox_instance.retry"] = "sandbox_instance.retry"
    branch: str | None = None


class OpenAgentSession(Command):
    """Start an agent and open a session in the work tree, as soon as that is there."""

    kind: Literal["sandbox_instance.open_agent_session"] = "sandbox_instance.open_agent_session"
    session_key: str
    agent: str


class DeliverPrompt(Command):
    """Give an agent a message, exactly once, however often this is said."""

    kind: Literal["sandbox_instance.deliver_prompt"] = "sandbox_instance.deliver_prompt"
    session_key: str
    message_id: str
    text: str


class CancelPrompt(Command):
    """Ask the agent to end its turn."""

    lane = Lane.CONTROL
    kind: Literal["sandbox_instance.cancel_prompt"] = "sandbox_instance.cancel_prompt"
    session_key: str


class AnswerAgent(Command):
    """Answer a permission request of the agent; ``option_id`` None cancels it."""

    lane = Lane.CONTROL
    kind: Literal["sandbox_instance.answer_agent"] = "sandbox_instance.answer_agent"
    session_key: str
    rpc_id: str | int
    option_id: str | None


class TakeChanges(Command):
    """Compare the branch with its merge base and tell the task."""

    kind: Literal["sandbox_instance.take_changes"] = "sandbox_instance.take_changes"


class PushBranch(Command):
    """Push the branch with the rights of a person."""

    kind: Literal["sandbox_instance.push"] = "sandbox_instance.push"
    by: Person


class CredentialReady(Event):
    """A git credential lies sealed under ``secret_id``."""

    kind: Literal["sandbox_instance.credential_ready"] = "sandbox_instance.credential_ready"
    purpose: str
    secret_id: str


class CredentialRefused(Event):
    """There is no git credential for this purpose."""

    kind: Literal["sandbox_instance.credential_refused"] = "sandbox_instance.credential_refused"
    purpose: str
    error: Trouble


class StopSandbox(Command):
    """End the processes and keep the files."""

    lane = Lane.CONTROL
    kind: Literal["sandbox_instance.stop"] = "sandbox_instance.stop"


class DeleteSandbox(Command):
    """Destroy the sandbox."""

    lane = Lane.CONTROL
    kind: Literal["sandbox_instance.delete"] = "sandbox_instance.delete"
