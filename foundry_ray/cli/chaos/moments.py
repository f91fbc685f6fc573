"""The moments in which something is killed: found, held if need be, and proven."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from foundry_ray.cli.chaos import prompts
from foundry_ray.cli.chaos.load import Load, Work
from foundry_ray.cli.chaos.outside import Outside, count_journal
from foundry_ray.cli.chaos.targets import Target
from foundry_ray.core import keys

PATIENCE = 20.0  # seconds for a moment to come; else another cell has its turn
GROWTH = 0.15  # seconds between two looks at a journal that grows
OUTSTANDING = 100  # records of a journal that the transcript does not have yet
_LOOK = 0.02

# A turn of these is about a task, so a sandbox belongs to it.
OF_A_TASK = ("sandbox_instance", "task", "task_session", "session_status_sync")
STEPS_OF_A_TASK = ("sandbox_instance", "session_status_sync")


def tree(work: Work) -> list[str]:
    """Return the keys of the entities that take part in a task's agent turns."""
    found = [work.key, work.session_key, keys.status_sync(work.session_key)]
    if work.sandbox:
        organization = keys.organization_id(work.key)
        found.append(keys.sandbox(organization, "local", work.sandbox))
    return found


def work_of(load: Load, key: str) -> Work | None:
    """Return the task to which an entity belongs."""
    return next(
        (one for one in load.works if key in tree(one) or key.startswith(f"{one.key}/")), None
    )


async def eventually(look: Callable[[], Any], patience: float, every: float = _LOOK) -> Any:
    """Return the first true answer of *look*, None after *patience* seconds."""
    until = time.monotonic() + patience
    while not (found := look()):
        if time.monotonic() > until:
            return None
        await asyncio.sleep(every)
    return found


async def streaming(
    load: Load, outside: Outside, chance: random.Random
) -> tuple[Work, dict[str, Any]] | None:
    """Return a task whose agent speaks right now: its journal grew a moment ago."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        speaking = [
            one
            for one in load.works
            if one.sandbox and one.current and one.current.script.sort == "stream"
        ]
        if speaking:
            work = chance.choice(speaking)
            before = count_journal(outside.home(work.sandbox), work.session)
            await asyncio.sleep(GROWTH)
            after = count_journal(outside.home(work.sandbox), work.session)
            if after > before and work.current:
                return work, {
                    "prompt": work.current.script.marker,
                    "journal": after,
                    "grew_by": after - before,
                }
        await asyncio.sleep(_LOOK)
    return None


@contextlib.asynccontextmanager
async def resting(load: Load, chance: random.Random) -> AsyncIterator[Work | None]:
    """Hold one task between two prompts."""
    found = await eventually(
        lambda: [one for one in load.works if one.resting and one.free.is_set()], PATIENCE
    )
    work: Work | None = chance.choice(found) if found else None
    if work is None:
        yield None
        return
    work.free.clear()
    try:
        yield work
    finally:
        work.free.set()


@contextlib.asynccontextmanager
async def all_resting(load: Load) -> AsyncIterator[bool]:
    """Hold every task between two prompts; yield whether nobody asks for anything now."""
    load.may_begin.clear()
    for one in load.works:
        one.free.clear()
    try:
        rest = await eventually(
            lambda: all(one.resting or one.over for one in load.works), 2 * PATIENCE
        )
        yield bool(rest)
    finally:
        load.may_begin.set()
        for one in load.works:
            one.free.set()


_BUSY = """
SELECT (SELECT count(*) FROM rt_mailbox WHERE timer IS NULL AND (%(all)s OR target = ANY(%(keys)s)))
 + (SELECT count(*) FROM rt_run WHERE %(all)s OR entity_key = ANY(%(keys)s))
 + (SELECT count(*) FROM task_session WHERE turn_message_id IS NOT NULL
    AND (%(all)s OR actor_key = ANY(%(keys)s))) AS busy
"""


async def nothing_to_do(outside: Outside, among: list[str] | None = None) -> bool:
    """Wait until no mail, no run and no agent turn is left, of these entities or of all."""
    given = {"all": among is None, "keys": among or []}

    def look() -> bool:
        with outside.connect() as connection:
            rows = connection.execute(_BUSY.encode(), given).fetchall()
        return bool(rows[0]["busy"] == 0)

    until = time.monotonic() + PATIENCE / 2
    while time.monotonic() < until:
        if await asyncio.to_thread(look):
            return True
        await asyncio.sleep(5 * _LOOK)
    return False


def flooded(
    outside: Outside, work: Work, find: Callable[[], Target | None]
) -> tuple[Target, dict[str, Any]] | None:
    """Wait, without a pause, until much of a journal is not in the transcript; kill right then.

    Args:
        outside: Where to look.
        work: Its agent was told to say thousands of chunks.
        find: Returns who is to die.
    """
    asked = b"SELECT cursor FROM task_session WHERE actor_key = %s"
    until = time.monotonic() + PATIENCE
    with outside.connect() as database:

        def lag() -> tuple[int, int]:
            [row] = database.execute(asked, (work.session_key,)).fetchall()
            journal = count_journal(outside.home(work.sandbox), work.session)
            return journal, journal - row["cursor"]

        begun = lag()[0]
        while time.monotonic() < until:
            if lag()[1] > OUTSTANDING and (target := find()):
                journal, outstanding = lag()
                in_time = outstanding > OUTSTANDING and journal < begun + prompts.FLOOD
                if in_time and target.kill():
                    return target, {"outstanding": outstanding, "journal": journal}
            time.sleep(0.001)
    return None
