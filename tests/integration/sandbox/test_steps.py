"""Steps in a sandbox whose sandbox-agent dies: whoever needs it starts it again."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from foundry_ray.actors.sandbox_instance import steps
from foundry_ray.actors.sandbox_instance.steps import SandboxTools
from foundry_ray.actors.sandbox_instance.steps import place as places
from foundry_ray.bootstrap import connect
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import SandboxStartFailed, Unavailable
from foundry_ray.providers.local import list_local
from tests.helpers import eventually
from tests.integration.sandbox.conftest import INSTANCE, Place, make_place


@dataclass
class Context:
    """What a step is given besides its tools."""

    place: Place
    key: str = "org/1/sandbox/local/b1"
    run_id: str = "run-1"
    attempt: int = 1

    async def secret(self, secret_id: str) -> SecretStr:
        assert secret_id == f"{self.key}#token"
        return SecretStr(self.place.token)


async def a_dead_one(root: Path) -> tuple[SandboxTools, dict[str, str], Any]:
    """Make a sandbox and kill its sandbox-agent."""
    tools, here, context = await a_place(root)
    [record] = list_local(root)
    assert record.pid is not None
    os.kill(record.pid, signal.SIGKILL)
    await eventually(lambda: not list_local(root)[0].is_serving)
    return tools, here, context


async def a_place(root: Path) -> tuple[SandboxTools, dict[str, str], Any]:
    """Make a sandbox."""
    place = await make_place(root)
    tools = SandboxTools(
        providers={"local": place.provider},
        connect=connect,
        instance_id=INSTANCE,
        clock=SystemClock(),
        environment={},
    )
    return tools, {"provider": "local", "sandbox_id": place.sandbox_id}, Context(place)


async def test_a_dead_sandbox_agent_is_started_again_by_the_step_that_needs_it(
    root: Path,
) -> None:
    tools, here, context = await a_dead_one(root)

    await steps.check_health.work(tools, places.Place(**here), context)

    assert list_local(root)[0].is_serving


async def test_a_prompt_does_not_start_one_that_has_no_agent_session(root: Path) -> None:
    tools, here, context = await a_dead_one(root)
    given = steps.PromptInput(
        **here, server_id="s1", agent_session_id="a1", message_id="m1", text="say no"
    )

    delivered = await steps.send_prompt.work(tools, given, context)

    assert not delivered.delivered
    assert not list_local(root)[0].is_serving


async def test_one_of_a_stopped_sandbox_stays_down(root: Path) -> None:
    tools, here, context = await a_dead_one(root)
    await tools.providers["local"].stop(here["sandbox_id"])

    with pytest.raises(SandboxStartFailed):
        await steps.check_health.work(tools, places.Place(**here), context)


async def test_a_clone_that_died_with_its_sandbox_agent_is_lost_and_not_failed(
    root: Path,
) -> None:
    tools, here, context = await a_dead_one(root)

    watched = await steps.watch_clone.work(tools, steps.WatchInput(**here, process_id="1"), context)

    assert watched.lost


def git(*arguments: str, cwd: Path) -> str:
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout


def fetched(place: Place, tmp_path: Path) -> Path:
    """Fetch a repository into the work tree, and check nothing out."""
    origin, work = tmp_path / "origin", Path(place.facts.work_dir)
    origin.mkdir()
    git("init", "--quiet", "--initial-branch", "main", cwd=origin)
    (origin / "hello.txt").write_text("hello")
    git("add", "--all", cwd=origin)
    git("commit", "--quiet", "--message", "first", cwd=origin)
    git("init", "--quiet", cwd=work)
    git("remote", "add", "origin", str(origin), cwd=work)
    git("fetch", "--quiet", "origin", cwd=work)
    return work


async def test_a_checkout_that_was_broken_off_is_done_again(root: Path, tmp_path: Path) -> None:
    tools, here, context = await a_place(root)
    work = fetched(context.place, tmp_path)
    given = steps.CheckoutInput(
        **here, work_dir=str(work), branch="mine", base_branch="main", author_name="Ann",
        author_email="ann@example.org",
    )  # fmt: skip
    (work / "hello.txt").write_text("hel")  # git writes the files first
    (work / ".git" / "index.lock").touch()

    with pytest.raises(Unavailable):  # perhaps a git of an earlier attempt still works
        await steps.check_out.work(tools, given, context)
    context.attempt = 5
    await steps.check_out.work(tools, given, context)

    assert git("status", "--porcelain", "--branch", cwd=work) == "## mine\n"


async def test_a_comparison_that_was_broken_off_is_not_in_the_way_of_the_next(
    root: Path, tmp_path: Path
) -> None:
    tools, here, context = await a_place(root)
    work = fetched(context.place, tmp_path)
    git("checkout", "--quiet", "-b", "mine", "origin/main", cwd=work)
    (work / "new.txt").write_text("new")
    given = steps.ChangesInput(
        **here, home=context.place.facts.home, work_dir=str(work), branch="mine", base_branch="main"
    )
    left = context.place.folder / "changes-run-1-1.index.lock"
    left.touch()

    with pytest.raises(Unavailable):
        await steps.read_changes.work(tools, given, context)
    context.attempt = 2
    read = await steps.read_changes.work(tools, given, context)

    assert [(file.status, file.path) for file in read.changes.files] == [("added", "new.txt")]
    assert list(context.place.folder.glob("*.index")) == []
