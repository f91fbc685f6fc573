"""Local sandboxes with a real sandbox-agent process each."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from foundry_ray.core.errors import (
    ProviderUnavailable,
    SandboxAgentMissing,
    SandboxGone,
    SandboxStartFailed,
)
from foundry_ray.providers import local_server
from foundry_ray.providers.base import SandboxSpec
from foundry_ray.providers.local import LocalProvider, end_all, find_binary, list_local
from foundry_ray.providers.processes import Mark, members
from tests.helpers import eventually
from tests.integration.sandbox import gateway
from tests.integration.sandbox.conftest import INSTANCE, make_place, provider_at


async def test_a_provider_made_anew_adopts_what_runs(root: Path) -> None:
    place = await make_place(root)
    before = list_local(root)[0]
    other = provider_at(root)
    await other.create(SandboxSpec(sandbox_id=place.sandbox_id, instance_id=INSTANCE))
    await asyncio.gather(
        *(other.start_sandbox_agent(place.sandbox_id, place.token) for _ in range(3))
    )

    assert before.is_serving
    assert list_local(root) == [before]
    assert place.token not in (root / place.sandbox_id / "sandbox.json").read_text()


async def test_another_token_replaces_what_runs(root: Path) -> None:
    place = await make_place(root)
    before = list_local(root)[0]
    await place.provider.start_sandbox_agent(place.sandbox_id, "another")
    place.token = "another"
    async with await place.client() as client:
        await client.health()

    assert not before.is_serving


async def test_stopping_leaves_no_process_and_every_file(root: Path) -> None:
    place = await make_place(root)
    stubborn = "trap '' TERM; while true; do sleep 1; done"
    async with await place.client() as client:
        await client.write_file(f"{place.facts.work_dir}/kept", b"kept")
        await client.open_agent("agent", "scripted")
        await client.start_process(["setsid", "sh", "-c", stubborn], cwd="/")
    mark = list_local(root)[0].mark
    await eventually(lambda: len(members(mark)) >= 5)
    began = time.monotonic()
    await place.provider.stop(place.sandbox_id)

    assert time.monotonic() - began < 3
    assert members(mark) == set()
    assert (await place.provider.get(place.sandbox_id)).state == "stopped"
    with pytest.raises(SandboxStartFailed):
        await place.provider.preview_endpoint(place.sandbox_id)
    with pytest.raises(SandboxStartFailed):
        await place.provider.start_sandbox_agent(place.sandbox_id, place.token)
    await place.provider.stop(place.sandbox_id)
    assert (await place.provider.start(place.sandbox_id)).state == "started"
    await place.provider.start_sandbox_agent(place.sandbox_id, place.token)
    async with await place.client() as client:
        assert await client.read_file(f"{place.facts.work_dir}/kept") == b"kept"
    await place.provider.delete(place.sandbox_id)
    await place.provider.delete(place.sandbox_id)
    with pytest.raises(SandboxGone):
        await place.provider.get(place.sandbox_id)


async def test_down_ends_every_sandbox_and_up_serves_them_again(root: Path) -> None:
    places = [await make_place(root), await make_place(root)]
    ended = await end_all(root)

    assert {record.sandbox_id for record in ended} == {place.sandbox_id for place in places}
    assert not any(record.is_serving for record in list_local(root))
    assert await end_all(root) == []
    await places[0].provider.start_sandbox_agent(places[0].sandbox_id, places[0].token)
    async with await places[0].client() as client:
        await client.health()


async def test_it_outlives_who_started_it_and_is_nobodys_child(root: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from tests.integration.sandbox.conftest import make_place\n"
        "place = asyncio.run(make_place(Path(sys.argv[1])))\n"
        "print(place.sandbox_id, place.token)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(root)),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    output, _ = await process.communicate()
    sandbox_id, token = output.decode().split()[-2:]
    record = list_local(root)[0]
    await provider_at(root).start_sandbox_agent(sandbox_id, token)

    assert record.is_serving
    assert list_local(root) == [record]
    assert record.pid is not None
    assert os.getsid(record.pid) != process.pid
    assert os.getpriority(os.PRIO_PROCESS, record.pid) == 0
    assert Path(f"/proc/{record.pid}/oom_score_adj").read_text() == "0\n"


async def test_a_killed_sandbox_agent_is_noticed_and_started_again(root: Path) -> None:
    place = await make_place(root)
    pid = list_local(root)[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not list_local(root)[0].is_serving)
    with pytest.raises(SandboxStartFailed):
        await place.provider.preview_endpoint(place.sandbox_id)
    await place.provider.start_sandbox_agent(place.sandbox_id, place.token)
    async with await place.client() as client:
        await client.health()


async def test_what_the_agents_need_reaches_them_and_is_readable_by_the_owner_only(
    root: Path,
) -> None:
    place = await make_place(root)
    spec = SandboxSpec(
        sandbox_id=place.sandbox_id, instance_id=INSTANCE, environment={"MODEL_KEY": "k"}
    )
    await place.provider.create(spec)
    await place.provider.start_sandbox_agent(place.sandbox_id, "new")
    place.token = "new"
    async with await place.client() as client:
        told = await client.run(["sh", "-c", "echo $MODEL_KEY"], cwd="/")

    assert told.stdout == "k\n"
    folder = root / place.sandbox_id
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("environment.json", "sandbox.json"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600


async def test_a_program_that_ends_at_once_tells_its_last_words(root: Path, tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho cannot work here >&2\nexit 1\n")
    program.chmod(0o755)
    provider = LocalProvider(root, instance_id=INSTANCE, binary=program)
    await provider.create(SandboxSpec(sandbox_id="s1", instance_id=INSTANCE))
    with pytest.raises(SandboxStartFailed) as caught:
        await provider.start_sandbox_agent("s1", "token")

    assert "cannot work here" in caught.value.context["log_tail"]
    assert members(Mark("s1", INSTANCE)) == set()


async def test_an_answer_of_503_is_no_failed_start_and_what_runs_is_adopted(
    root: Path, tmp_path: Path
) -> None:
    program = gateway.put(tmp_path / "gateway", find_binary())
    away = program.parent / "away"
    away.touch()
    provider = LocalProvider(root, instance_id=INSTANCE, binary=program)
    await provider.create(SandboxSpec(sandbox_id="s1", instance_id=INSTANCE))
    for _ in range(2):
        with pytest.raises(ProviderUnavailable) as caught:
            await provider.start_sandbox_agent("s1", "token")
        assert caught.value.retryable
        assert caught.value.context["status"] == 503
    pid = list_local(root)[0].pid
    away.unlink()

    async def adopted() -> bool:
        await provider.start_sandbox_agent("s1", "token")
        return True

    await eventually(adopted)
    assert list_local(root)[0].pid == pid
    await provider.delete("s1")


async def test_a_program_that_says_nothing_is_tried_again_later(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "_START_PATIENCE", 0.3)
    program = tmp_path / "silent"
    program.write_text("#!/bin/sh\necho thinking >&2\nexec sleep 600\n")
    program.chmod(0o755)
    provider = LocalProvider(root, instance_id=INSTANCE, binary=program)
    await provider.create(SandboxSpec(sandbox_id="s1", instance_id=INSTANCE))
    with pytest.raises(ProviderUnavailable) as caught:
        await provider.start_sandbox_agent("s1", "token")

    assert caught.value.retryable
    assert "thinking" in caught.value.context["log_tail"]
    assert members(Mark("s1", INSTANCE)) == set()


async def test_a_missing_program_is_told_with_the_way_to_get_it(root: Path) -> None:
    provider = LocalProvider(root, instance_id=INSTANCE, binary=Path("/nowhere/sandbox-agent"))
    await provider.create(SandboxSpec(sandbox_id="s1", instance_id=INSTANCE))
    with pytest.raises(SandboxAgentMissing) as caught:
        await provider.start_sandbox_agent("s1", "token")

    assert "/nowhere/sandbox-agent" in caught.value.message
    assert "make setup" in caught.value.hint
