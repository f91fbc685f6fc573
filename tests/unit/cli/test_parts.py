"""What the supervisor remembers of the parts that it watches."""

from __future__ import annotations

from datetime import timedelta

from foundry_ray.cli.parts import Parts
from foundry_ray.testing.clock import FakeClock


def test_a_part_tells_since_when_and_how_often_it_came_back() -> None:
    clock = FakeClock()
    parts = Parts(clock)
    parts.mark("Ray", "starting")
    clock.advance(timedelta(seconds=5))
    parts.mark("Ray", "running")
    began = clock.now()
    clock.advance(timedelta(seconds=5))
    parts.mark("Ray", "running")
    [part] = parts.all()
    assert (part.state, part.since, part.restarts, part.trouble) == ("running", began, 0, "")

    parts.mark("Ray", "away", "the raylet ended")
    parts.mark("Ray", "starting")
    parts.mark("Ray", "away", "it did not start")
    parts.mark("Ray", "starting")
    parts.mark("Ray", "running")
    [part] = parts.all()
    assert (part.state, part.restarts, part.trouble) == ("running", 1, "it did not start")
    assert part.since == clock.now()
