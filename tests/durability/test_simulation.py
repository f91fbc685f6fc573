"""Long seeded histories: no promise of the kernel breaks, and a process dies at every point."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import structlog

from foundry_ray.runtime.points import POINTS
from foundry_ray.store.engine import Database
from tests.durability.bench import seed
from tests.durability.conftest import Evidence
from tests.model.simulation import Plan, Simulation

HISTORIES = 12


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    made = Database(database_url, name="toy", size=4)
    await made.open()
    yield made
    await made.close()
    structlog.reset_defaults()


async def test_long_histories_of_many_entities(database: Database, evidence: Evidence) -> None:
    first = seed()
    dice = random.Random(first)
    passed: Counter[str] = Counter()
    died: Counter[str] = Counter()
    for number in range(1, HISTORIES + 1):
        plan = Plan(dice.randrange(2**32), entities=dice.randrange(3, 30), ticks=1500)
        simulation = Simulation(database, plan, number=number)
        await simulation.run()
        passed.update(simulation.passed)
        died.update(simulation.died)
        evidence.add(
            repeat=str(plan), commands=len(simulation.sent), runs=len(simulation.runs),
            deaths=sum(simulation.died.values()),
        )  # fmt: skip
    evidence.add(seed=first, passed=dict(passed), died_at=dict(died))
    assert set(died) == set(POINTS), "nobody died at some point"
