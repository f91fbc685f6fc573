"""Entities as Ray actors, with a real Ray, a real database and the real kinds."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from foundry_ray import bootstrap
from foundry_ray.actors.app_shell.messages import BeginSignIn
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.core import keys, settings
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.messages import Message, Person
from foundry_ray.runtime import mailbox
from foundry_ray.runtime.local import LocalHost
from foundry_ray.runtime.refs import Client
from foundry_ray.store.engine import Database
from tests.cluster.conftest import Cluster
from tests.helpers import eventually

PATIENCE = timedelta(seconds=30)


class Office:
    """A client of the cluster, as a Serve replica is one."""

    def __init__(self, url: str) -> None:
        from foundry_ray.cluster.actors import directory

        self.database = Database(url, size=4)
        self.directory = directory()
        self.client = Client(self.database, self.directory, SystemClock(), actors=bootstrap.BY_KIND)

    async def ask(self, key: str, message: Message) -> None:
        answer = await self.client.ask(key, message, scope="test", patience=PATIENCE)
        assert answer.answered

    async def health(self, key: str) -> dict[str, Any]:
        return await self.directory.health(key)

    async def summaries(self, key: str) -> list[str]:
        async with self.database.transaction() as transaction:
            rows = await transaction.fetch(
                "SELECT summary FROM history_event WHERE actor_key = %s ORDER BY at", (key,)
            )
        return [row["summary"] for row in rows]

    def has(self, key: str, summary: str) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return summary in await self.summaries(key)

        return look

    async def host(self, key: str) -> Any:
        async with self.database.transaction() as transaction:
            row = await transaction.one("SELECT host FROM rt_entity WHERE key = %s", (key,))
        return None if row is None else row["host"]


@pytest.fixture
async def office(cluster: Cluster) -> AsyncIterator[Office]:
    made = Office(cluster.database_url)
    await made.database.open()
    yield made
    made.directory.close()
    await made.database.close()


def record(summary: str) -> RecordEvent:
    return RecordEvent(actor=Person(), what="test", summary=summary)


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def named(key: str) -> bool:
    import ray

    try:
        ray.get_actor(key, namespace="foundry")
    except ValueError:
        return False
    return True


async def test_an_entity_comes_back_by_name_whatever_ended_its_actor(office: Office) -> None:
    import ray

    key = "org/1/repo/2/history"
    await office.ask(keys.APP, BeginSignIn(state_hash="1", return_to="/"))
    await office.ask(key, record("first"))
    assert named(keys.APP)
    first = await office.health(key)
    assert first["epoch"] == 1

    # -- idle: it gives its name back by itself, and the next message finds a new one
    await eventually(lambda: not named(key))
    assert await office.host(key) is None
    await eventually(lambda: not runs(first["pid"]))
    await office.ask(key, record("after passivation"))
    assert (await office.health(key))["epoch"] == 2

    # -- ended by Ray
    ray.kill(ray.get_actor(key, namespace="foundry"))
    await office.ask(key, record("after ray.kill"))
    third = await office.health(key)
    assert third["epoch"] == 3

    # -- killed by somebody
    os.kill(third["pid"], signal.SIGKILL)
    await office.ask(key, record("after kill -9"))
    assert (await office.health(key))["epoch"] == 4

    # -- drained: a message that comes while it leaves is not lost either
    ray.get_actor(key, namespace="foundry").drain.remote()
    await office.ask(key, record("after drain"))
    assert (await office.health(key))["epoch"] == 5

    assert await office.summaries(key) == [
        "first", "after passivation", "after ray.kill", "after kill -9", "after drain",
    ]  # fmt: skip

    # -- the one that always lives: Ray starts its process again
    app = await office.health(keys.APP)
    os.kill(app["pid"], signal.SIGKILL)
    await office.ask(keys.APP, BeginSignIn(state_hash="2", return_to="/"))
    assert (await office.health(keys.APP))["epoch"] > app["epoch"]


async def test_a_sleeping_process_that_was_replaced_cannot_commit(office: Office) -> None:
    key = "org/1/repo/3/history"
    await office.ask(keys.APP, BeginSignIn(state_hash="3", return_to="/"))
    await office.ask(key, record("before"))
    old = await office.health(key)
    os.kill(old["pid"], signal.SIGSTOP)

    # A newer activation, here, as if another cluster had it.
    local = LocalHost()
    outside = bootstrap.adapters(settings.load(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent))
    local.kernel = bootstrap.kernel(outside, office.database, local)
    await Client(office.database, local, SystemClock(), actors=bootstrap.BY_KIND).tell(
        key, record("meanwhile")
    )
    await eventually(office.has(key, "meanwhile"))
    await local.close()
    await outside.aclose()

    os.kill(old["pid"], signal.SIGCONT)
    await office.ask(key, record("afterwards"))
    new = await office.health(key)
    assert new["epoch"] == old["epoch"] + 2
    await eventually(lambda: not runs(old["pid"]))
    assert await office.summaries(key) == ["before", "meanwhile", "afterwards"]


async def test_sigterm_lets_an_actor_finish_its_turn_release_and_exit(office: Office) -> None:
    key = "org/1/repo/8/history"
    await office.ask(keys.APP, BeginSignIn(state_hash="6", return_to="/"))
    await office.ask(key, record("before"))
    idle = await office.health(key)
    began = time.monotonic()

    os.kill(idle["pid"], signal.SIGTERM)

    await eventually(lambda: not runs(idle["pid"]))
    print(f"gone after {time.monotonic() - began:.2f} s")
    assert await office.host(key) is None

    # -- with mail and a turn at any time
    words = [f"word {number}" for number in range(40)]
    asked = [asyncio.create_task(office.ask(key, record(word))) for word in words]
    await eventually(office.has(key, "word 5"))
    busy = await office.host(key)
    os.kill(busy["pid"], signal.SIGTERM)
    await eventually(lambda: not runs(busy["pid"]))
    await asyncio.gather(*asked)
    assert (await office.health(key))["epoch"] > idle["epoch"] + 1
    written = await office.summaries(key)
    assert sorted(written) == sorted(["before", *words])


async def test_who_hands_over_to_a_stopped_process_is_not_kept_waiting(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foundry_ray.cluster import directory

    key = "org/1/repo/7/history"
    monkeypatch.setattr(directory, "HAND_PATIENCE", 0.1)
    monkeypatch.setattr(directory, "RING_PATIENCE", 0.5)
    await office.ask(keys.APP, BeginSignIn(state_hash="5", return_to="/"))
    await office.ask(key, record("before"))  # it has answered, so it does not start any more
    stopped = await office.health(key)
    os.kill(stopped["pid"], signal.SIGSTOP)

    with pytest.raises(Unavailable):
        await office.directory.hand(key, record("into the void"))

    async def handed() -> bool:
        try:
            await office.directory.hand(key, record("handed"))
        except Unavailable as trouble:
            raise AssertionError("hand it over again") from trouble
        return True

    await eventually(handed, timeout=20)
    assert (await office.health(key))["epoch"] == stopped["epoch"] + 1
    assert await office.summaries(key) == ["before", "handed"]


async def test_who_only_starts_is_not_ended_for_not_moving(office: Office) -> None:
    key = "org/1/repo/9/history"
    await office.ask(keys.APP, BeginSignIn(state_hash="7", return_to="/"))

    office.directory.ring(key)
    office.directory.end(key)  # a supervisor that sees old mail and no commit would say so

    async def epoch() -> int:
        async with office.database.transaction() as transaction:
            row = await transaction.one("SELECT epoch FROM rt_entity WHERE key = %s", (key,))
        return 0 if row is None else int(row["epoch"])

    assert await eventually(epoch, timeout=30) == 1


async def test_supervisors_find_due_mail_that_nobody_rang_for_and_end_who_does_not_move(
    office: Office,
) -> None:
    key = "org/4/repo/5/history"
    await office.ask(keys.APP, BeginSignIn(state_hash="4", return_to="/"))

    async def put(summary: str, key: str = key) -> None:
        async with office.database.transaction() as transaction:
            now = SystemClock().now()
            await mailbox.put(transaction, key, record(summary), sender="test", now=now)

    await put("unheard")
    await eventually(office.has(key, "unheard"), timeout=20)

    # -- a supervisor that is stopped itself has one above it
    await eventually(lambda: named("org/4"))
    supervisor = (await office.health("org/4"))["pid"]
    os.kill(supervisor, signal.SIGSTOP)
    other = "org/4/repo/6/history"
    await put("below a stopped supervisor", other)
    await eventually(office.has(other, "below a stopped supervisor"), timeout=20)

    # -- a process that is stopped is ended, although Ray thinks it alive
    await office.ask(key, record("heard"))
    stopped = (await office.health(key))["pid"]
    os.kill(stopped, signal.SIGSTOP)
    await put("behind a stopped process")
    await eventually(office.has(key, "behind a stopped process"), timeout=30)
    await eventually(lambda: not runs(stopped))
    await eventually(lambda: not runs(supervisor), timeout=30)


async def test_an_actor_that_cannot_begin_says_so_and_frees_its_name(cluster: Cluster) -> None:
    import ray

    from foundry_ray.cluster.actors import CLASSES
    from foundry_ray.cluster.directory import FAILED

    options = CLASSES["history"].options(name="broken", namespace="foundry", lifetime="detached")
    actor = options.remote("no/such/key")
    assert ray.get(actor.start.remote()) == FAILED
    await eventually(lambda: not named("broken"))
