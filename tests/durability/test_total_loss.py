"""Every process of an instance is killed within a second while an agent streams (SIGKILL)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from foundry_ray.cli.chaos.outside import count_journal
from tests.durability.conftest import Evidence, enter, running
from tests.durability.outside import (
    Killed,
    Work,
    connect,
    cursor,
    instance,
    kill_all,
    query,
    said,
)
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually

CHUNKS = 3000
OUTSTANDING = 100  # records of the journal that the transcript does not have yet


@pytest.fixture(scope="module")
def foundry(orphans: None) -> Iterator[Foundry]:
    with running() as made:
        yield made


@pytest.fixture
async def acme(foundry: Foundry) -> AsyncIterator[Acme]:
    async with enter(foundry) as seen:
        yield seen


async def lose_everything(
    foundry: Foundry, acme: Acme, evidence: Evidence, *, sandboxes: bool
) -> Work:
    """Begin a task, kill in the middle of its stream, start Foundry again."""
    work = await Work.begin(foundry, acme, "say ready")
    await work.finished()
    home, before, begun = work.home, work.rows(), cursor(foundry, work.session_key)
    aimed = instance(foundry, sandboxes=sandboxes)
    seen: dict[str, int] = {}
    asked = b"SELECT cursor FROM task_session WHERE actor_key = %s"
    with contextlib.closing(connect(foundry)) as database:
        # Nothing slow from here on: the agent says thousands of chunks in a second.
        message = {"text": f"stream {CHUNKS} 0\nsay end"}
        prompt = asyncio.create_task(
            work.call("POST", f"/sessions/{work.session}/messages", message)
        )

        def in_the_middle() -> bool:
            [row] = database.execute(asked, (work.session_key,)).fetchall()
            seen.update(journalled=count_journal(home, work.session), cursor=row["cursor"])
            return seen["journalled"] - seen["cursor"] > OUTSTANDING

        await eventually(in_the_middle, timeout=60, every=0.001)
        await prompt
        killed = kill_all(foundry, aimed, sandboxes=sandboxes)

    journalled = count_journal(home, work.session)
    check_dead(killed)
    evidence.add(
        killed=len(killed),
        last_signal_ms=round(max(one.sent for one in killed) * 1000),
        transcript_cursor_before_the_prompt=begun,
        transcript_cursor=seen["cursor"],
        journalled_at_the_first_signal=seen["journalled"],
        journalled_when_dead=journalled,
        rows_before=before,
    )
    for one in killed:
        evidence.add(**one.as_json())
    open_until = journalled if sandboxes else seen["journalled"]
    assert open_until < begun + CHUNKS, "the agent had finished already"
    await asyncio.to_thread(foundry.cli, "up", "--demo", "--detach")
    return work


def check_dead(killed: list[Killed]) -> None:
    """Every part of the instance was among the dead, and all were hit within a second."""
    names = {one.what for one in killed}
    for part in ("foundry_ray.cli", "foundry_ray.testing.forge", "postgres", "raylet"):
        assert part in names, names
    for part in ("gcs_server", "ray::SessionStatusSyncActor", "ray::ServeReplica"):
        assert any(name.startswith(part) for name in names), names
    assert max(one.sent for one in killed) < 1
    # Who was nobody's child when it died had us as its parent: the kernel told us of what.
    assert {one.signal for one in killed} <= {9, None}
    assert sum(one.signal == 9 for one in killed) >= len(killed) // 2


async def test_with_the_sandbox_alive_nothing_is_missing_and_nothing_is_doubled(
    foundry: Foundry, acme: Acme, evidence: Evidence
) -> None:
    work = await lose_everything(foundry, acme, evidence, sandboxes=False)

    await work.finished()
    compared = await work.check_complete()
    words = said(await work.transcript())
    assert words == ["ready", *(f"chunk {number}\n" for number in range(CHUNKS)), "end"]
    assert len(work.witness()) == 2
    await eventually(lambda: not work.issues(), timeout=30)
    evidence.add(rows_after=work.rows(), **compared)


async def test_with_the_sandbox_dead_the_turn_ends_visibly_and_the_next_prompt_goes_on(
    foundry: Foundry, acme: Acme, evidence: Evidence
) -> None:
    work = await lose_everything(foundry, acme, evidence, sandboxes=True)

    async def failed() -> str:
        seen = await work.see()
        assert seen["status"] == "error", seen
        return str(seen["error"]["code"])

    assert await eventually(failed, timeout=60, every=0.2) == "agent_exited"
    broken_off = work.rows()
    lost = await work.check_complete()
    assert len(work.witness()) == 2

    await work.call("POST", f"/sessions/{work.session}/messages", {"text": "say back again"})

    await work.finished()
    compared = await work.check_complete()
    assert said(await work.transcript())[-1] == "back again"
    assert len(work.witness()) == 3
    states = query(
        foundry,
        "SELECT state FROM task_session_message WHERE actor_key = %s ORDER BY id",
        work.session_key,
    )
    assert [row["state"] for row in states] == ["done", "failed", "done"]
    await eventually(lambda: not work.issues(), timeout=30)
    evidence.add(
        rows_after_the_end=broken_off, events_then=lost["transcript_events"],
        rows_after=work.rows(), **compared,
    )  # fmt: skip
