"""Foundry is down for ten real minutes while things happen on GitHub, which sends nothing twice.

The local GitHub goes on meanwhile: its deliveries fail, one after the other, and are fetched by
its deliveries API when Foundry is up again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import pytest
from github import Auth

from foundry_ray.testing.forge.process import ForgeProcess, start_forge
from tests.durability.conftest import Evidence, enter, running
from tests.durability.outside import Work, query
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually

OUTAGE = 600.0  # seconds, from the first event that nobody heard of to the start of Foundry
PATIENCE = 90.0


@pytest.fixture
def foundry() -> Iterator[Foundry]:
    with running() as made:
        yield made


@dataclass
class Hub:
    """GitHub as ben sees it, and as the owner of the organization does in the browser."""

    http: httpx.AsyncClient
    url: str
    headers: dict[str, str]

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the REST API below the repository."""
        answer = await self.http.request(method, f"/repos/acme/demo{path}", json=body)
        answer.raise_for_status()
        return answer.json()

    async def remove_member(self, login: str) -> None:
        """Remove somebody from the organization."""
        path = f"{self.url}/-/orgs/acme/members/{login}"
        (await self.http.delete(path, headers=self.headers)).raise_for_status()


@asynccontextmanager
async def hub(foundry: Foundry) -> AsyncIterator[Hub]:
    settings = foundry.settings
    secret = (foundry.data_dir / "forge" / "admin.secret").read_text().strip()
    headers = {"X-Forge-Admin": secret}
    async with httpx.AsyncClient(
        base_url=settings.github_api_url, trust_env=False, timeout=30
    ) as http:
        minted = await http.post(f"{settings.github_url}/-/users/ben/tokens", headers=headers)
        http.headers["Authorization"] = f"Bearer {minted.json()['token']}"
        yield Hub(http, settings.github_url, headers)


def deliveries(foundry: Foundry) -> list[dict[str, Any]]:
    """Return GitHub's own log of deliveries, the newest first, as the App sees it."""
    settings = foundry.settings
    assert settings.github_app_key_file is not None
    auth = Auth.AppAuth(str(settings.github_app_id), settings.github_app_key_file.read_text())
    with httpx.Client(base_url=settings.github_api_url, trust_env=False) as http:
        answer = http.get(
            "/app/hook/deliveries?per_page=100", headers={"Authorization": f"Bearer {auth.token}"}
        )
        found: list[dict[str, Any]] = answer.raise_for_status().json()
    return found


async def publish(acme: Acme, foundry: Foundry, name: str) -> tuple[Work, int]:
    """Let an agent change something and make a pull request of it; return its number."""
    prompt = f"write {name}.txt {name}\ncommit {name}"
    work = await Work.begin(foundry, acme, prompt)
    await work.finished()
    await work.call("POST", "/push")
    await work.call("PUT", "/pull-request", {})

    async def opened() -> int:
        seen = await work.call("GET", "")
        return int(seen["pull_request"]["number"]) if seen["pull_request"] else 0

    return work, await eventually(opened, PATIENCE, every=0.2)


async def history(work: Work) -> list[dict[str, Any]]:
    """Return what the repository's history says of the task."""
    page = await work.acme.call("GET", f"/history?task={work.task['id']}&limit=100")
    found: list[dict[str, Any]] = page["items"]
    return found


async def test_what_happened_on_github_in_an_outage_of_ten_minutes_is_fetched(
    foundry: Foundry, evidence: Evidence
) -> None:
    async with enter(foundry) as acme:
        closed, closed_number = await publish(acme, foundry, "closed")
        merged, merged_number = await publish(acme, foundry, "merged")
        known = {one["guid"] for one in deliveries(foundry)}
        await asyncio.to_thread(foundry.cli, "down")

        forge = await start_forge(foundry.data_dir, seed=None)
        try:
            missed = await _happen(foundry, forge, closed_number, merged_number, known)
        finally:
            assert await forge.stop() == 0
        await asyncio.to_thread(foundry.cli, "up", "--demo", "--detach")

        async def fetched() -> list[dict[str, Any]]:
            log = await asyncio.to_thread(deliveries, foundry)
            arrived = {one["guid"] for one in log if _good(one)}
            assert {one["guid"] for one in missed} <= arrived
            return log

        log = await eventually(fetched, PATIENCE, every=1)
        attempts = [
            {**_short(one), "attempts": [_short(at) for at in log if at["guid"] == one["guid"]]}
            for one in missed
        ]
        for one in attempts:
            evidence.add(**one)

        async def known_to_foundry() -> bool:
            what = {one["kind"] for work in (closed, merged) for one in await history(work)}
            return {"pull_request_closed", "pull_request_merged"} <= what

        await eventually(known_to_foundry, PATIENCE, every=0.5)
        await _check(foundry, missed, {"closed": closed, "merged": merged})


async def _happen(
    foundry: Foundry, forge: ForgeProcess, closed: int, merged: int, known: set[str]
) -> list[dict[str, Any]]:
    """Let things happen over the whole outage; return the deliveries that failed."""
    began = time.monotonic()
    async with hub(foundry) as github:
        head = (await github.call("GET", "/git/ref/heads/main"))["object"]["sha"]
        new = {"ref": "refs/heads/outage", "sha": head}
        await github.call("POST", "/git/refs", new)
        await _pass(began + OUTAGE / 2)
        await github.call("PATCH", f"/pulls/{closed}", {"state": "closed"})
        await _pass(began + OUTAGE - 5)
        await github.call("PUT", f"/pulls/{merged}/merge")
        await github.remove_member("ben")
        await _pass(began + OUTAGE)

        def all_failed() -> list[dict[str, Any]]:
            new = [one for one in deliveries(foundry) if one["guid"] not in known]
            assert {"push", "pull_request", "organization"} <= {one["event"] for one in new}
            return new

        missed = await eventually(all_failed, PATIENCE, every=1)
    assert not any(_good(one) for one in missed)
    times = sorted(datetime.fromisoformat(one["delivered_at"]) for one in missed)
    assert (times[-1] - times[0]).total_seconds() > OUTAGE * 0.9
    assert forge.process.returncode is None
    return missed


async def _pass(until: float) -> None:
    """Let real time pass: an outage is nothing else."""
    await eventually(lambda: time.monotonic() >= until, OUTAGE + PATIENCE, every=1)


async def _check(foundry: Foundry, missed: list[dict[str, Any]], works: dict[str, Work]) -> None:
    """Each was received once and applied once, and history tells of it once."""
    for one in missed:
        rows = query(
            foundry, "SELECT count(*) AS times FROM rt_inbox_seen WHERE external_id = %s",
            one["guid"],
        )  # fmt: skip
        assert rows[0]["times"] == 1
    await eventually(
        lambda: query(foundry, "SELECT 1 FROM repository_ref WHERE name = 'outage'"), PATIENCE
    )
    guids = {one["guid"] for one in missed}
    for what, work in works.items():
        told = [one for one in await history(work) if one["kind"] == f"pull_request_{what}"]
        assert len(told) == 1, told
        assert told[0]["data"]["delivery"] in guids


def _good(delivery: dict[str, Any]) -> bool:
    return 200 <= int(delivery["status_code"]) < 300


def _short(delivery: dict[str, Any]) -> dict[str, Any]:
    names = ("guid", "event", "action", "delivered_at", "redelivery", "status", "status_code")
    return {name: delivery[name] for name in names}
