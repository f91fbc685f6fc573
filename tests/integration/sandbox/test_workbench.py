"""Commands, processes and files in a real sandbox-agent."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest

from foundry_ray.core.errors import NotFound, SandboxStartFailed, TooLarge, Unavailable
from foundry_ray.integrations.sandbox_agent.client import SandboxAgentClient
from tests.helpers import eventually
from tests.integration.sandbox.conftest import Place


async def test_a_command_runs_with_its_environment_and_without_foundrys(
    client: SandboxAgentClient, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "pwd; echo $GIVEN; echo trouble >&2; exit 3"
    told = await client.run(
        ["sh", "-c", script], cwd=place.facts.work_dir, environment={"GIVEN": "yes"}
    )

    assert told.exit_code == 3
    assert told.stdout == f"{place.facts.work_dir}\nyes\n"
    assert told.stderr == "trouble\n"
    environment = await client.run(["env"], cwd="/")
    names = {line.partition("=")[0] for line in environment.stdout.splitlines()}
    assert "FOUNDRY_SANDBOX_ID" in names
    assert "PYTEST_CURRENT_TEST" not in names
    assert place.token not in environment.stdout


async def test_a_command_whose_time_is_up_is_killed_with_its_children(
    client: SandboxAgentClient,
) -> None:
    began = time.monotonic()
    told = await client.run(
        ["sh", "-c", "echo part; sleep 30; echo late"],
        cwd="/",
        timeout=timedelta(seconds=0.3),
    )

    assert told.timed_out
    assert told.exit_code is None
    assert told.stdout == "part\n"
    assert time.monotonic() - began < 5


async def test_a_command_may_be_allowed_more_than_sandbox_agents_five_minutes(
    client: SandboxAgentClient,
) -> None:
    told = await client.run(["true"], cwd="/", timeout=timedelta(minutes=50))

    assert told.exit_code == 0


async def test_long_output_is_cut_and_told_to_be(client: SandboxAgentClient) -> None:
    told = await client.run(["seq", "100000"], cwd="/", max_output=1000)

    assert told.truncated
    assert len(told.stdout) <= 1000


async def test_a_missing_directory_and_a_missing_program_are_told_apart(
    client: SandboxAgentClient,
) -> None:
    with pytest.raises(NotFound):
        await client.run(["true"], cwd="/nowhere")
    assert (await client.run(["no-such-program"], cwd="/")).exit_code == 127
    with pytest.raises(NotFound):
        await client.start_process(["no-such-program"], cwd="/")


async def test_a_process_lives_is_read_and_is_ended(client: SandboxAgentClient) -> None:
    started = await client.start_process(["sh", "-c", "echo here; exec sleep 60"], cwd="/")

    async def has_spoken() -> bool:
        return await client.process_log(started.id) == "here\n"

    await eventually(has_spoken)
    assert (await client.process(started.id)).status == "running"
    assert started.id in {process.id for process in await client.list_processes()}
    assert (await client.stop_process(started.id)).status == "exited"
    await client.delete_process(started.id)
    with pytest.raises(NotFound):
        await client.process(started.id)
    with pytest.raises(NotFound):
        await client.process_log(started.id)
    await client.delete_process(started.id)


async def test_a_running_process_is_killed_when_it_is_deleted(client: SandboxAgentClient) -> None:
    started = await client.start_process(["sleep", "60"], cwd="/")
    await client.delete_process(started.id)

    assert started.id not in {process.id for process in await client.list_processes()}
    assert not Path(f"/proc/{started.pid}/exe").exists()


async def test_files_are_written_listed_read_and_removed(
    client: SandboxAgentClient, place: Place
) -> None:
    folder = f"{place.facts.work_dir}/some/where"
    await client.make_directory(folder)
    await client.make_directory(folder)
    await client.write_file(f"{folder}/deep/file.bin", bytes(range(256)))
    entries = await client.list_directory(folder)

    assert [(entry.name, entry.kind) for entry in entries] == [("deep", "directory")]
    assert await client.read_file(f"{folder}/deep/file.bin") == bytes(range(256))
    await client.delete_path(folder)
    await client.delete_path(folder)
    with pytest.raises(NotFound):
        await client.list_directory(folder)
    with pytest.raises(NotFound):
        await client.read_file(f"{folder}/deep/file.bin")


async def test_a_file_that_is_too_large_is_refused(
    client: SandboxAgentClient, place: Place
) -> None:
    with pytest.raises(TooLarge):
        await client.write_file(f"{place.facts.work_dir}/big", b"x" * (2**21 + 1))


async def test_a_wrong_token_and_a_closed_port_are_told_apart(place: Place) -> None:
    endpoint = await place.provider.preview_endpoint(place.sandbox_id)
    async with SandboxAgentClient(endpoint.url, token="wrong", home="/") as stranger:
        with pytest.raises(SandboxStartFailed):
            await stranger.health()
    async with SandboxAgentClient("http://127.0.0.1:9", token="any", home="/") as nowhere:
        with pytest.raises(Unavailable) as caught:
            await nowhere.health()
    assert caught.value.context["sent"] is False
