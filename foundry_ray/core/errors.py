"""The family of errors that people and programs may see.

Every error carries a ``code`` of the HTTP contract, a message a person can act
on, and whether trying again can help. Errors travel between processes and are
stored with failed work, so each survives pickling with its context.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class FoundryError(Exception):
    """Something went wrong that Foundry has a name for.

    Args:
        message: One sentence for a person; the class docstring's first line if empty.
        hint: What the person can do about it.
        context: JSON values that help to find the cause; never a secret or a prompt.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", *, hint: str = "", **context: Any) -> None:
        doc = (type(self).__doc__ or type(self).__name__).strip().splitlines()[0]
        self.message = message or doc
        self.hint = hint
        self.context = context
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.context))

    @classmethod
    def _build(cls, message: str, hint: str, context: dict[str, Any]) -> Self:
        return cls(message, hint=hint, **context)


def _rebuild(
    cls: type[FoundryError], message: str, hint: str, context: dict[str, Any]
) -> FoundryError:
    return cls._build(message, hint, context)


# -- what a caller did ---------------------------------------------------------


class Unauthenticated(FoundryError):
    """Sign in first."""

    code = "unauthenticated"


class NotFound(FoundryError):
    """There is nothing here, or nothing that you may see."""

    code = "not_found"


class InvalidInput(FoundryError):
    """The input is not valid."""

    code = "invalid_input"


class InvalidBranch(FoundryError):
    """The branch name is not one that git accepts."""

    code = "invalid_branch"


class BranchTaken(FoundryError):
    """Another task or ref already has this branch name."""

    code = "branch_taken"


class PromptEmpty(FoundryError):
    """The prompt is empty."""

    code = "prompt_empty"


class TooLarge(FoundryError):
    """The input is larger than the limit."""

    code = "too_large"


class IdempotencyConflict(FoundryError):
    """This idempotency key was used with another request."""

    code = "idempotency_conflict"


class AlreadyCreated(FoundryError):
    """This was created before, and its secret is shown only once."""

    code = "already_created"


class WrongState(FoundryError):
    """This cannot be done in the present state."""

    code = "wrong_state"


class Dropped(FoundryError):
    """An operator took this out of the queue; it will not be done."""

    code = "dropped"


class Busy(FoundryError):
    """There is too much waiting already; try again later."""

    code = "busy"
    retryable = True


class PermissionDenied(FoundryError):
    """You may see this but not do that."""

    code = "permission_denied"


# -- what the outside did ------------------------------------------------------


class Unavailable(FoundryError):
    """A part of Foundry does not answer at the moment."""

    code = "unavailable"
    retryable = True


class Timeout(FoundryError):
    """The work did not finish in time."""

    code = "timeout"
    retryable = True


class Internal(FoundryError):
    """Something unexpected went wrong inside Foundry."""

    code = "internal"


class WorkflowUnknown(FoundryError):
    """This release does not know how a piece of work that was begun goes on."""

    code = "workflow_unknown"


class SandboxAgentMissing(FoundryError):
    """The sandbox-agent program was not found."""

    code = "sandbox_agent_missing"


class SandboxStartFailed(FoundryError):
    """The sandbox did not start."""

    code = "sandbox_start_failed"


class SandboxGone(FoundryError):
    """The sandbox does not exist any more."""

    code = "sandbox_gone"


class CloneFailed(FoundryError):
    """The repository could not be cloned."""

    code = "clone_failed"


class SetupFailed(FoundryError):
    """The work tree could not be prepared."""

    code = "setup_failed"


class AgentMissing(FoundryError):
    """The agent program is not installed in the sandbox."""

    code = "agent_missing"


class AgentExited(FoundryError):
    """The agent ended before it finished."""

    code = "agent_exited"


class AgentRefused(FoundryError):
    """The agent answered a request with an error."""

    code = "agent_refused"


class DeliveryUnknown(FoundryError):
    """It is not known whether the agent received the prompt."""

    code = "delivery_unknown"
    retryable = True


class PushRejected(FoundryError):
    """The remote refused the push."""

    code = "push_rejected"


class MergeConflict(FoundryError):
    """The branch cannot be merged without resolving conflicts."""

    code = "merge_conflict"


class GitHubUnavailable(FoundryError):
    """GitHub does not answer at the moment."""

    code = "github_unavailable"
    retryable = True


class RateLimited(FoundryError):
    """Too many requests; wait and try again."""

    code = "rate_limited"
    retryable = True


class ProviderUnavailable(FoundryError):
    """The sandbox provider does not answer at the moment."""

    code = "provider_unavailable"
    retryable = True


class QuotaExceeded(FoundryError):
    """The quota is used up."""

    code = "quota_exceeded"


def family(root: type[FoundryError] = FoundryError) -> dict[str, type[FoundryError]]:
    """Return every error class by its code (the family's codes are unique)."""
    found: dict[str, type[FoundryError]] = {}
    for cls in root.__subclasses__():
        found[cls.code] = cls
        found.update(family(cls))
    return found
