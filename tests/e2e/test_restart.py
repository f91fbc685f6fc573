"""`up` twice, `down`, `up`: one Foundry per data directory, and everything is there again."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from foundry_ray.cli.demo.client import Browser
from foundry_ray.core.processes import look_at
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually


@pytest.fixture
def own() -> Iterator[Foundry]:
    folder = Path(tempfile.mkdtemp(prefix="foundry-restart-"))
    folder.chmod(0o711)
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    running = Foundry(data_dir)
    yield running
    running.destroy()
    shutil.rmtree(folder)


async def test_up_twice_changes_nothing_and_down_up_brings_everything_back(own: Foundry) -> None:
    own.cli("up", "--demo", "--detach")
    before = own.status()
    again = own.cli("up", "--demo")
    assert "runs already" in again
    same = {p["pid"] for p in before["processes"]} & {p["pid"] for p in own.status()["processes"]}
    assert {p["pid"] for p in before["processes"] if "sandbox" not in p["name"]} <= same

    async with Browser(own.settings.public_url) as ada:
        await ada.sign_in("ada")
        app = await ada.call("GET", "/api/app")
        organization = next(o["id"] for o in app["organizations"] if o["login"] == "acme")

        async def repository() -> str | None:
            answer = await ada.call("GET", f"/api/organizations/{organization}/repositories")
            return answer["items"][0]["id"] if answer["items"] else None

        acme = Acme(ada, organization, await eventually(repository, timeout=30))
        task = await acme.create("say before\nwrite kept.txt kept")
        await acme.settled(task["id"])

        recorded = own.status()["processes"]
        assert any("sandbox" in process["name"] for process in recorded)
        own.cli("down")
        after = own.status()
        assert after["state"] == "down"
        log = (own.data_dir / "logs" / "foundry.log").read_text()
        asked = re.findall(r"(\d+) of (\d+) activations let go", log)
        assert asked, log
        assert asked[-1][0] == asked[-1][1], "a drain finishes turns and releases entities"
        assert {p["state"] for p in after["processes"]} == {"gone"}
        assert after["processes"], "what ran is still named when it is gone"
        assert [p for p in recorded if _same(p)] == []

        own.cli("up", "--demo", "--detach")
        seen = await acme.call("GET", f"/tasks/{task['id']}")  # the session still counts
        assert seen["status"] == "ready"
        session = f"/tasks/{task['id']}/sessions/{task['active_session_id']}"
        await acme.call("POST", f"{session}/messages", {"text": "run cat kept.txt\nsay after"})

        async def answered() -> bool:
            return "after" in await acme.said(task)

        await eventually(answered, timeout=40, every=0.2)
        assert "before" in await acme.said(task)
        assert json.loads(own.cli("issues", "ls", "--json"))["items"] == []


def _same(process: dict[str, object]) -> bool:
    """Return whether a pid still belongs to the process that was seen, and not to a newer one."""
    now = look_at(int(str(process["pid"])))
    then = datetime.fromisoformat(str(process["started_at"]))
    return now is not None and abs(now.started_at - then) < timedelta(seconds=1)
