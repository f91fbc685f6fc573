"""What every activation of a process shares, and how an activation says that it is not here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from foundry_ray.core.clock import Clock
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.secrets import Sealer
from foundry_ray.runtime.actor import Actor
from foundry_ray.runtime.ports import Meter, Unmetered, Waker
from foundry_ray.store.engine import Database


class Passivated(Unavailable):
    """The activation ended; ring again to start a new one."""

    code = "passivated"


class LeaseElsewhere(Unavailable):
    """Another cluster on this database may activate now, not this one."""

    code = "lease_elsewhere"


@dataclass
class Kernel:
    """What every activation of a process shares.

    Attributes:
        tools: Per actor type, what its steps work with (adapters).
        lease_holder: Name of the cluster, which activates only while it has the lease;
            None when there can be only one.
        hint: Called after a commit with feed rows; wakes the streams.
        meter: Counts turns, steps and activations.
        point: Called with the name of each of the ``points`` that is passed.
    """

    database: Database
    clock: Clock
    sealer: Sealer
    waker: Waker
    tools: dict[str, Any]
    actors: dict[str, type[Actor[Any]]]
    idle_factor: float = 1.0
    lease_holder: str | None = None
    hint: Callable[[], None] = lambda: None
    point: Callable[[str], None] = lambda _name: None
    meter: Meter = field(default_factory=Unmetered)
