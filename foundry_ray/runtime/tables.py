"""The kernel's tables: entities, their mail, their runs, and what people see change."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, Index, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType
from sqlmodel import Field, SQLModel

from foundry_ray.store.columns import StateRow, big_identity, instant, json_field

# Rows come and go all the time: vacuum by their number, not by the table's size.
BUSY_TABLE = {
    "postgresql_with": {
        "autovacuum_vacuum_scale_factor": 0,
        "autovacuum_vacuum_threshold": 1000,
    }
}


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in SQL."""
        return "xid8"


class RtEntity(SQLModel, table=True):
    """One addressable entity: it exists, whether or not a process runs it.

    Attributes:
        epoch: Counts activations; a commit with an older one is refused (fencing).
        revision: Counts commits.
        host: Where the present activation lives (node, pid, start time); null when passive.
        moved_at: When it last committed, by the server's clock.
    """

    __tablename__ = "rt_entity"
    __table_args__ = {"postgresql_with": {"fillfactor": 80}}

    key: str = Field(primary_key=True, sa_type=Text)
    kind: str = Field(sa_type=Text)
    parent_key: str | None = Field(sa_type=Text)
    root: str = Field(sa_type=Text)
    epoch: int = Field(sa_type=BigInteger)
    revision: int = Field(default=0, sa_type=BigInteger)
    host: dict[str, Any] | None = json_field(nullable=True)
    activated_at: datetime | None = instant(nullable=True)
    moved_at: datetime | None = instant(nullable=True)
    created_at: datetime = instant()


class RtMailbox(SQLModel, table=True):
    """Everything an entity still has to do: messages, timers, and steps of its runs.

    One queue, so that one index tells what is due. A timer is a message with a
    name that is due later; a step is a message to the entity's own workflows.

    Attributes:
        request_id: The HTTP request from which this came, over however many messages; for logs.
    """

    __tablename__ = "rt_mailbox"
    __table_args__ = (
        Index("rt_mailbox_target", "target", "id"),
        Index("rt_mailbox_due", "root", "due_at", postgresql_where=text("parked_at IS NULL")),
        Index(
            "rt_mailbox_timer",
            "target",
            "timer",
            unique=True,
            postgresql_where=text("timer IS NOT NULL"),
        ),
        BUSY_TABLE,
    )

    id: int | None = big_identity()
    target: str = Field(sa_type=Text)
    root: str = Field(sa_type=Text)
    sender: str = Field(sa_type=Text)
    lane: int
    kind: str = Field(sa_type=Text)
    body: dict[str, Any] = json_field()
    reply_to: str | None = Field(sa_type=Text)
    timer: str | None = Field(sa_type=Text)
    run_id: str | None = Field(sa_type=Text)
    attempts: int = 0
    error: dict[str, Any] | None = json_field(nullable=True)
    due_at: datetime = instant()
    created_at: datetime = instant()
    parked_at: datetime | None = instant(nullable=True)
    request_id: str | None = Field(default=None, sa_type=Text)


class RtInboxSeen(SQLModel, table=True):
    """What was already accepted from outside, and its answer; it outlives the message."""

    __tablename__ = "rt_inbox_seen"
    __table_args__ = (
        UniqueConstraint("scope", "external_id", name="rt_inbox_seen_once"),
        Index("rt_inbox_seen_expiry", "expires_at"),
    )

    command_id: str = Field(primary_key=True, sa_type=Text)
    scope: str = Field(sa_type=Text)
    external_id: str = Field(sa_type=Text)
    request_hash: str = Field(sa_type=Text)
    target: str = Field(sa_type=Text)
    reply: dict[str, Any] | None = json_field(nullable=True)
    replied_at: datetime | None = instant(nullable=True)
    created_at: datetime = instant()
    expires_at: datetime = instant()


class RtRun(SQLModel, table=True):
    """A workflow under way, as data: nothing is replayed.

    Attributes:
        state: ``pending`` a step is due; ``claimed`` it is being worked on; ``waiting``
            for a message; ``parked`` its attempts are used up.
        reported: An issue was reported for this run and is still open.
        undo: What takes back its steps so far, by name and input; the last one last.
        undoing: It was given up, and goes its way back.
    """

    __tablename__ = "rt_run"
    __table_args__ = (Index("rt_run_entity", "entity_key"),)

    id: str = Field(primary_key=True, sa_type=Text)
    entity_key: str = Field(sa_type=Text)
    kind: str = Field(sa_type=Text)
    version: int
    input: dict[str, Any] = json_field()
    step: str = Field(sa_type=Text)
    step_input: dict[str, Any] = json_field()
    state: str = Field(sa_type=Text)
    attempt: int = 0
    reported: bool = False
    undo: list[Any] = json_field(default=list)
    undoing: bool = False
    claimed_epoch: int | None = Field(default=None, sa_type=BigInteger)
    deadline: datetime | None = instant(nullable=True)
    error: dict[str, Any] | None = json_field(nullable=True)
    created_at: datetime = instant()
    updated_at: datetime = instant()


class RtFeed(SQLModel, table=True):
    """Every committed change that people see, in commit-safe order (xid, id)."""

    __tablename__ = "rt_feed"
    __table_args__ = (
        Index("rt_feed_cursor", "xid", "id"),
        Index("rt_feed_at", "at"),
        BUSY_TABLE,
    )

    id: int | None = big_identity()
    xid: int | None = Field(
        default=None,
        sa_column=Column(
            "xid", Xid8(), server_default=text("pg_current_xact_id()"), nullable=False
        ),
    )
    topic: str = Field(sa_type=Text)
    kind: str = Field(sa_type=Text)
    item_id: str = Field(sa_type=Text)
    item_revision: int = Field(sa_type=BigInteger)
    data: dict[str, Any] | None = Field(default=None, sa_column=Column("data", JSONB))
    at: datetime = instant()


class RtSecret(SQLModel, table=True):
    """A sealed secret; messages carry its id, only the step that uses it opens it."""

    __tablename__ = "rt_secret"

    id: str = Field(primary_key=True, sa_type=Text)
    owner_key: str = Field(sa_type=Text)
    sealed: str = Field(sa_type=Text)
    expires_at: datetime | None = instant(nullable=True)
    created_at: datetime = instant()


class RtCluster(SQLModel, table=True):
    """One row: which cluster may activate entities, until when (server clock)."""

    __tablename__ = "rt_cluster"

    id: int = Field(default=1, primary_key=True)
    holder: str = Field(sa_type=Text)
    lease_until: datetime = instant()


class RtAudit(SQLModel, table=True):
    """What a person did in one tree outside its everyday work: append-only.

    Attributes:
        actor_key: The root of the tree.
        by: Who: kind, id and login.
    """

    __tablename__ = "rt_audit"

    actor_key: str = Field(primary_key=True, sa_type=Text)
    id: str = Field(primary_key=True, sa_type=Text)
    at: datetime = instant()
    by: dict[str, Any] = json_field()
    what: str = Field(sa_type=Text)
    data: dict[str, Any] = json_field()


class RtIssue(StateRow, table=True):
    """One incident.

    Attributes:
        affected: Per entity key: kind, id, title, and when its work went on again.
    """

    __tablename__ = "rt_issue"

    id: str = Field(primary_key=True)
    fingerprint: str
    code: str
    message: str
    hint: str = ""
    entity: str
    workflow: str
    step: str = ""
    attempt: int = 1
    will_retry: bool = False
    count: int = 0
    affected: dict[str, Any] = json_field(default=dict)
    first_seen_at: datetime = instant()
    last_seen_at: datetime = instant()
    resolved_at: datetime | None = instant(nullable=True)

    def represent(self) -> dict[str, Any]:
        """Return the issue as clients see it."""
        return {
            "id": self.id,
            "code": self.code,
            "message": self.message,
            "entity": self.entity,
            "workflow": self.workflow,
            "step": self.step,
            "attempt": self.attempt,
            "will_retry": self.will_retry,
            "count": self.count,
            "affected": [
                {"kind": who["kind"], "id": who["id"], "title": who["title"]}
                for who in self.affected.values()
            ],
            "first_seen_at": self.first_seen_at.isoformat(),
            "last_seen_at": self.last_seen_at.isoformat(),
            "resolved_at": self.resolved_at.isoformat() if self.resolved_at else None,
            "hint": self.hint,
            "revision": self.revision,
            "updated_at": self.updated_at.isoformat(),
        }
