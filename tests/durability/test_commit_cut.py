"""The connection breaks at a COMMIT: whether it counted can only be seen by looking.

The scenario of the crash points is played while a proxy between everybody and PostgreSQL cuts
about each third writing transaction, of the kernel and of its clients.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundry_ray.store.engine import Database
from tests.durability.bench import Process, processes, rows, seed
from tests.durability.conftest import Evidence
from tests.durability.crash_program import SHY
from tests.durability.cutter import COMMITTED, Cut, Cutter, Done
from tests.durability.test_crash_points import Scenario, calm

AT_ONCE = 4  # trees
CHANCE = 0.3
CLIENTS, KERNEL = "clients", "kernel"  # application names


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A direct connection, which nobody cuts."""
    made = Database(database_url, name="test", size=4)
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize("cut", list(Cut))
async def test_a_commit_that_nobody_heard_of_counts_once_or_is_made_again(
    cut: Cut, database: Database, tmp_path: Path, evidence: Evidence
) -> None:
    begin = seed()
    expected = await calm(database, tmp_path)
    words = {key: word for key, word in expected["/repo/1"].items() if key != SHY}
    expected = {**expected, "/repo/1": words}
    cutter = Cutter(database.url, cut, random.Random(begin), CHANCE)

    async def case(number: int, url: str) -> None:
        folder = tmp_path / f"tree-{number}"
        folder.mkdir()
        clients = Database(url, name=CLIENTS, size=12)
        await clients.open()
        kernel = f"{KERNEL}-{number}"
        scenario = Scenario(clients, f"org/{number}", folder, shy=False)
        with processes() as started:
            started.append(Process(scenario.plan(kernel)))
            await scenario.play()
            assert started[0].status is None, started[0].log()
            await started[0].leave()
        await scenario.check(kills=sum(one.who == kernel for one in cutter.cuts))
        assert await scenario.end() == expected
        after = await rows(database, scenario.root)
        assert after["rt_mailbox"] == after["rt_run"] == []
        await clients.close()

    async with cutter.serving() as url, asyncio.TaskGroup() as group:
        for number in range(1, AT_ONCE + 1):
            group.create_task(case(number, url))

    evidence.add(seed=begin, cut=cut, cuts=len(cutter.cuts), left_alone=cutter.passed)
    for (who, wrote), times in Counter((_sort(one), one.wrote) for one in cutter.cuts).items():
        evidence.add(cut=cut, who=who, wrote=", ".join(wrote), times=times)
    answers = Counter(one.answer for one in cutter.cuts)
    assert set(answers) == {"COMMIT" if cut in COMMITTED else ""}, answers
    kernels = [one for one in cutter.cuts if _sort(one) == KERNEL]
    assert any(one.who == CLIENTS for one in cutter.cuts)
    assert any(_consumed(one) for one in kernels), "a turn"
    assert any(_claimed(one) for one in kernels), "a claim of a step"
    assert any("INSERT rt_entity" in one.wrote for one in kernels), "an activation"


def _sort(one: Done) -> str:
    """Return whether a kernel or the clients lost the connection, whichever tree's."""
    return one.who.partition("-")[0]


def _consumed(one: Done) -> bool:
    return "DELETE rt_mailbox" in one.wrote


def _claimed(one: Done) -> bool:
    return set(one.wrote) == {"UPDATE rt_entity", "UPDATE rt_run"}
