"""What clients did and were told, and whether the entities' final words agree with it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Operation:
    """One command of one client; a client sends its next one after it knows of the last.

    Attributes:
        target: The entity that writes the word down.
        invoked: When it was sent, in seconds of a monotonic clock.
        returned: When it was acknowledged; None: the client never heard of it.
        position: The word's place among the entity's words, as the answer told; from 1.
    """

    client: str
    target: str
    word: str
    invoked: float
    returned: float | None = None
    position: int | None = None

    def acknowledge(self, body: Any) -> None:
        """Note that the answer came."""
        self.returned = time.monotonic()
        if isinstance(body, Mapping) and "count" in body:
            self.position = body["count"]


@dataclass
class History:
    """Every operation, in the order in which they were sent."""

    operations: list[Operation] = field(default_factory=list)

    def invoke(self, client: str, target: str, word: str) -> Operation:
        """Note that a command is sent; no two have the same word."""
        operation = Operation(client, target, word, time.monotonic())
        self.operations.append(operation)
        return operation

    @property
    def acknowledged(self) -> list[Operation]:
        """The operations whose answer came."""
        return [operation for operation in self.operations if operation.returned is not None]

    def contradictions(self, final: Mapping[str, Sequence[str]]) -> list[str]:
        """Compare with the final words of each entity; return what cannot be.

        An acknowledged word is missing, any word is there twice, the words of one client are
        not in its order, an answer told another place than the final one, or a word stands
        before one that had been acknowledged before it was sent.
        """
        by_target: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            by_target[operation.target].append(operation)
        return [
            said
            for target, operations in by_target.items()
            for said in _contradictions(operations, final.get(target, ()))
        ]


def _contradictions(operations: Sequence[Operation], words: Sequence[str]) -> Iterator[str]:
    times = Counter(words)
    place = {word: at for at, word in enumerate(words, 1)}
    for operation in operations:
        least = 1 if operation.returned is not None else 0
        if not least <= times[operation.word] <= 1:
            yield f"{times[operation.word]} times: {operation}"
        if operation.position is not None and place.get(operation.word) != operation.position:
            yield f"elsewhere: {operation}"
    there = [operation for operation in operations if operation.word in place]
    last: dict[str, int] = {}
    for operation in there:
        at = place[operation.word]
        if last.get(operation.client, 0) >= at:
            yield f"overtaken: {operation}"
        last[operation.client] = at
    yield from _against_time(there, place)


def _against_time(there: Sequence[Operation], place: Mapping[str, int]) -> Iterator[str]:
    """What was sent after an acknowledgement takes effect after what was acknowledged."""
    done = sorted((o for o in there if o.returned is not None), key=lambda o: o.returned or 0)
    furthest, at = 0, 0
    for operation in sorted(there, key=lambda o: o.invoked):
        while at < len(done) and (done[at].returned or 0) < operation.invoked:
            furthest = max(furthest, place[done[at].word])
            at += 1
        if furthest >= place[operation.word]:
            yield f"before what had been acknowledged: {operation}"
