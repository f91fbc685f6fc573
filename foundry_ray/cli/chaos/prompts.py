"""What the scripted agent is told: each prompt has a marker that is nowhere else."""

from __future__ import annotations

import random
from typing import Literal, NamedTuple

Sort = Literal["say", "stream", "write", "ask", "flood"]
FLOOD = 3000  # chunks as fast as the agent can


class Script(NamedTuple):
    """A prompt: its marker, what sort it is, and its lines."""

    marker: str
    sort: Sort
    text: str


def first(task: int) -> Script:
    """Return the prompt with which a task begins."""
    return write(task, 0)


def write(task: int, number: int) -> Script:
    """Return a prompt after which the branch has one more commit."""
    marker = _marker(task, number)
    # What a killed git leaves must not stop the next one; an agent would clean up, too.
    lines = ["run rm -f .git/index.lock", f"write {marker}.md {marker}", f"commit Add {marker}"]
    return Script(marker, "write", "\n".join([f"say {marker}", *lines]))


def flood(task: int, number: int) -> Script:
    """Return a prompt with more output than the transcript can keep up with."""
    marker = _marker(task, number)
    return Script(marker, "flood", f"say {marker}\nstream {FLOOD} 0")


def some(task: int, number: int, chance: random.Random) -> Script:
    """Return any prompt of daily life."""
    marker = _marker(task, number)
    match chance.choices(("stream", "write", "ask", "say"), (6, 2, 1, 2))[0]:
        case "stream":
            count, pause = chance.randint(40, 120), chance.choice((30, 50, 70))
            return Script(marker, "stream", f"say {marker}\nstream {count} {pause}")
        case "write":
            return write(task, number)
        case "ask":
            return Script(marker, "ask", f"say {marker}\nask May I, {marker}?\nsay thanks")
        case _:
            return Script(marker, "say", f"say {marker}\ntool look")


def marker_of(text: str) -> str:
    """Return the marker of a prompt's text."""
    return text.partition("\n")[0].removeprefix("say ")


def _marker(task: int, number: int) -> str:
    return f"task-{task}-prompt-{number}"
