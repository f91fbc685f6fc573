"""Each actor that has to do with a running agent turn dies in every way; the turn goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from foundry_ray.cli.processes import title
from foundry_ray.runtime import host
from tests.durability.conftest import Evidence, enter, running
from tests.durability.history import History
from tests.durability.outside import Work, cursor, entity, instance, said
from tests.durability.ray_hand import RayHand
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually

KINDS = ("sandbox_instance", "task_session", "session_status_sync", "task")
STREAMING = ("task_session", "session_status_sync")  # these have work all the time
WAYS = ("kill -9", "ray.kill", "SIGSTOP", "passivated")
CHUNKS, PAUSE = 6000, 50  # of the agent turn at most; milliseconds
ENOUGH = "../enough"  # a file that lets the agent go on to its question
WORDS, STRIKES = 12, 3  # of each client; replicas that die meanwhile
REPLACED = 60.0  # seconds, on a machine that has much else to do


@pytest.fixture(scope="module")
def foundry(orphans: None) -> Iterator[Foundry]:
    with running() as made:
        yield made


@pytest.fixture
async def acme(foundry: Foundry) -> AsyncIterator[Acme]:
    async with enter(foundry) as seen:
        yield seen


@pytest.fixture(scope="module")
def ray_hand(foundry: Foundry) -> Iterator[RayHand]:
    hand = RayHand(foundry.ray_environment)
    yield hand
    hand.close()


class Striker:
    """Ends the process of one actor in one way, and sees that another takes over."""

    def __init__(self, work: Work, kind: str, hand: RayHand, evidence: Evidence) -> None:
        self.work = work
        self.kind = kind
        self.key = work.keys[kind]
        self._hand = hand
        self._evidence = evidence

    def row(self) -> dict[str, Any]:
        return entity(self.work.foundry, self.key)

    def lives(self) -> bool:
        return not host.proven_gone(self.row()["host"])

    async def strike(self, way: str) -> None:
        """Let the actor die, and wait until its successor has done something."""
        await self._awake()
        before, began = self.row(), time.monotonic()
        pid = before["host"]["pid"]
        match way:
            case "passivated" if self.kind in STREAMING:  # never idle during an agent turn
                await asyncio.to_thread(self._hand.order, "drain", self.key)
            case "passivated":  # by itself: nothing has come for some seconds
                await eventually(lambda: self.row()["host"] is None, REPLACED, every=0.1)
            case "ray.kill":
                await asyncio.to_thread(self._hand.order, "kill", self.key)
            case "kill -9":
                os.kill(pid, signal.SIGKILL)
            case "SIGSTOP":
                os.kill(pid, signal.SIGSTOP)

        await self._needed()
        await eventually(lambda: self.row()["epoch"] > before["epoch"], REPLACED, every=0.05)
        replaced = time.monotonic() - began
        await eventually(lambda: host.proven_gone(before["host"]), REPLACED, every=0.05)
        gone = time.monotonic() - began
        seconds = {"replaced": round(replaced, 2), "found_dead": round(gone, 2)}
        known = cursor(self.work.foundry, self.work.session_key)
        await self._done(known)
        seconds["work_went_on"] = round(time.monotonic() - began, 2)
        seen = await self.work.see()
        assert seen["status"] == "running", "the agent turn was over too early"
        numbers = ("epoch", "revision")
        self._evidence.add(
            actor=self.kind,
            way=way,
            pid=before["host"]["pid"],
            seconds=seconds,
            before={name: before[name] for name in numbers},
            after={name: self.row()[name] for name in numbers},
            transcript=[known, cursor(self.work.foundry, self.work.session_key)],
            issues=[issue["code"] for issue in self.work.issues()],
        )

    # Only reader and session have something to do all the time; the others get a command.

    async def _awake(self) -> None:
        if not self.lives():
            await self._needed()
        await eventually(self.lives, REPLACED, every=0.05)

    async def _needed(self) -> None:
        if self.kind not in STREAMING:
            self._asked = await eventually(self.push, REPLACED, every=0.1)

    async def push(self) -> str:
        """Have the branch pushed; return when the push before this one was done, or "never"."""
        operations = (await self.work.call("GET", ""))["operations"]
        await self.work.call("POST", "/push")
        return str(operations["push"]["at"]) if "push" in operations else "never"

    async def _done(self, known: int) -> None:
        """Wait until a command has been obeyed, or the transcript has grown."""

        async def pushed() -> bool:
            push = (await self.work.call("GET", ""))["operations"]["push"]
            return push["state"] == "done" and push["at"] != self._asked

        def grown() -> bool:
            return cursor(self.work.foundry, self.work.session_key) > known

        obeyed = self.kind not in STREAMING
        await eventually(pushed if obeyed else grown, REPLACED, every=0.1)


async def test_an_agent_turn_goes_on_while_each_of_its_actors_dies_in_every_way(
    foundry: Foundry, acme: Acme, ray_hand: RayHand, evidence: Evidence
) -> None:
    work = await Work.begin(foundry, acme, f"stream {CHUNKS} {PAUSE} {ENOUGH}\nask go on\nsay end")
    await eventually(lambda: cursor(foundry, work.session_key) > 10, timeout=90, every=0.1)
    for kind in KINDS:
        striker = Striker(work, kind, ray_hand, evidence)
        for way in WAYS:
            await striker.strike(way)
    (work.home / Path(ENOUGH).name).touch()

    async def asked() -> dict[str, Any]:
        assert (await work.see())["status"] == "needs_you"
        session = await work.call("GET", f"/sessions/{work.session}")
        found: dict[str, Any] = session["permission_requests"][0]
        return found

    permission = await eventually(asked, timeout=90, every=0.1)
    answer = f"/sessions/{work.session}/permissions/{permission['id']}"
    await work.call("POST", answer, {"option_id": "allow"})

    await work.finished()
    compared = await work.check_complete()
    *chunks, outcome, end = said(await work.transcript())
    assert (outcome, end) == ("outcome allow", "end")
    assert len(chunks) < CHUNKS, "the agent had said everything before the last actor died"
    assert chunks == [f"chunk {number}\n" for number in range(len(chunks))]
    assert len(work.witness()) == 1
    await eventually(lambda: not work.issues(), timeout=60, every=0.2)
    evidence.add(strikes=len(KINDS) * len(WAYS), rows_after=work.rows(), **compared)


# -- replicas ------------------------------------------------------------------------------


class Sender:
    """A client that sends one message after the other, each until it is acknowledged."""

    def __init__(self, name: str, work: Work, history: History) -> None:
        self.name = name
        self.work = work
        self.history = history
        self.repeated = 0

    async def send(self, count: int) -> None:
        """Send so many messages."""
        browser = self.work.acme.browser
        path = f"/tasks/{self.work.task['id']}/sessions/{self.work.session}/messages"
        for number in range(count):
            word = f"{self.name}-{number}"
            operation = self.history.invoke(self.name, self.work.session_key, word)
            while operation.returned is None:
                try:
                    answer = await browser.http.post(
                        f"{browser.base_url}{self.work.acme.place}{path}",
                        json={"text": f"say {word}"},
                        headers={"Origin": browser.base_url, "Idempotency-Key": word},
                    )
                except httpx.TransportError:
                    self.repeated += 1
                    continue
                if answer.is_success:
                    operation.acknowledge(answer.json())
                else:
                    assert answer.status_code >= 500, answer.text
                    self.repeated += 1


async def test_replicas_die_under_requests_and_each_message_takes_effect_once_in_order(
    foundry: Foundry, acme: Acme, evidence: Evidence
) -> None:
    work = await Work.begin(foundry, acme, "say ready")
    await work.finished()
    history = History()
    senders = [Sender(f"client{number}", work, history) for number in range(3)]
    sending = [asyncio.create_task(one.send(WORDS)) for one in senders]
    killed = []

    def reached(number: int) -> bool:
        return len(history.acknowledged) >= number

    for strike in range(STRIKES):
        wanted = (strike + 1) * len(senders) * WORDS // (STRIKES + 1)
        await eventually(partial(reached, wanted), timeout=90)
        replica = next(
            record.pid
            for record in instance(foundry, sandboxes=False)
            if title(record.pid).startswith("ray::ServeReplica:api") and record.pid not in killed
        )
        os.kill(replica, signal.SIGKILL)
        killed.append(replica)
        evidence.add(replica=replica, acknowledged_then=len(history.acknowledged))
    await asyncio.gather(*sending)

    async def all_said() -> list[str]:
        assert (await work.see())["status"] == "idle"
        words = said(await work.transcript())
        assert len(words) > len(senders) * WORDS
        return words

    words = await eventually(all_said, timeout=120, every=0.5)
    history.check({work.session_key: words[1:]})
    assert len(work.witness()) == 1 + len(senders) * WORDS
    evidence.add(
        replicas_killed=killed,
        messages=len(history.acknowledged),
        sent_again=sum(one.repeated for one in senders),
        **await work.check_complete(),
    )
