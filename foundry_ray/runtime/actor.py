"""The base of every kind of entity: state, handlers, workflows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from foundry_ray.core import keys
from foundry_ray.core.errors import InvalidInput
from foundry_ray.core.messages import ChildFailed, Message
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Workflow
from foundry_ray.store.engine import Transaction

S = TypeVar("S")
Handler = Callable[[Any, Any, Turn], Any]


def handles(method: Handler) -> Handler:
    """Mark a method as the handler of the message class that its first argument names."""
    method._handles = True  # type: ignore[attr-defined]
    return method


class Actor(Generic[S]):
    """One kind of entity.

    A handler is a plain function: it computes, changes ``self.state``, and says the
    rest through the turn. What it returns is the reply of a command. A FoundryError
    that it raises refuses the command; nothing of the turn remains.

    Attributes:
        actor_type: The kind's name: its folder, table prefix and message prefix.
        idle_after: Time without work after which an activation is passivated.
        state_type: Built by ``await state_type.load(transaction, key)``.
    """

    actor_type: ClassVar[str]
    idle_after: ClassVar[timedelta | None] = timedelta(minutes=5)
    workflows: ClassVar[tuple[type[Workflow[Any]], ...]] = ()
    tables: ClassVar[tuple[type, ...]] = ()
    supervises: ClassVar[bool] = False
    _handlers: ClassVar[dict[type[Message], Handler]] = {}

    def __init__(self, key: str, state: S) -> None:
        self.key = key
        self.state = state

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> S:
        """Read the entity's state; called once per activation, inside a transaction."""
        raise NotImplementedError  # every kind says how

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._handlers = dict(cls._handlers)
        for _, method in inspect.getmembers(cls, inspect.isfunction):
            if getattr(method, "_handles", False):
                second = list(inspect.signature(method).parameters)[1]
                cls._handlers[get_type_hints(method)[second]] = method

    @classmethod
    def messages(cls) -> list[type[Message]]:
        """Return the message classes that this kind takes, by kind."""
        return sorted(cls._handlers, key=lambda m: str(m.model_fields["kind"].default))

    @classmethod
    def takes(cls, message: Message) -> bool:
        """Return whether this kind has a handler for such a message."""
        return type(message) in cls._handlers

    def receive(self, message: Message, turn: Turn) -> Any:
        """Handle one message; return the reply.

        Raises:
            InvalidInput: This kind of entity does not take such a message.
        """
        handler = self._handlers.get(type(message))
        if handler is None:
            raise InvalidInput(f"{self.actor_type} does not take {message.kind!r}.")
        return handler(self, message, turn)

    @handles
    def child_failed(self, message: ChildFailed, turn: Turn) -> None:
        """Hear that a child gave up; the parent decides what follows. By default nothing."""

    @property
    def parent(self) -> str | None:
        """Key of the supervising entity."""
        return keys.parent_of(self.key)


def admit(actors: Mapping[str, type[Actor[Any]]], target: str, message: Message) -> None:
    """Refuse at the door what *target* would not take, so that it never becomes a row.

    Args:
        actors: The kinds known here; what is for another kind is admitted.

    Raises:
        InvalidInput: This kind of entity does not take such a message.
    """
    actor = actors.get(keys.kind_of(target))
    if actor is not None and not actor.takes(message):
        raise InvalidInput(f"{actor.actor_type} does not take {message.kind!r}.")
