"""What leaves a turn: everything that its commit writes besides fence and consumption."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlmodel import SQLModel

from foundry_ray.core.messages import Message
from foundry_ray.runtime.workflow import Next, Run, Workflow


@dataclass
class Mail:
    """One message on its way into a mailbox."""

    target: str
    message: Message
    sender: str
    due_at: datetime
    timer: str | None = None


@dataclass
class Reply:
    """The answer of a command: a value, or the error that refused it."""

    command_id: str
    status: int
    body: Any


@dataclass
class RunChange:
    """What becomes of a run.

    Attributes:
        let_end: A step that is under way is let end before; its result counts no more.
    """

    run: Run
    workflow: Workflow[Any]
    next: Next
    created: bool
    let_end: bool = False


@dataclass
class FeedItem:
    """One change that people see; ``data`` None means that the item is gone."""

    topic: str
    kind: str
    item_id: str
    revision: int
    data: dict[str, Any] | None


@dataclass
class Effects:
    """Everything a turn writes besides fence and consumption."""

    mail: list[Mail] = field(default_factory=list)
    forget: list[str] = field(default_factory=list)
    rows: list[tuple[str, SQLModel]] = field(default_factory=list)
    drops: list[tuple[type[SQLModel], dict[str, Any]]] = field(default_factory=list)
    feed: list[FeedItem] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    runs: list[RunChange] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
