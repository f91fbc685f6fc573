"""What the kernel counts, as metrics of Ray: its agent on each node offers them to Prometheus.

A process reports every ten seconds, so what happened in the last moments before its end may be
missing: metrics are for people who watch, the rows are the truth. Series carry the kind of entity
and the result, never an entity. ``docs/reference/metrics.md`` lists them.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

# Seconds: from a turn of a few milliseconds to a message that outlived an outage.
BOUNDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800]
BY_RESULT = ("kind", "result")


class RayMeter:
    """The meter of a process that hosts activations."""

    def __init__(self) -> None:
        self._live: dict[str, int] = {}
        self._turns = Counter("foundry_turns", "Messages handled, by result", BY_RESULT)
        self._turn_seconds = Histogram(
            "foundry_turn_seconds", "From the beginning of a turn to its commit", BOUNDS, BY_RESULT
        )
        self._mailbox_age = Histogram(
            "foundry_mailbox_age_seconds",
            "How long a message had been due when its turn began",
            BOUNDS,
            ("kind",),
        )
        self._steps = Counter("foundry_steps", "Attempts of steps, by result", BY_RESULT)
        self._step_seconds = Histogram(
            "foundry_step_seconds", "How long the work of a step took", BOUNDS, BY_RESULT
        )
        self._activations = Gauge("foundry_activations", "Live activations", ("kind",))

    def turn(self, kind: str, result: str, seconds: float, waited: float) -> None:
        """A message was handled, in so long, after it had been due for so long."""
        tags = {"kind": kind, "result": result}
        self._turns.inc(tags=tags)
        self._turn_seconds.observe(seconds, tags)
        self._mailbox_age.observe(waited, {"kind": kind})

    def step(self, kind: str, result: str, seconds: float) -> None:
        """A step's work ended, after so long."""
        tags = {"kind": kind, "result": result}
        self._steps.inc(tags=tags)
        self._step_seconds.observe(seconds, tags)

    def live(self, kind: str, change: int) -> None:
        """An activation of this kind began (1) or ended (-1) in this process."""
        self._live[kind] = self._live.get(kind, 0) + change
        self._activations.set(self._live[kind], {"kind": kind})
