"""Agents behind the shim, in a real sandbox-agent, with the scripted agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_ray.core.errors import (
    AgentExited,
    AgentMissing,
    AgentRefused,
    InvalidInput,
    NotFound,
    TooLarge,
    Unavailable,
)
from foundry_ray.core.ids import new_id
from foundry_ray.integrations.sandbox_agent import agents
from foundry_ray.integrations.sandbox_agent.base import AGENT_SLOTS, JournalRecord
from foundry_ray.integrations.sandbox_agent.client import SandboxAgentClient
from foundry_ray.providers.local import list_local
from tests.helpers import eventually
from tests.integration.sandbox.conftest import Place, make_place

PATIENCE = 15.0  # seconds


def text(words: str) -> list[dict[str, Any]]:
    """Return a prompt of one text block."""
    return [{"type": "text", "text": words}]


async def begin(client: SandboxAgentClient, server_id: str, place: Place) -> str:
    """Open the scripted agent and a session; return the session's id."""
    await client.open_agent(server_id, "scripted")
    return (await client.new_session(server_id, place.facts.work_dir)).session_id


async def follow_until(
    client: SandboxAgentClient,
    server_id: str,
    is_last: Callable[[JournalRecord], bool],
    from_seq: int = 1,
) -> list[JournalRecord]:
    """Return what is told up to the first record that *is_last*."""
    found: list[JournalRecord] = []
    async with (
        asyncio.timeout(PATIENCE),
        contextlib.aclosing(client.follow(server_id, from_seq)) as batches,
    ):
        async for batch in batches:
            for record in batch:
                found.append(record)
                if is_last(record):
                    return found
    raise AssertionError("the stream ended")


def end_of(message_id: str) -> Callable[[JournalRecord], bool]:
    """Return a check for the end of a message's turn."""
    return lambda record: record.direction == "end" and record.message_id == message_id


def said(records: list[JournalRecord]) -> list[str]:
    """Return the texts of the agent's messages."""
    updates = [
        record.payload["params"]["update"]
        for record in records
        if record.direction == "out" and record.payload.get("method") == "session/update"
    ]
    return [
        update["content"]["text"]
        for update in updates
        if update["sessionUpdate"] == "agent_message_chunk"
    ]


def asked(record: JournalRecord) -> bool:
    """Return whether the agent asks for permission."""
    return record.payload.get("method") == "session/request_permission"


async def test_a_prompt_streams_in_order_and_ends(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session = await begin(client, server_id, place)
    follower = asyncio.create_task(follow_until(client, server_id, end_of("m1")))
    await client.prompt(server_id, session, "m1", text("say one\nstream 5 10\nsay two"))
    records = await follower

    assert said(records) == ["one", *(f"chunk {number}\n" for number in range(5)), "two"]
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    assert records[-1].payload == {"stop_reason": "end_turn"}
    assert await client.journal(server_id, 1) == records


async def test_opening_and_loading_again_is_harmless(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session = await begin(client, server_id, place)
    before = await client.journal(server_id, 1)
    can_load = await client.open_agent(server_id, "scripted")
    loaded = await client.load_session(server_id, session, place.facts.work_dir)

    assert can_load
    assert loaded.session_id == session
    assert loaded.modes is not None
    assert loaded.modes["currentModeId"] == "default"
    assert await client.journal(server_id, 1) == before


async def test_a_mode_is_set_and_known_when_the_session_is_loaded(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session = await begin(client, server_id, place)
    await client.set_mode(server_id, session, "plan")
    loaded = await client.load_session(server_id, session, place.facts.work_dir)

    assert loaded.modes is not None
    assert loaded.modes["currentModeId"] == "plan"
    with pytest.raises(AgentRefused):
        await client.set_mode(server_id, session, "no such mode")


async def test_the_same_message_twice_reaches_the_agent_once(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session, message_id = await begin(client, server_id, place), new_id()
    await asyncio.gather(
        *(client.prompt(server_id, session, message_id, text("say hi")) for _ in range(3))
    )
    await follow_until(client, server_id, end_of(message_id))
    await client.prompt(server_id, session, message_id, text("say hi"))

    assert place.witnessed().count(message_id) == 1


async def test_a_burst_of_3000_chunks_is_told_completely(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session = await begin(client, server_id, place)
    follower = asyncio.create_task(follow_until(client, server_id, end_of("m1")))
    await client.prompt(server_id, session, "m1", text("stream 3000 0"))
    records = await follower
    later = await follow_until(client, server_id, end_of("m1"), from_seq=2000)

    assert said(records) == [f"chunk {number}\n" for number in range(3000)]
    assert later == records[1999:]
    assert await client.journal(server_id, 2500, limit=10) == records[2499:2509]


async def test_a_turn_is_cancelled(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session, message_id = await begin(client, server_id, place), new_id()
    await client.prompt(server_id, session, message_id, text("say working\nhang"))
    await eventually(lambda: message_id in place.witnessed())
    await client.cancel(server_id, session)
    records = await follow_until(client, server_id, end_of(message_id))

    assert records[-1].payload == {"stop_reason": "cancelled"}


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"outcome": "selected", "optionId": "allow"}, "outcome allow"),
        ({"outcome": "selected", "optionId": "reject"}, "outcome reject"),
        ({"outcome": "cancelled"}, "outcome cancelled"),
    ],
)
async def test_a_question_is_answered(
    client: SandboxAgentClient,
    place: Place,
    server_id: str,
    outcome: dict[str, str],
    words: str,
) -> None:
    session = await begin(client, server_id, place)
    await client.prompt(server_id, session, "m1", text("ask May I?"))
    question = (await follow_until(client, server_id, asked))[-1].payload
    for _ in range(2):
        await client.answer(server_id, question["id"], {"outcome": outcome})
    records = await follow_until(client, server_id, end_of("m1"))

    assert said(records) == [words]


async def test_an_error_of_the_agent_ends_the_turn(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session = await begin(client, server_id, place)
    await client.prompt(server_id, session, "m1", text("fail no model"))
    records = await follow_until(client, server_id, end_of("m1"))

    assert records[-1].payload["error"]["code"] == "agent_error"
    assert records[-1].payload["error"]["message"] == "no model"


async def test_the_agent_writes_runs_and_commits(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session = await begin(client, server_id, place)
    work = Path(place.facts.work_dir)
    subprocess.run(["git", "init", "--quiet", str(work)], check=True)
    lines = "write a/b.txt some words\nrun cat a/b.txt\ncommit add b\ntool Think"
    await client.prompt(server_id, session, "m1", text(lines))
    records = await follow_until(client, server_id, end_of("m1"))

    assert records[-1].payload == {"stop_reason": "end_turn"}
    log = subprocess.run(
        ["git", "-C", str(work), "log", "--format=%s", "--stat"], capture_output=True, text=True
    )
    assert "add b" in log.stdout
    assert "a/b.txt" in log.stdout
    assert "some words\\n\\nexit code 0" in str([record.payload for record in records])


async def test_an_agent_that_exits_ends_the_turn_and_the_session_goes_on(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session, work = await begin(client, server_id, place), place.facts.work_dir
    await client.prompt(server_id, session, "m1", text("exit 7"))
    records = await follow_until(client, server_id, end_of("m1"))
    with pytest.raises(AgentExited):
        await client.prompt(server_id, session, "m2", text("say again"))
    await client.open_agent(server_id, "scripted")
    await client.load_session(server_id, session, work)
    await client.prompt(server_id, session, "m2", text("say again"))
    records += await follow_until(client, server_id, end_of("m2"), records[-1].seq + 1)

    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    error = next(record for record in records if end_of("m1")(record)).payload["error"]
    assert (error["code"], error["exit_code"]) == ("agent_exited", 7)
    assert said(records) == ["again"]
    replayed = [record for record in records if record.payload.get("event") == "replayed"]
    assert len(replayed) == 1  # the session's past is a note, not something new


async def test_an_agent_that_exits_while_a_session_opens_says_why(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    await client.open_agent(server_id, "scripted")
    marker = place.folder / "exit-on-new-session"
    marker.touch()
    with pytest.raises(AgentExited) as caught:
        await client.new_session(server_id, place.facts.work_dir)
    marker.unlink()

    assert caught.value.context["exit_code"] == 7
    assert "told to exit" in caught.value.context["stderr"]
    await client.open_agent(server_id, "scripted")
    assert (await client.new_session(server_id, place.facts.work_dir)).session_id


async def test_a_session_that_nobody_knows_cannot_be_loaded(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    await client.open_agent(server_id, "scripted")
    with pytest.raises(NotFound):
        await client.load_session(server_id, "unknown", place.facts.work_dir)


async def test_agents_that_are_not_there_are_told_apart(
    client: SandboxAgentClient, server_id: str
) -> None:
    with pytest.raises(AgentMissing):
        await client.open_agent(server_id, "claude")
    with pytest.raises(InvalidInput):
        await client.open_agent(server_id, "nobody")
    with pytest.raises(AgentExited):
        await client.new_session(server_id, "/")
    with pytest.raises(AgentExited):
        await follow_until(client, server_id, end_of("m1"))
    assert await client.journal(server_id, 1) == []


async def test_a_launcher_that_ends_at_once_is_a_missing_agent(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    launcher = Path(place.facts.home, ".local/share/sandbox-agent/bin/agent_processes/pi-acp")
    launcher.write_text("#!/bin/sh\nexec /nowhere/python\n")
    launcher.chmod(0o755)
    slots = {**AGENT_SLOTS, "broken": "pi"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents, "AGENT_SLOTS", slots)
        with pytest.raises(AgentMissing):
            await client.open_agent(server_id, "broken")


async def test_a_prompt_that_is_too_large_is_refused(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session = await begin(client, server_id, place)
    with pytest.raises(TooLarge):
        await client.prompt(server_id, session, "m1", text("x" * 2**21))


async def test_a_closed_agent_ends_its_turn_and_its_followers(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session, message_id = await begin(client, server_id, place), new_id()
    await client.prompt(server_id, session, message_id, text("hang"))
    follower = asyncio.create_task(follow_until(client, server_id, lambda _: False))
    await eventually(lambda: message_id in place.witnessed())
    await client.close_agent(server_id)
    with pytest.raises(AgentExited):
        await follower

    async def ended() -> bool:
        return any(end_of(message_id)(record) for record in await client.journal(server_id, 1))

    await eventually(ended)
    await client.close_agent(server_id)


async def test_a_killed_shim_ends_the_turn_and_is_opened_again(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    session, message_id = await begin(client, server_id, place), new_id()
    await client.prompt(server_id, session, message_id, text("hang"))
    await eventually(lambda: message_id in place.witnessed())
    follower = asyncio.create_task(follow_until(client, server_id, lambda _: False))
    os.kill(_shim_of(place, server_id), signal.SIGKILL)
    with pytest.raises(AgentExited):
        await follower
    await client.open_agent(server_id, "scripted")
    await client.load_session(server_id, session, place.facts.work_dir)
    await client.prompt(server_id, session, message_id, text("hang"))
    records = await client.journal(server_id, 1)

    end = next(record for record in records if end_of(message_id)(record))
    assert end.payload["error"]["code"] == "agent_exited"
    assert place.witnessed().count(message_id) == 1


async def test_after_a_crash_of_sandbox_agent_no_prompt_is_given_twice(root: Path) -> None:
    place, message_id = await make_place(root), new_id()
    async with await place.client() as client:
        session = await begin(client, "agent", place)
        await client.prompt("agent", session, message_id, text("say before\nhang"))
        await follow_until(client, "agent", lambda record: said([record]) == ["before"])
        follower = asyncio.create_task(follow_until(client, "agent", lambda _: False))
        record = list_local(root)[0]
        assert record.pid is not None
        os.kill(record.pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            await follower
        with pytest.raises(Unavailable):
            await client.health()

    await place.provider.start_sandbox_agent(place.sandbox_id, place.token)
    async with await place.client() as client:
        await client.open_agent("agent", "scripted")
        await client.load_session("agent", session, place.facts.work_dir)
        await client.prompt("agent", session, message_id, text("say before\nhang"))
        await client.prompt("agent", session, "next", text("say after"))
        records = await follow_until(client, "agent", end_of("next"))

    end = next(record for record in records if end_of(message_id)(record))
    assert end.payload["error"]["code"] == "agent_exited"
    assert place.witnessed() == [message_id, "next"]
    assert said(records) == ["before", "after"]
    assert [record.seq for record in records] == list(range(1, len(records) + 1))


def _shim_of(place: Place, server_id: str) -> int:
    """Return the process that holds the lock of a journal."""
    lock = place.folder / "journal" / server_id / ".lock"
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                if descriptor.readlink() == lock:
                    return int(process.name)
    raise AssertionError("nobody holds the journal")
