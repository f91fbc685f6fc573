"""What goes wrong outside is seen with phase, code, message and hint; a retry completes it."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually


async def _failed(acme: Acme, task: str, phase: str, code: str) -> dict[str, Any]:
    seen = await acme.until(task, "error")
    provisioning = seen["provisioning"]
    assert provisioning["phase"] == phase
    assert provisioning["error"]["code"] == code
    assert provisioning["error"]["message"]
    assert provisioning["error"]["hint"]
    failed = next(p for p in provisioning["phases"] if p["name"] == phase)
    assert failed["state"] == "failed"
    return seen


async def _issue(acme: Acme, code: str, task: str, *, resolved: bool) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        answer = await acme.call("GET", "/runtime-issues")
        for issue in answer["items"]:
            if issue["code"] == code and task in [who["id"] for who in issue["affected"]]:
                assert (issue["resolved_at"] is not None) is resolved, issue
                found: dict[str, Any] = issue
                return found
        return None

    seen: dict[str, Any] = await eventually(look, timeout=20, every=0.1)
    return seen


async def _retry(acme: Acme, task: str) -> None:
    await acme.call("POST", f"/tasks/{task}/retry")


async def test_a_missing_sandbox_agent_is_seen_and_a_retry_completes_the_task(
    foundry: Foundry, acme: Acme
) -> None:
    aside = foundry.sandbox_agent.with_name("sandbox-agent.aside")
    foundry.sandbox_agent.rename(aside)
    try:
        task = await acme.create("say it works")
        await _failed(acme, task["id"], "starting_agent_server", "sandbox_agent_missing")
        issue = await _issue(acme, "sandbox_agent_missing", task["id"], resolved=False)
        assert issue["step"] == "start-agent-server"
        assert issue["hint"]
        organization = await acme.call("GET", "")
        assert organization["runtime"]["status"] == "error"
    finally:
        aside.rename(foundry.sandbox_agent)

    await _retry(acme, task["id"])

    await acme.settled(task["id"])
    assert "it works" in await acme.said(task)
    await _issue(acme, "sandbox_agent_missing", task["id"], resolved=True)


async def test_a_failing_clone_and_then_an_exiting_agent_are_seen_and_retried(
    foundry: Foundry, acme: Acme
) -> None:
    bare = foundry.data_dir / "forge" / "repositories" / "acme" / "demo.git"
    aside = bare.with_name("demo.aside")
    bare.rename(aside)
    try:
        task = await acme.create("say at last")
        seen = await _failed(acme, task["id"], "cloning", "clone_failed")
        assert seen["provisioning"]["error"]["log_tail"]
        await _issue(acme, "clone_failed", task["id"], resolved=False)
    finally:
        aside.rename(bare)
    home = foundry.data_dir / "sandboxes" / seen["sandboxes"][0]["id"] / "home"
    marker = home / ".foundry" / "exit-on-new-session"
    await asyncio.to_thread(marker.write_text, "")

    await _retry(acme, task["id"])
    await _failed(acme, task["id"], "starting_session", "agent_exited")
    await _issue(acme, "clone_failed", task["id"], resolved=True)
    await _issue(acme, "agent_exited", task["id"], resolved=False)
    await asyncio.to_thread(marker.unlink)
    await _retry(acme, task["id"])

    await acme.settled(task["id"])
    assert "at last" in await acme.said(task)
    await _issue(acme, "agent_exited", task["id"], resolved=True)


async def test_a_branch_that_appears_on_github_meanwhile_is_seen_and_renamed_by_a_retry(
    foundry: Foundry, acme: Acme, ben: Any
) -> None:
    aside = foundry.sandbox_agent.with_name("sandbox-agent.aside")
    foundry.sandbox_agent.rename(aside)
    try:
        task = await acme.create("say moved", branch="wanted/by-two")
        await _failed(acme, task["id"], "starting_agent_server", "sandbox_agent_missing")
        head = (await ben.get("/repos/acme/demo/git/ref/heads/main")).json()["object"]["sha"]
        made = await ben.post(
            "/repos/acme/demo/git/refs", json={"ref": "refs/heads/wanted/by-two", "sha": head}
        )
        assert made.status_code == 201
    finally:
        aside.rename(foundry.sandbox_agent)
    await _retry(acme, task["id"])
    await _failed(acme, task["id"], "checking_out", "branch_taken")

    await acme.call("POST", f"/tasks/{task['id']}/retry", {"branch": "wanted/by-one"})

    ready = await acme.settled(task["id"])
    assert ready["branch"] == "wanted/by-one"
