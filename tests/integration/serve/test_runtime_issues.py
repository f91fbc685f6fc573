"""A cause that stops work is one incident: seen at once, cleared by people, kept in the records."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from foundry_ray.core import keys
from foundry_ray.core.clock import SystemClock
from foundry_ray.serve import models
from tests.helpers import eventually
from tests.integration.cli.conftest import Operator
from tests.integration.serve.world import Acme, Stream, World

pytestmark = pytest.mark.asyncio(loop_scope="package")

AT_ONCE = timedelta(seconds=1)
CODE = "sandbox_agent_missing"


async def issues(acme: Acme) -> list[models.RuntimeIssue]:
    seen = await acme.ada.get(f"{acme.place}/runtime-issues")
    return models.Items[models.RuntimeIssue].model_validate(seen).items


async def failed(acme: Acme, title: str) -> dict[str, Any]:
    """Make a task whose sandbox cannot begin, and return it when everybody sees that."""
    task = await acme.create("say x", title=title)
    acme.host_sandbox(task)

    async def affected() -> bool:
        found = [one for one in await issues(acme) if one.code == CODE and not one.resolved_at]
        return any(who.id == task["id"] for one in found for who in one.affected)

    await eventually(affected)
    return task


class Seen:
    """What a watcher of the organization knows after each update."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.issues: dict[str, dict[str, Any]] = {}
        self.badge: dict[str, Any] = {}

    async def until(self, check: Callable[[], bool]) -> None:
        while not check():
            update = await self._stream.until("update")
            for one in update["items"]:
                if one["kind"] == "runtime_issue":
                    self.issues[one["id"]] = one["data"]
                elif one["kind"] == "runtime":
                    self.badge = one["data"]
            for one in update["removed"]:
                self.issues.pop(one["id"], None)

    def affected(self) -> set[str]:
        return {who["id"] for issue in self.issues.values() for who in issue["affected"]}


async def records(acme: Acme, kind: str, task: dict[str, Any]) -> list[dict[str, Any]]:
    page = await acme.ada.get(f"{acme.place}/history?task={task['id']}&limit=100")
    return [one for one in page["items"] if one["kind"] == kind]


async def audit(world: World, root: str) -> list[dict[str, Any]]:
    return await world.fetch("SELECT * FROM rt_audit WHERE actor_key = %s ORDER BY id", (root,))


@pytest_asyncio.fixture(loop_scope="package")
async def none(acme: Acme) -> None:
    """Every test begins without issues."""
    cleared = await acme.ada.call("DELETE", f"{acme.place}/runtime-issues")
    assert cleared.status_code == 200, cleared.text


@pytest.mark.usefixtures("none")
async def test_one_cause_is_one_issue_that_everybody_sees_at_once(acme: Acme, world: World) -> None:
    async with acme.ada.stream(f"organization:{acme.id}") as stream:
        await stream.next()
        tasks = [await acme.create("say x", title=f"Task {n}") for n in range(3)]
        for task in tasks:
            acme.host_sandbox(task)
        seen = Seen(stream)
        await seen.until(lambda: len(seen.affected()) == len(tasks) and bool(seen.badge))
        now = SystemClock().now()

    assert seen.affected() == {task["id"] for task in tasks}
    [shown] = seen.issues.values()
    [row] = await world.fetch(
        "SELECT max(at) AS at FROM rt_feed WHERE kind = 'runtime_issue' AND item_id = %s",
        (shown["id"],),
    )
    assert now - row["at"] < AT_ONCE
    assert (seen.badge["status"], seen.badge["error_count"]) == ("error", 1)
    [issue] = [one for one in await issues(acme) if not one.resolved_at]
    assert issue.id == shown["id"]
    assert issue.count >= 3
    assert {who.title for who in issue.affected} == {"Task 0", "Task 1", "Task 2"}
    assert {who.kind for who in issue.affected} == {"task"}
    assert "FOUNDRY_SANDBOX_AGENT_BIN" in issue.hint
    badge = (await acme.ada.get(acme.place))["runtime"]
    assert (badge["status"], badge["error_count"]) == ("error", 1)


@pytest.mark.usefixtures("none")
async def test_who_clears_one_issue_stands_in_audit_and_history(acme: Acme, world: World) -> None:
    task = await failed(acme, "Clear me")
    [issue] = [one for one in await issues(acme) if one.code == CODE]
    async with acme.ada.stream(f"organization:{acme.id}") as stream:
        await stream.next()
        seen = Seen(stream)
        seen.issues[issue.id] = {}
        before = SystemClock().now()
        answer = await acme.ada.call("DELETE", f"{acme.place}/runtime-issues/{issue.id}")
        await seen.until(lambda: not seen.issues and bool(seen.badge))
        assert SystemClock().now() - before < AT_ONCE
    assert (seen.badge["status"], seen.badge["error_count"]) == ("healthy", 0)

    assert (answer.status_code, answer.json()) == (200, {"cleared": 1})
    assert issue.id not in {one.id for one in await issues(acme)}
    entry = (await audit(world, keys.organization(acme.id)))[-1]
    assert (entry["what"], entry["by"]["login"]) == ("issue_cleared", "ada")
    assert entry["data"] == {"id": issue.id, "code": CODE, "count": issue.count}
    [record] = await eventually(lambda: records(acme, "issue_cleared", task))
    assert record["actor"]["login"] == "ada"
    assert record["repository_id"] == acme.repository
    assert CODE in record["summary"]


@pytest.mark.usefixtures("none")
async def test_an_operator_lists_and_clears_all_issues(
    acme: Acme, world: World, tmp_path: Path
) -> None:
    foundry = Operator(
        {"FOUNDRY_DATABASE_URL": world.database.url, "FOUNDRY_DATA_DIR": str(tmp_path)}
    )
    await foundry("issues", "clear")  # an operator also sees what sign-ins left at the app
    task = await failed(acme, "Operated")

    [listed] = (await foundry.json("issues", "ls"))["items"]
    assert (listed["code"], listed["root"]) == (CODE, keys.organization(acme.id))
    assert listed["hint"]
    assert await foundry("issues", "clear") == "cleared 1 runtime issue\n"

    assert await foundry("issues", "ls") == "no runtime issues\n"
    assert not await issues(acme)
    entry = (await audit(world, keys.organization(acme.id)))[-1]
    assert (entry["what"], entry["by"]["login"]) == ("issue_cleared", "operator")
    [record] = await eventually(lambda: records(acme, "issue_cleared", task))
    assert record["actor"]["login"] == "operator"
