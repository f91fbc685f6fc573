"""Columns and the base of rows that Foundry's tables share."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel


def instant(*, nullable: bool = False, index: bool = False) -> Any:
    """Return a field for an instant in UTC."""
    kind = DateTime(timezone=True)
    default = None if nullable else ...
    return Field(default, sa_type=kind, nullable=nullable, index=index)


def json_field(*, nullable: bool = False, default: Any = ...) -> Any:
    """Return a field for a JSON value, stored as jsonb."""
    if callable(default):
        return Field(default_factory=default, sa_type=JSONB, nullable=nullable)
    return Field(None if nullable else default, sa_type=JSONB, nullable=nullable)


def big_identity() -> Any:
    """Return a primary key that counts up, one value at a time (CACHE 1)."""
    from sqlalchemy import Identity

    column = Column("id", BigInteger, Identity(always=True, cache=1), primary_key=True)
    return Field(None, sa_column=column)


class StateRow(SQLModel):
    """What every row of an actor's own tables has.

    Attributes:
        actor_key: The one entity that writes this row.
        revision: Rises with each change of the row; the writer counts.
    """

    actor_key: str = Field(primary_key=True, sa_type=Text)
    revision: int = 1
    created_at: datetime = instant()
    updated_at: datetime = instant()
