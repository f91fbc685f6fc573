"""What entities say to one another: closed, frozen, JSON on the wire.

A message is found again by its ``kind``, a stored name that never changes its
meaning. A :class:`Command` may be refused; an :class:`Event` is a fact.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from foundry_ray.core.errors import InvalidInput


class Lane(IntEnum):
    """Which messages of a mailbox go first."""

    CONTROL = 0
    NORMAL = 1
    STEP = 2


class Value(BaseModel):
    """A closed, frozen value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Value):
    """Something one entity, or a client, says to another."""

    lane: ClassVar[Lane] = Lane.NORMAL
    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        kind = cls.model_fields["kind"].default
        if isinstance(kind, str):
            known = _REGISTRY.setdefault(kind, cls)
            if known.__qualname__ != cls.__qualname__ or known.__module__ != cls.__module__:
                raise TypeError(f"two messages are called {kind!r}")


class Command(Message):
    """Asks for something; the receiver may refuse."""


class Event(Message):
    """Tells a fact; the receiver cannot refuse it."""


_REGISTRY: dict[str, type[Message]] = {}


def registry() -> dict[str, type[Message]]:
    """Return every known message class by its kind."""
    return dict(_REGISTRY)


def decode(kind: str, body: dict[str, Any]) -> Message:
    """Build the message called *kind* from its JSON *body*.

    Raises:
        InvalidInput: No message has this kind, or the body does not fit it.
    """
    cls = _REGISTRY.get(kind)
    if cls is None:
        raise InvalidInput(f"No message is called {kind!r}.")
    try:
        return cls.model_validate(body)
    except ValidationError as trouble:
        raise InvalidInput(
            f"The body does not fit {kind!r}.", errors=trouble.error_count()
        ) from trouble


class Person(Value):
    """Who caused something: a user, the system, or GitHub on somebody's behalf."""

    kind: str = "system"
    id: str = ""
    login: str = ""
    name: str = ""
    email: str = ""


SYSTEM = Person()


class Failure(Value):
    """A normalized failure of an entity's work (S28).

    Attributes:
        fingerprint: Same cause, same fingerprint: one incident.
        entity: Key of the entity whose work failed.
        title: How people call the entity.
        workflow: The workflow's kind, or the message's kind for a failed turn.
        step: The failed step; empty for a turn.
        attempt: Attempts so far.
        will_retry: Whether Foundry itself tries again.
    """

    fingerprint: str
    code: str
    message: str
    hint: str = ""
    entity: str
    title: str = ""
    workflow: str
    step: str = ""
    attempt: int
    will_retry: bool


class IssueReported(Event):
    """An entity's work failed; sent to the organization, or to ``app`` (S28)."""

    kind: str = "runtime.issue_reported"
    failure: Failure


class IssueResolved(Event):
    """Work that had failed has succeeded since, or is not wanted any more."""

    kind: str = "runtime.issue_resolved"
    entity: str
    workflow: str


class ChildFailed(Event):
    """A child parked a message or a run: its attempts are used up."""

    kind: str = "runtime.child_failed"
    child: str
    failure: Failure
