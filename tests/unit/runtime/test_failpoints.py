"""Traps at named points: one process is caught, exactly there, until it is let go."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foundry_ray.runtime import failpoints, points
from foundry_ray.runtime.failpoints import Failpoints, Snare
from tests.helpers import eventually

TASK = "org/1/repo/2/task/3"


async def test_who_passes_the_point_waits_there_until_it_is_let_go(tmp_path: Path) -> None:
    passing = Failpoints(tmp_path, TASK)
    with Snare(tmp_path, [points.TURN_OPEN], ["task"]) as snare:
        passing(points.BEFORE_BEGIN)  # another point: nobody is stopped
        assert snare.caught() is None
        passed = asyncio.create_task(asyncio.to_thread(passing, points.TURN_OPEN))

        caught = await eventually(snare.caught)

        assert caught is not None
        assert (caught.pid, caught.key, caught.point) == (os.getpid(), TASK, points.TURN_OPEN)
        assert caught.is_held
        assert not passed.done()
    await passed
    assert not list(tmp_path.iterdir())


async def test_a_trap_for_other_kinds_stops_nobody(tmp_path: Path) -> None:
    with Snare(tmp_path, [points.TURN_OPEN], ["repository"]) as snare:
        Failpoints(tmp_path, TASK)(points.TURN_OPEN)

        assert snare.caught() is None


async def test_of_many_that_pass_at_once_one_is_caught(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads, Snare(tmp_path, points.POINTS, ["task"]) as snare:
        passing = [
            threads.submit(Failpoints(tmp_path, f"{TASK}{n}"), points.STEP_CLAIMED)
            for n in range(8)
        ]
        caught = await eventually(snare.caught)

        assert caught is not None
        await eventually(lambda: sum(one.done() for one in passing) == 7)
        snare.__exit__()
        await eventually(lambda: all(one.done() for one in passing))


async def test_a_forgotten_trap_holds_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failpoints, "HOLD", 0.05)
    with Snare(tmp_path, [points.ACTIVATED], ["task"]) as snare:
        Failpoints(tmp_path, TASK)(points.ACTIVATED)

        caught = snare.caught()
        assert caught is not None
        assert not caught.is_held
