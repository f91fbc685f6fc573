"""A provider that answers 503 for a minute while 20 tasks start: one incident, then all go on."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_ray.providers.local import find_binary
from tests.durability.conftest import Evidence, enter, running
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually
from tests.integration.sandbox import gateway

TASKS = 20
MINUTE = 60.0
# 20 sandboxes and their actors, on a machine that has other things to do as well.
PATIENCE = 600


@pytest.fixture
def foundry() -> Iterator[Foundry]:
    with running() as made:
        yield made


def put_gateway(foundry: Foundry) -> Path:
    """Let every sandbox lie behind a gateway; return the file that makes it say 503."""
    program = gateway.put(foundry.data_dir / "gateway", find_binary())
    foundry.sandbox_agent.unlink()
    foundry.sandbox_agent.symlink_to(program)
    return program.parent / "away"


async def incidents(acme: Acme) -> list[dict[str, Any]]:
    found = await acme.call("GET", "/runtime-issues")
    issues: list[dict[str, Any]] = found["items"]
    return issues


async def test_an_outage_of_a_minute_is_one_incident_and_everything_goes_on(
    foundry: Foundry, evidence: Evidence
) -> None:
    away = put_gateway(foundry)
    async with enter(foundry) as acme:
        away.touch()
        began = time.monotonic()
        made = await asyncio.gather(
            *(acme.create("say ready", title=f"Task {n}") for n in range(TASKS))
        )
        ids = {task["id"] for task in made}

        async def all_affected() -> dict[str, Any]:
            found = await incidents(acme)
            assert len(found) == 1, found
            issue = found[0]
            assert {who["id"] for who in issue["affected"]} == ids, len(issue["affected"])
            return issue

        await eventually(all_affected, timeout=PATIENCE, every=0.5)
        spread = time.monotonic() - began
        await eventually(lambda: time.monotonic() - began > MINUTE, timeout=2 * MINUTE, every=0.5)
        during = await all_affected()
        away.unlink()
        outage, back = time.monotonic() - began, time.monotonic()

        assert during["code"] == "provider_unavailable"
        assert during["resolved_at"] is None
        assert during["will_retry"]
        assert during["count"] >= TASKS
        assert during["hint"]
        assert {who["kind"] for who in during["affected"]} == {"task"}

        async def resolved() -> dict[str, Any]:
            issue = next(one for one in await incidents(acme) if one["id"] == during["id"])
            assert issue["resolved_at"], issue["count"]
            return issue

        after: dict[str, Any] = await eventually(resolved, timeout=PATIENCE, every=0.5)
        closed = time.monotonic() - back
        await asyncio.gather(*(acme.settled(one, timeout=PATIENCE) for one in sorted(ids)))
        assert Counter([await acme.said(task) for task in made]) == {"ready": TASKS}

        async def calm() -> bool:
            others = [one for one in await incidents(acme) if one["id"] != during["id"]]
            assert all(one["resolved_at"] for one in others), others
            return True

        await eventually(calm, timeout=60, every=0.5)
        evidence.add(
            tasks=TASKS,
            outage_seconds=round(outage, 1),
            all_affected_after_seconds=round(spread, 1),
            during={k: during[k] for k in ("code", "message", "hint", "step", "count")},
            affected=len(during["affected"]),
            count_in_the_end=after["count"],
            resolved_seconds_after=round(closed, 1),
            all_ready_seconds_after=round(time.monotonic() - back, 1),
        )
