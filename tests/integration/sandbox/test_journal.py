"""Reading journals through the file API of a real sandbox-agent."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from foundry_ray.integrations.sandbox_agent.client import SandboxAgentClient
from foundry_ray.integrations.sandbox_agent.install import install
from tests.integration.sandbox.conftest import Place


def line(seq: int, text: str = "x") -> str:
    """Return a record as the shim writes it."""
    payload = {"text": text}
    record = {"seq": seq, "at_ms": 1, "direction": "out", "message_id": None, "payload": payload}
    return json.dumps(record) + "\n"


def write(place: Place, server_id: str, segments: dict[int, str]) -> None:
    """Write segments into a journal."""
    folder = place.folder / "journal" / server_id
    folder.mkdir(parents=True)
    for first, content in segments.items():
        (folder / f"{first:08d}.jsonl").write_text(content)


async def test_records_are_read_from_any_number_across_segments(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    segments = {first: "".join(line(seq) for seq in range(first, first + 3)) for first in (1, 4, 7)}
    write(place, server_id, segments)

    for from_seq in range(1, 12):
        found = await client.journal(server_id, from_seq)
        assert [record.seq for record in found] == list(range(from_seq, 10))
    assert [record.seq for record in await client.journal(server_id, 3, limit=3)] == [3, 4, 5]


async def test_a_line_that_is_still_being_written_is_not_read(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    write(place, server_id, {1: line(1) + line(2)[:-9]})

    assert [record.seq for record in await client.journal(server_id, 1)] == [1]


async def test_characters_that_no_database_takes_are_replaced(
    client: SandboxAgentClient, place: Place, server_id: str
) -> None:
    write(place, server_id, {1: line(1, "a\0b \ud83d c \N{PILE OF POO}")})

    found = await client.journal(server_id, 1)
    assert found[0].payload == {"text": "a\ufffdb \ufffd c \N{PILE OF POO}"}


async def test_files_are_installed_through_sandbox_agent(
    client: SandboxAgentClient, place: Place
) -> None:
    home = place.facts.home
    await install(client, home, {"some/program": (b"#!/bin/sh\n", 0o755), "text": (b"t", 0o644)})

    program = Path(home, "some/program")
    assert program.read_bytes() == b"#!/bin/sh\n"
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
