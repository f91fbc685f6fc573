"""A Foundry of its own for each proof, and the evidence that is printed at the end.

The report stays in a file as well, which the last heading names.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_ray.cli.demo.client import Browser
from foundry_ray.runtime.points import POINTS
from tests.durability.outside import adopt_orphans
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually

REPORT = pytest.StashKey[Path]()
# Nobody else may mount a file system, or make a network namespace.
collect_ignore = [] if os.geteuid() == 0 else ["test_cut_off.py", "test_full_disk.py"]


def pytest_configure(config: pytest.Config) -> None:
    folder = Path(tempfile.mkdtemp(prefix="foundry-evidence-"))
    config.stash[REPORT] = folder / "evidence.jsonl"
    config.stash[REPORT].touch()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for left_out in collect_ignore:
        terminalreporter.write_line(f"{left_out} was left out: it needs root")
    lines = config.stash[REPORT].read_text().splitlines()
    died = Counter(
        fact["point"]
        for fact in map(json.loads, lines)
        if "point" in fact and fact.get("exit") == -signal.SIGKILL
    )
    if died:
        terminalreporter.section("crash points, and how often a process was killed there")
        for point in POINTS:
            terminalreporter.write_line(f"{point:<16} {died[point]:>3}")
    if lines:
        terminalreporter.section(f"evidence ({config.stash[REPORT]})")
        for line in lines:
            terminalreporter.write_line(line)


class Evidence:
    """Writes down what a test saw."""

    def __init__(self, path: Path, test: str) -> None:
        self._path = path
        self._test = test

    def add(self, **facts: Any) -> None:
        """Append one line."""
        with self._path.open("a") as report:
            report.write(json.dumps({"test": self._test, **facts}, default=str) + "\n")


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Evidence:
    """Where this test writes down what it saw."""
    return Evidence(request.config.stash[REPORT], request.node.name)


@pytest.fixture(scope="session")
def orphans() -> None:
    """Let the kernel tell us of what the killed processes leave."""
    adopt_orphans()


@contextlib.contextmanager
def running() -> Iterator[Foundry]:
    """A Foundry on a data directory of its own, up with its local GitHub."""
    folder = Path(tempfile.mkdtemp(prefix="foundry-dur-"))
    folder.chmod(0o711)
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    made = Foundry(data_dir)
    try:
        made.cli("up", "--demo", "--detach")
        yield made
    finally:
        made.destroy()
        shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def enter(foundry: Foundry) -> AsyncIterator[Acme]:
    """Sign in as the owner of the sample organization."""
    async with Browser(foundry.settings.public_url) as browser:
        await browser.sign_in("ada")
        app = await browser.call("GET", "/api/app")
        organization = next(o["id"] for o in app["organizations"] if o["login"] == "acme")

        async def repository() -> str | None:
            answer = await browser.call("GET", f"/api/organizations/{organization}/repositories")
            found = [r["id"] for r in answer["items"] if r["full_name"] == "acme/demo"]
            return found[0] if found else None

        yield Acme(browser, organization, str(await eventually(repository, timeout=60)))
