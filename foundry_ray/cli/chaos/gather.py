"""Collects what the invariants compare: rows, files, the API's answers, the forge's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from foundry_ray.cli.chaos import targets
from foundry_ray.cli.chaos.client import Patient
from foundry_ray.cli.chaos.invariants import Said, TaskFacts
from foundry_ray.cli.chaos.load import Prompt, Work
from foundry_ray.cli.chaos.outside import Outside, read_journal
from foundry_ray.cli.chaos.report import Kill
from foundry_ray.core import keys

_MESSAGES = "SELECT id, text, state FROM task_session_message WHERE actor_key = %s ORDER BY id"
_RUNNING = """
SELECT actor_key AS key, status AS word, sandbox_key FROM task_session
WHERE status IN ('running', 'starting', 'needs_you')
UNION ALL
SELECT actor_key, status, sandbox_key FROM task
WHERE status IN ('running', 'provisioning', 'needs_you', 'archiving', 'killing')
UNION ALL
SELECT actor_key, 'running: ' || name, sandbox_key FROM task,
jsonb_each(operations) AS operation (name, data) WHERE data ->> 'state' = 'running'
UNION ALL
SELECT entity_key, 'claimed: ' || step, NULL FROM rt_run WHERE state = 'claimed'
"""
# A timer that is due later is nothing left to do; everything else in a mailbox is.
_LEFT = {
    "mail": "SELECT target, kind, attempts, error FROM rt_mailbox"
    " WHERE parked_at IS NULL AND (timer IS NULL OR due_at < now())",
    "parked messages": "SELECT target, kind, error FROM rt_mailbox WHERE parked_at IS NOT NULL",
    "runs": "SELECT entity_key, kind, step, state, attempt, error FROM rt_run",
    "running sessions": "SELECT actor_key, status FROM task_session"
    " WHERE turn_message_id IS NOT NULL",
}


def left(outside: Outside) -> dict[str, list[dict[str, Any]]]:
    """Return what is still to be done, by sort."""
    return {name: outside.query(statement) for name, statement in _LEFT.items()}


def running(outside: Outside) -> tuple[list[tuple[str, str, list[str]]], set[str]]:
    """Return what says that it runs, with who could move it, and which entities live."""
    with outside.connect() as connection:
        said = connection.execute(_RUNNING.encode()).fetchall()
        hosts = connection.execute(
            b"SELECT key, host FROM rt_entity WHERE host IS NOT NULL"
        ).fetchall()
    live = {row["key"] for row in hosts if targets.of_host(row["host"]) is not None}
    found = []
    for row in said:
        key, sandbox = row["key"], row["sandbox_key"]
        movers = [key] if sandbox is None else [key, sandbox]
        match keys.kind_of(key):
            case "task":  # it says what its sessions say
                movers += [one for one in live if one.startswith(f"{key}/")]
            case "task_session":
                movers = [sandbox, keys.status_sync(key)]
        found.append((key, row["word"], movers))
    return found, live


class Gatherer:
    """Collects what is known of each task.

    Args:
        outside: Database and files.
        patient: A client of the API.
        began: What the times of kills count from.
    """

    def __init__(self, outside: Outside, patient: Patient, began: float) -> None:
        self._outside = outside
        self._patient = patient
        self._began = began

    async def tasks(self, works: Sequence[Work], kills: Sequence[Kill]) -> list[TaskFacts]:
        """Return the facts of every task."""
        settings = self._outside.settings
        secret = (settings.data_dir / "forge" / "admin.secret").read_text().strip()
        async with httpx.AsyncClient(timeout=30, trust_env=False) as forge:
            minted = await forge.post(
                f"{settings.github_url}/-/users/ben/tokens", headers={"X-Forge-Admin": secret}
            )
            minted.raise_for_status()
            forge.headers["Authorization"] = f"Bearer {minted.json()['token']}"
            return [await self._task(work, kills, forge) for work in works]

    async def _task(self, work: Work, kills: Sequence[Kill], forge: httpx.AsyncClient) -> TaskFacts:
        outside, sandbox = self._outside, work.sandbox
        pulls = await forge.get(
            f"{outside.settings.github_api_url}/repos/acme/demo/pulls",
            params={"head": f"acme:{work.branch}", "state": "all"},
        )
        pulls.raise_for_status()
        found = pulls.json()
        return TaskFacts(
            name=f"task {work.number} ({work.id})",
            session=work.session,
            session_key=work.session_key,
            said=[self._said(work, prompt, kills) for prompt in work.prompts],
            messages=outside.query(_MESSAGES, work.session_key),
            witness=outside.witness(sandbox),
            journal=read_journal(outside.home(sandbox), work.session),
            transcript=await self._transcript(work),
            told=work.follower.last,
            stream_problems=work.follower.problems,
            published=work.published,
            pulls=[pull["number"] for pull in found],
            heads={
                "work tree": outside.head(sandbox),
                "forge": outside.pushed(work.branch),
                "pull request": found[0]["head"]["sha"] if found else "",
            },
        )

    def _said(self, work: Work, prompt: Prompt, kills: Sequence[Kill]) -> Said:
        sent = prompt.sent_at - self._began
        over = None if prompt.ended_at is None else prompt.ended_at - self._began
        return Said(
            marker=prompt.script.marker,
            message_id=prompt.message_id,
            ended=prompt.ended is not None,
            error=prompt.error,
            agent_killed=any(
                kill.sandbox == work.sandbox
                and sent <= kill.at
                and (over is None or kill.at <= over)
                for kill in kills
                if kill.sandbox
            ),
        )

    async def _transcript(self, work: Work) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        while True:
            path = f"{work.place}/sessions/{work.session}/events"
            page = await self._patient.get(f"{path}?limit=1000&after={len(events)}")
            if not page["items"]:
                return events
            events += page["items"]
