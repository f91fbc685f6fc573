"""Every table of Foundry, in one place for Alembic.

A table lives in a module called ``tables``: the kernel's in ``runtime``, an actor's in
its flat. All are found by that name, so none can be forgotten.
"""

from __future__ import annotations

import importlib
import pkgutil

from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import UserDefinedType
from sqlmodel import SQLModel

import foundry_ray.actors
import foundry_ray.runtime


def modules() -> list[str]:
    """Return the dotted names of all modules that declare tables."""
    packages = [foundry_ray.runtime]
    for found in pkgutil.iter_modules(foundry_ray.actors.__path__, "foundry_ray.actors."):
        if found.ispkg:
            packages.append(importlib.import_module(found.name))
    return [
        f"{package.__name__}.{found.name}"
        for package in packages
        for found in pkgutil.iter_modules(package.__path__)
        if found.name == "tables"
    ]


for _name in modules():
    importlib.import_module(_name)

metadata = SQLModel.metadata

# Types of PostgreSQL that SQLAlchemy does not know, so that a comparison can read them.
for _table in metadata.tables.values():
    for _column in _table.columns:
        if isinstance(_column.type, UserDefinedType):
            ischema_names[_column.type.get_col_spec()] = type(_column.type)
