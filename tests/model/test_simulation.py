"""Seeded histories of many entities; a seed that fails says how to repeat it, and stays here.

``FOUNDRY_SEED``, ``FOUNDRY_ENTITIES`` and ``FOUNDRY_TICKS`` repeat one history.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import structlog

from foundry_ray.store.engine import Database
from tests.model.simulation import Plan, Simulation

PLANS = [Plan(seed) for seed in (1, 2, 3)]
# Histories that once found something.
REGRESSIONS: list[Plan] = []
if "FOUNDRY_SEED" in os.environ:
    PLANS = [Plan.from_environment()]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    made = Database(database_url, name="toy", size=4)
    await made.open()
    yield made
    await made.close()
    structlog.reset_defaults()


@pytest.mark.parametrize("plan", [*PLANS, *REGRESSIONS], ids=str)
async def test_whatever_happens_nothing_is_lost(database: Database, plan: Plan) -> None:
    await Simulation(database, plan).run()


async def test_a_seed_tells_the_same_history_each_time(database: Database) -> None:
    plan = Plan(4, entities=5, ticks=250)
    first, second = (Simulation(database, plan, number=number) for number in (1, 2))
    await first.run()
    await second.run()

    assert sum(first.died.values()) > 0
    assert first.passed == second.passed
    assert first.trace == [line.replace("org/2", "org/1") for line in second.trace]
