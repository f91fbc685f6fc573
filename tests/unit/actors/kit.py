"""Given a state, when a message comes, then what leaves the turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from foundry_ray.core.errors import FoundryError
from foundry_ray.core.messages import Message, Person
from foundry_ray.runtime.actor import Actor
from foundry_ray.runtime.effects import FeedItem
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Go, Run, Workflows
from foundry_ray.testing.clock import START

NOW = START
ANN = Person(kind="user", id="7", login="ann", name="Ann", email="ann@example.org")
BOB = Person(kind="user", id="8", login="bob")
M = TypeVar("M", bound=Message)


class Scene:
    """One entity in memory, without a kernel."""

    def __init__(self, actor_type: type[Actor[Any]], key: str, state: Any) -> None:
        self.actor = actor_type(key, state)
        self.workflows = Workflows(actor_type.workflows)
        self.runs: dict[str, Run] = {}
        self.turn = self._turn(None)

    @property
    def state(self) -> Any:
        return self.actor.state

    def _turn(self, command_id: str | None) -> Turn:
        return Turn(
            self.actor.key,
            NOW,
            command_id=command_id,
            workflows=self.workflows,
            state=self.actor.state,
            runs=self.runs,
        )

    def when(self, *messages: Message, command_id: str | None = "command") -> Turn:
        """Let the messages come; return the last turn."""
        for message in messages:
            self.turn = self._turn(command_id)
            answer = self.actor.receive(message, self.turn)
            if not self.turn.replied and not self.turn.deferred:
                self.turn.reply(answer)
        return self.turn

    def finish(self, result: Any) -> Turn:
        """Let the one step under way come to this result."""
        [run] = self.runs.values()
        self.turn = self._turn(None)
        self.turn.advance(run, result)
        return self.turn

    @contextmanager
    def refuses(self, error: type[FoundryError], message: Message) -> Iterator[None]:
        with pytest.raises(error):
            self.actor.receive(message, self._turn("command"))
        yield


def told(turn: Turn) -> list[tuple[str, Message]]:
    return [(mail.target, mail.message) for mail in turn.effects.mail]


def only(turn: Turn, kind: type[M]) -> M:
    """Return the one message of this kind that the turn sends."""
    [found] = all_of(turn, kind)
    return found


def all_of(turn: Turn, kind: type[M]) -> list[M]:
    return [m.message for m in turn.effects.mail if isinstance(m.message, kind)]


def reply(turn: Turn, command_id: str = "command") -> Any:
    [found] = [r for r in turn.effects.replies if r.command_id == command_id]
    return found.body


def shown(turn: Turn, kind: str) -> list[FeedItem]:
    return [item for item in turn.effects.feed if item.kind == kind]


def begun(turn: Turn) -> list[str]:
    """Return the names of the steps that the turn made due."""
    return [c.next.step.name for c in turn.effects.runs if isinstance(c.next, Go)]
