"""Activations come and go; the work does not notice (acceptance of the promise)."""

from __future__ import annotations

from typing import Any

from foundry_ray.cli.demo.client import Browser
from foundry_ray.cli.ports import is_loopback
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually


async def test_idle_actors_leave_reads_wake_nobody_and_the_agent_session_goes_on(
    foundry: Foundry, acme: Acme
) -> None:
    task = await acme.create("say first")
    ready = await acme.settled(task["id"])
    place = f"org/{acme.organization}/repo/{acme.repository}"
    key = f"{place}/task/{task['id']}"
    session = f"{key}/session/{task['active_session_id']}"
    sandbox = f"org/{acme.organization}/sandbox/local/{ready['sandboxes'][0]['id']}"

    async with Browser(foundry.settings.public_url) as again:
        await again.sign_in("ada")  # so that her own actor is there, too
    live = foundry.actors()
    assert {
        "app",
        f"org/{acme.organization}",
        f"org/{acme.organization}/github",
        place,
        f"{place}/history",
        key,
        session,
        f"{session}/status-sync",
        sandbox,
    } <= live
    assert any(name.startswith("app/user/") for name in live)

    def gone() -> bool:
        return not {key, session, f"{session}/status-sync", sandbox} & foundry.actors()

    await eventually(gone, timeout=30, every=0.5)
    read = await acme.call("GET", f"/tasks/{task['id']}")
    events = await acme.call(
        "GET", f"/tasks/{task['id']}/sessions/{task['active_session_id']}/events"
    )
    assert read["status"] == "ready"
    assert events["items"]
    assert gone(), "reading woke an actor"
    running = [p for p in foundry.status()["processes"] if p["state"] == "running"]
    assert any("sandbox" in process["name"] for process in running), running

    before = _opened(events["items"])
    await acme.call(
        "POST",
        f"/tasks/{task['id']}/sessions/{task['active_session_id']}/messages",
        {"text": "say second"},
    )

    async def second() -> bool:
        return "second" in await acme.said(task)

    await eventually(second, timeout=30, every=0.1)
    after = await acme.call(
        "GET", f"/tasks/{task['id']}/sessions/{task['active_session_id']}/events?limit=1000"
    )
    assert _opened(after["items"]) == before, "the agent got a new session"


def _opened(events: list[dict[str, Any]]) -> int:
    return sum(1 for event in events if event["payload"].get("method") == "session/new")


async def test_a_turn_is_stopped_and_the_session_stays_usable(acme: Acme) -> None:
    task = await acme.create("hang")
    await acme.until(task["id"], "running")
    session = f"/tasks/{task['id']}/sessions/{task['active_session_id']}"

    stopped = await acme.call("POST", f"{session}/stop")

    assert stopped["status"] == "idle"
    await acme.call("POST", f"{session}/messages", {"text": "say still here"})
    await acme.settled(task["id"])
    assert "still here" in await acme.said(task)


async def test_an_agent_that_exits_is_a_visible_error_and_the_next_prompt_goes_on(
    acme: Acme,
) -> None:
    task = await acme.create("exit 3")
    failed = await acme.until(task["id"], "error")
    session = f"/tasks/{task['id']}/sessions/{task['active_session_id']}"
    assert failed["sessions"][0]["error"]["code"] == "agent_exited"
    assert failed["sessions"][0]["error"]["hint"]

    await acme.call("POST", f"{session}/messages", {"text": "say back again"})

    await acme.settled(task["id"])
    assert "back again" in await acme.said(task)


async def test_archive_keeps_and_kill_destroys(foundry: Foundry, acme: Acme) -> None:
    kept = await acme.create("say kept")
    killed = await acme.create("say killed")
    branch = killed["branch"]
    for task in (kept, killed):
        await acme.settled(task["id"])

    await acme.call("POST", f"/tasks/{kept['id']}/archive")
    await acme.call("POST", f"/tasks/{killed['id']}/kill")

    kept = await acme.until(kept["id"], "archived")
    killed = await acme.until(killed["id"], "killed")
    sandboxes = foundry.data_dir / "sandboxes"
    assert (sandboxes / kept["sandboxes"][0]["id"] / "home" / "work" / ".git").exists()
    assert not (sandboxes / killed["sandboxes"][0]["id"]).exists()
    again = await acme.create("say anew", branch=branch)
    assert again["branch"] == branch


def test_every_open_port_is_on_loopback_or_says_why_not(foundry: Foundry) -> None:
    ports = foundry.status()["ports"]

    assert {port["port"] for port in ports} >= {foundry.port}
    for port in ports:
        assert is_loopback(port["address"]) or port.get("reason"), port


async def test_a_second_session_works_on_the_same_branch(acme: Acme) -> None:
    task = await acme.create("write one.txt one")
    await acme.settled(task["id"])

    second = await acme.call("POST", f"/tasks/{task['id']}/sessions", {"title": "Review"})

    assert (second["status"], second["title"]) == ("pending", "Review")
    place = f"/tasks/{task['id']}/sessions/{second['id']}"
    await acme.call("POST", f"{place}/messages", {"text": "run cat one.txt\nsay seen"})

    async def seen() -> bool:
        view = await acme.call("GET", f"/tasks/{task['id']}")
        assert view["active_session_id"] == second["id"]
        return "seen" in await acme.said(view)

    await eventually(seen, timeout=30, every=0.1)


async def test_a_kill_right_after_the_create_is_not_lost(acme: Acme) -> None:
    task = await acme.create("say never mind")

    await acme.call("POST", f"/tasks/{task['id']}/kill")

    await acme.until(task["id"], "killed")
