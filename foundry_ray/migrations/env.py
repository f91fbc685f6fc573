"""Alembic's entry: runs migrations on the connection that ``store.migrate`` gives."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlmodel.sql.sqltypes import AutoString

from foundry_ray.migrations.tables import metadata


def render(kind: str, item: Any, generated: AutogenContext) -> str | Literal[False]:
    """Write column types so that a migration file imports what it names."""
    if kind == "type" and isinstance(item, AutoString):
        return "sa.String()"
    if kind == "type" and type(item).__module__.startswith("foundry_ray."):
        generated.imports.add(f"from {type(item).__module__} import {type(item).__name__}")
        return repr(item)
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    render_item=render,
)
with context.begin_transaction():
    context.run_migrations()
