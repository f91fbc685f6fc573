"""The audit log: who did what to the work of others (S30)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from foundry_ray.core import keys
from foundry_ray.core.ids import new_id
from foundry_ray.core.messages import Person
from foundry_ray.runtime.tables import RtAudit

# Who types commands on the machine itself.
OPERATOR = Person(kind="system", login="operator")


def entry(key: str, by: Person, what: str, data: dict[str, Any], now: datetime) -> RtAudit:
    """Return the row to insert; it belongs to the root of the tree in which *key* is.

    Args:
        data: What helps to understand it later; never a secret or a prompt.
    """
    return RtAudit(
        actor_key=keys.root_of(key),
        id=new_id(),
        at=now,
        by=by.model_dump(mode="json", include={"kind", "id", "login"}),
        what=what,
        data=data,
    )
