"""The main job: from a sign-in to a merged pull request, as a person and a program see it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import httpx

from foundry_ray import bootstrap
from foundry_ray.cli.demo.client import Browser, items
from foundry_ray.cli.demo.evidence import NotSeen, Recorder
from foundry_ray.core.settings import Settings

PATIENCE = 60.0  # seconds for anything that another process does
WEBHOOK_PATIENCE = 20.0
MISSING_PATIENCE = 6.0  # for a part that was left out on purpose

Without = Literal["webhook", "push"]

PROMPT = """\
say Hello, I am the scripted agent.
write HELLO.md Hello from Foundry.
run git status --short
stream 20 20
ask May I commit this?
commit Add a greeting
say Done."""


class Job:
    """One run of the main job.

    Args:
        without: Leave one part out; the step that would see it must then fail.
    """

    def __init__(
        self, settings: Settings, recorder: Recorder, *, without: Without | None = None
    ) -> None:
        self.settings = settings
        self.recorder = recorder
        self.without = without
        self.step = recorder.step
        self.forge = settings.github_url
        self.repositories = settings.data_dir / "forge" / "repositories"

    async def run(self) -> None:
        """Do the job, seeing each step through another channel than the one that wrote it."""
        async with Browser(self.settings.public_url) as ada:
            organization = await self._sign_in(ada)
            repository = await self._synced(ada, organization)
            task = await self._task(ada, organization, repository)
            await self._agent(ada, organization, task)
            await self._changes(ada, organization, task)
            sha = await self._push(ada, organization, task)
            await self._pull_request(ada, organization, task, sha)

    async def _sign_in(self, ada: Browser) -> dict[str, Any]:
        with self.step("signed in through the OAuth page") as step:
            pages = await ada.sign_in("ada")
            app = await ada.call("GET", "/api/app")
            if app["auth"]["status"] != "signed_in" or app["user"]["login"] != "ada":
                raise NotSeen("Nobody is signed in.", pages=pages)
            step.evidence = {"login": app["user"]["login"], "pages": pages}
            found: dict[str, Any] = next(o for o in app["organizations"] if o["login"] == "acme")
            return found

    async def _synced(self, ada: Browser, organization: dict[str, Any]) -> dict[str, Any]:
        with self.step("organization synced, seen on the stream") as step:
            watch = ada.watch(f"organization:{organization['id']}")

            def synced(kind: str, data: dict[str, Any]) -> Any:
                if kind == "snapshot":
                    return data["data"]["github"]["sync_status"] == "synced"
                return any(g["sync_status"] == "synced" for g in items(kind, data, "github"))

            await watch.until(synced, "the end of the sync", PATIENCE)
            listed = await self._eventually(
                lambda: ada.call("GET", f"/api/organizations/{organization['id']}/repositories"),
                lambda answer: answer["items"],
                "a repository",
            )
            repository: dict[str, Any] = listed["items"][0]
            step.evidence = {"organization": "acme", "repository": repository["full_name"]}
            return repository

    async def _task(
        self, ada: Browser, organization: dict[str, Any], repository: dict[str, Any]
    ) -> dict[str, Any]:
        with self.step("task created, answered at once") as step:
            task: dict[str, Any] = await ada.call(
                "POST",
                f"/api/organizations/{organization['id']}/tasks",
                {
                    "repository_id": repository["id"],
                    "title": "Add a greeting",
                    "prompt": PROMPT,
                    "agent": "scripted",
                },
            )
            step.evidence = {
                "task": task["id"],
                "branch": task["branch"],
                "phase": task["provisioning"]["phase"],
            }
        with self.step("provisioning, phase by phase, seen on the stream") as step:
            phases: list[str] = []
            watch = ada.watch(f"task:{organization['id']}/{task['id']}")

            def ready(kind: str, data: dict[str, Any]) -> bool:
                tasks = [data["data"]] if kind == "snapshot" else items(kind, data, "task")
                for seen in tasks:
                    phase = seen["provisioning"]["phase"]
                    if phase not in phases:
                        phases.append(phase)
                    if error := seen["provisioning"]["error"]:
                        raise NotSeen(f"{phase} failed: {error['message']}", hint=error["hint"])
                return "ready" in phases

            try:
                await watch.until(ready, "a ready sandbox", PATIENCE)
            finally:
                step.evidence = {"phases": phases}
        return task

    async def _agent(
        self, ada: Browser, organization: dict[str, Any], task: dict[str, Any]
    ) -> None:
        session = task["active_session_id"]
        place = f"/api/organizations/{organization['id']}/tasks/{task['id']}/sessions/{session}"
        watch = ada.watch(f"session:{organization['id']}/{task['id']}/{session}")
        with self.step("the agent's output, seen on the stream; its question answered") as step:
            said: list[str] = []
            asked = await watch.until(
                lambda kind, data: _question(kind, data, said), "the agent's question", PATIENCE
            )
            await ada.call(
                "POST",
                f"{place}/permissions/{asked['id']}",
                {"option_id": asked["options"][0]["optionId"]},
            )
            said.clear()
            await watch.until(
                lambda kind, data: _ended(kind, data, said), "the end of the agent's turn", PATIENCE
            )
            transcript = await ada.call("GET", f"{place}/events?limit=1000")
            indexes = [event["index"] for event in transcript["items"]]
            if indexes != list(range(1, len(indexes) + 1)):
                raise NotSeen("The transcript has gaps.", indexes=indexes)
            step.evidence = {
                "said": "".join(said).split("\n")[0],
                "question": asked["tool_call"].get("title", ""),
                "events": len(indexes),
            }

    async def _changes(
        self, ada: Browser, organization: dict[str, Any], task: dict[str, Any]
    ) -> None:
        with self.step("changed files, compared with the merge base") as step:
            place = f"/api/organizations/{organization['id']}/tasks/{task['id']}/changes"
            changes = await self._eventually(
                lambda: ada.call("GET", place), lambda answer: answer["files"], "a changed file"
            )
            step.evidence = {
                "files": [f"{f['status']} {f['path']} +{f['added']}" for f in changes["files"]],
                "as_of": changes["as_of"],
            }

    async def _push(self, ada: Browser, organization: dict[str, Any], task: dict[str, Any]) -> str:
        place = f"/api/organizations/{organization['id']}/tasks/{task['id']}"
        with self.step("pushed, seen by git rev-parse in the bare repository") as step:
            if self.without != "push":
                await ada.call("POST", f"{place}/push")
            ref = f"refs/heads/{task['branch']}"
            argv = ["git", "-C", str(self.repositories / "acme" / "demo.git"), "rev-parse"]

            async def rev_parse() -> str:
                done = await asyncio.to_thread(
                    subprocess.run,
                    [*argv, "--verify", "--quiet", ref],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                return str(done.stdout).strip()

            sha: str = await self._eventually(
                rev_parse, lambda answer: answer, "the branch in the bare repository",
                patience=MISSING_PATIENCE if self.without == "push" else PATIENCE,
            )  # fmt: skip
            step.evidence = {"branch": task["branch"], "sha": sha}
            return sha

    async def _pull_request(
        self, ada: Browser, organization: dict[str, Any], task: dict[str, Any], sha: str
    ) -> None:
        place = f"/api/organizations/{organization['id']}/tasks/{task['id']}"
        secret = (self.settings.data_dir / "forge" / "admin.secret").read_text().strip()
        async with httpx.AsyncClient(timeout=30, trust_env=False) as forge:
            with self.step("pull request, seen by GitHub's REST as ben") as step:
                await ada.call("PUT", f"{place}/pull-request", {})
                minted = await forge.post(
                    f"{self.forge}/-/users/ben/tokens", headers={"X-Forge-Admin": secret}
                )
                minted.raise_for_status()
                forge.headers["Authorization"] = f"Bearer {minted.json()['token']}"
                pulls = f"{self.settings.github_api_url}/repos/acme/demo/pulls"

                async def opened() -> Any:
                    answer = await forge.get(pulls, params={"head": f"acme:{task['branch']}"})
                    return answer.json()

                found = await self._eventually(opened, lambda a: a, "the pull request")
                pull = found[0]
                if pull["head"]["sha"] != sha or pull["user"]["login"] != "ada":
                    raise NotSeen("The pull request is not what was pushed.", pull=pull["number"])
                step.evidence = {
                    "number": pull["number"],
                    "author": pull["user"]["login"],
                    "head": pull["head"]["sha"],
                }
            with self.step("merged by ben on GitHub, seen by its REST") as step:
                if self.without == "webhook":
                    paused = await forge.post(
                        f"{self.forge}/-/deliveries/pause", headers={"X-Forge-Admin": secret}
                    )
                    paused.raise_for_status()
                merged = await forge.put(f"{pulls}/{pull['number']}/merge")
                merged.raise_for_status()
                after = (await forge.get(f"{pulls}/{pull['number']}")).json()
                if not after["merged"] or after["merged_by"]["login"] != "ben":
                    raise NotSeen("The pull request was not merged by ben.")
                step.evidence = {
                    "merged_by": after["merged_by"]["login"],
                    "merge_commit": after["merge_commit_sha"],
                }
        await self._news_of_the_merge(ada, organization, task)

    async def _news_of_the_merge(
        self, ada: Browser, organization: dict[str, Any], task: dict[str, Any]
    ) -> None:
        place = f"/api/organizations/{organization['id']}"
        with self.step("the webhook, in GitHub's delivery log and in Foundry's history") as step:
            history = await self._eventually(
                lambda: ada.call("GET", f"{place}/history?task={task['id']}&limit=100"),
                _delivery,
                "the delivery in Foundry's history",
                patience=MISSING_PATIENCE if self.without == "webhook" else WEBHOOK_PATIENCE,
            )
            guid = _delivery(history)
            outside = bootstrap.adapters(self.settings)
            try:
                assert outside.github is not None
                deliveries, _ = await outside.github.deliveries()
            finally:
                await outside.aclose()
            sent = [d for d in deliveries if d.guid == guid]
            if not sent:
                raise NotSeen("GitHub's delivery log does not know this delivery.", guid=guid)
            step.evidence = {
                "guid": guid,
                "github": f"{sent[0].event}.{sent[0].action} answered {sent[0].status_code}",
            }
        with self.step("pull request merged, seen by the API") as step:
            merged = await self._eventually(
                lambda: ada.call("GET", f"{place}/tasks/{task['id']}"),
                lambda answer: (answer["pull_request"] or {}).get("state") == "merged",
                "the merged pull request",
            )
            step.evidence = {
                "state": merged["pull_request"]["state"],
                "number": merged["pull_request"]["number"],
            }

    @staticmethod
    async def _eventually(
        ask: Callable[[], Awaitable[Any]],
        good: Callable[[Any], Any],
        what: str,
        patience: float = PATIENCE,
    ) -> Any:
        """Ask again until the answer is good: a program at a terminal has no event to wait for."""
        try:
            async with asyncio.timeout(patience):
                while True:
                    answer = await ask()
                    if good(answer):
                        return answer
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise NotSeen(f"{what} was not seen in {patience:.0f} s.") from None


def _events(kind: str, data: dict[str, Any]) -> list[dict[str, Any]]:
    return list(data["events"]) if kind == "append" else []


def _collect(kind: str, data: dict[str, Any], said: list[str]) -> None:
    for event in _events(kind, data):
        update = (event["payload"].get("params") or {}).get("update") or {}
        if update.get("sessionUpdate") == "agent_message_chunk":
            said.append(str(update.get("content", {}).get("text", "")) + "\n")


def _question(kind: str, data: dict[str, Any], said: list[str]) -> dict[str, Any] | None:
    _collect(kind, data, said)
    asked = items(kind, data, "permission")
    if kind == "snapshot":
        asked = data["data"].get("permission_requests", [])
    return next((p for p in asked if p["state"] == "open"), None)


def _ended(kind: str, data: dict[str, Any], said: list[str]) -> bool:
    _collect(kind, data, said)
    return any(
        event["payload"].get("method") == "_foundry/turn_ended" for event in _events(kind, data)
    )


def _delivery(history: dict[str, Any]) -> str | None:
    for event in history["items"]:
        if event["kind"] == "pull_request_merged" and event["data"].get("delivery"):
            return str(event["data"]["delivery"])
    return None
