"""One run: the load, the kills, the end, and the invariants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundry_ray.cli.chaos import gather, invariants
from foundry_ray.cli.chaos.client import Patient
from foundry_ray.cli.chaos.load import PATIENCE, Load
from foundry_ray.cli.chaos.outside import Outside
from foundry_ray.cli.chaos.report import Finding, Report
from foundry_ray.cli.chaos.striker import Striker
from foundry_ray.cli.demo.client import Browser
from foundry_ray.cli.demo.evidence import NotSeen
from foundry_ray.core.settings import Settings

SETTLED = 10.0  # seconds after the last kill at which nothing may pretend to run
QUIET_PATIENCE = 60.0  # seconds after the last task's end until nothing is left to do
END_PATIENCE = 3 * PATIENCE  # for every task to come to its end
WARM_UP = 5.0  # seconds of load before the first kill
_LOOK = 0.25


class Run:
    """Everything that happens between the start and the end of the instance.

    Args:
        settings: Of the instance.
        failpoints: The folder in which its processes look for traps.
        report: Is filled.
        tell: Says a line to whoever watches.
    """

    def __init__(
        self, settings: Settings, failpoints: Path, report: Report, tell: Callable[[str], None]
    ) -> None:
        self._outside = Outside(settings)
        self._failpoints = failpoints
        self._report = report
        self._tell = tell

    async def go(self) -> None:
        """Load, kill, let everything end, compare."""
        report, began = self._report, time.monotonic()
        async with Browser(self._outside.settings.public_url) as browser:
            patient = Patient(browser)
            organization, repository = await self._enter(browser, patient)
            load = Load(
                patient, organization, repository,
                seed=report.seed, width=report.tasks, tell=self._tell,
            )  # fmt: skip
            striker = Striker(
                self._outside, load, self._failpoints,
                seed=report.seed, began=began, tell=self._tell,
            )  # fmt: skip
            report.kills = striker.kills
            working = asyncio.create_task(load.run(), name="load")
            try:
                await asyncio.sleep(WARM_UP)
                await striker.run(began + report.minutes * 60)
                load.finish()
                last = began + (striker.kills[-1].at if striker.kills else 0)
                self._tell("time is over: every task goes to its end")
                report.findings.append(await self._settled(last))
                await self._end_of(working, load)
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                await striker.end()
            await self._compare(load, patient, began)
            report.seconds = round(time.monotonic() - began, 1)
            report.load = {"tasks": len(load.works), **patient.count}
            report.load["stream connections"] = sum(w.follower.connections for w in load.works)

    @staticmethod
    async def _enter(browser: Browser, patient: Patient) -> tuple[str, str]:
        """Sign in as the sample organization's owner; return organization and repository."""
        await browser.sign_in("ada")
        app = await patient.get("/api/app")
        organization = next(o["id"] for o in app["organizations"] if o["login"] == "acme")
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            listed = await patient.get(f"/api/organizations/{organization}/repositories")
            for repository in listed["items"]:
                if repository["full_name"] == "acme/demo":
                    return organization, repository["id"]
            await asyncio.sleep(_LOOK)
        raise NotSeen("The sample repository was not synced.")

    async def _settled(self, last: float) -> Finding:
        """Look, ten seconds after the last kill, whether anything only says that it runs."""
        await asyncio.sleep(max(0.0, last + SETTLED - time.monotonic()))
        seconds = time.monotonic() - last
        found = await self._pretending(seconds)
        if found.broken:  # rows and processes are not seen at one instant: look once more
            await asyncio.sleep(_LOOK)
            again = await self._pretending(seconds)
            found.broken = [one for one in found.broken if one in again.broken]
        return found

    async def _pretending(self, seconds: float) -> Finding:
        running, live = await asyncio.to_thread(gather.running, self._outside)
        return invariants.nothing_pretends(running, live, seconds)

    async def _end_of(self, working: asyncio.Task[None], load: Load) -> None:
        done, _ = await asyncio.wait({working}, timeout=END_PATIENCE)
        if not done:
            load.troubles.append(f"the load did not end in {END_PATIENCE:.0f} s")
        else:
            await working

    async def _compare(self, load: Load, patient: Patient, began: float) -> None:
        report = self._report
        rows = await self._left()
        gatherer = gather.Gatherer(self._outside, patient, began)
        facts = await gatherer.tasks(load.works, report.kills)
        report.findings += [
            invariants.prompts_once(facts),
            invariants.prompts_end(facts),
            invariants.transcripts_complete(facts),
            invariants.one_pull_request(facts),
            invariants.commands_once(facts, load.history),
            invariants.nothing_half_done(rows),
            invariants.ended_without_help(load.troubles, len(load.works)),
        ]
        report.open_issues = await asyncio.to_thread(
            self._outside.query,
            "SELECT code, entity, workflow, step, message FROM rt_issue WHERE resolved_at IS NULL",
        )

    async def _left(self) -> dict[str, list[dict[str, Any]]]:
        """Wait until nothing is left to do; return what is."""
        until = time.monotonic() + QUIET_PATIENCE
        while True:
            rows = await asyncio.to_thread(gather.left, self._outside)
            if not any(rows.values()) or time.monotonic() > until:
                return rows
            await asyncio.sleep(_LOOK)
