"""Local sandboxes, as far as no sandbox-agent is needed."""

from __future__ import annotations

import asyncio
import platform
from pathlib import Path

import pytest

from foundry_ray.core.errors import (
    InvalidInput,
    ProviderUnavailable,
    SandboxAgentMissing,
    SandboxGone,
)
from foundry_ray.providers import local_files
from foundry_ray.providers.base import SandboxSpec
from foundry_ray.providers.local import LocalProvider, end_all, find_binary, list_local
from foundry_ray.providers.local_files import locked, remove, write
from foundry_ray.providers.registry import ProviderRegistry


def program(path: Path, mode: int = 0o755) -> Path:
    """Make a file that looks like a program."""
    write(path, b"#!/bin/sh\n", mode)
    return path


def spec(**changes: object) -> SandboxSpec:
    """Return what is asked for."""
    return SandboxSpec.model_validate({"sandbox_id": "s1", "instance_id": "i1", **changes})


def test_the_program_is_the_one_named_else_the_projects_else_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]
    package = f".tools/node_modules/@sandbox-agent/cli-linux-{arch}/bin/sandbox-agent"
    on_path = program(tmp_path / "bin/sandbox-agent")
    monkeypatch.setenv("PATH", str(on_path.parent))
    project = tmp_path / "project"

    assert find_binary(None, project) == on_path
    fetched = program(project / package, 0o644)
    assert find_binary(None, project) == on_path  # not executable, so not usable
    fetched.chmod(0o755)
    assert find_binary(None, project) == fetched
    named = program(tmp_path / "named")
    assert find_binary(named, project) == named
    with pytest.raises(SandboxAgentMissing) as caught:
        find_binary(tmp_path / "missing", project)
    assert "npm install" in caught.value.hint


async def test_creating_twice_keeps_the_work_and_renews_the_rest(tmp_path: Path) -> None:
    files = {"some/file": (b"one", 0o644)}
    first = LocalProvider(tmp_path, instance_id="i1", files=files)
    facts = await first.create(spec(labels={"task": "t"}))
    Path(facts.work_dir, "mine").write_text("work")
    second = LocalProvider(tmp_path, instance_id="i1", files={"some/file": (b"two", 0o600)})
    again = await second.create(spec(environment={"KEY": "v"}))

    assert again == facts
    assert facts.state == "started"
    assert Path(facts.work_dir, "mine").read_text() == "work"
    assert Path(facts.home, "some/file").read_bytes() == b"two"
    assert [record.sandbox_id for record in list_local(tmp_path)] == ["s1"]


async def test_a_sandbox_that_is_not_there_is_gone(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path / "none", instance_id="i1")
    for call in (provider.get, provider.start, provider.preview_endpoint):
        with pytest.raises(SandboxGone):
            await call("s1")
    with pytest.raises(SandboxGone):
        await provider.start_sandbox_agent("s1", "token")
    await provider.stop("s1")
    await provider.delete("s1")
    assert list_local(tmp_path / "none") == await end_all(tmp_path / "none") == []


async def test_what_an_interrupted_creation_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "s1" / "home").mkdir(parents=True)
    await LocalProvider(tmp_path, instance_id="i1").delete("s1")

    assert not (tmp_path / "s1").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 200])
async def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    provider = LocalProvider(tmp_path, instance_id="i1")
    with pytest.raises(InvalidInput):
        await provider.create(spec(sandbox_id=name))


async def test_only_one_works_on_a_sandbox_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    async def work(name: str) -> None:
        async with locked(tmp_path):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    await asyncio.gather(work("a"), work("b"), work("c"))

    assert [entry.split()[1] for entry in order] == ["in", "out"] * 3
    monkeypatch.setattr(local_files, "LOCK_PATIENCE", 0.05)
    async with locked(tmp_path):
        with pytest.raises(ProviderUnavailable):
            await work("d")


def test_a_read_only_tree_is_removed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write(tree / "a/b/file", b"x", 0o400)
    (tree / "a/link").symlink_to("/etc/hostname")
    (tree / "a/b").chmod(0o500)
    (tree / "a").chmod(0o500)
    remove(tree)

    assert not tree.exists()


def test_a_registry_finds_by_name_and_its_first_is_the_default(tmp_path: Path) -> None:
    local = LocalProvider(tmp_path, instance_id="i1")
    registry = ProviderRegistry([local])

    assert registry.get("local") is local
    assert (registry.default, registry.names) == ("local", ["local"])
    with pytest.raises(InvalidInput):
        registry.get("moon")
    with pytest.raises(ValueError, match="at least one"):
        ProviderRegistry([])
