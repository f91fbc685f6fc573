"""What Foundry counts is offered to Prometheus by Ray's agent, on this machine only."""

from __future__ import annotations

import re

import httpx

from foundry_ray.cli.ports import is_loopback
from tests.e2e.conftest import Acme, Foundry
from tests.helpers import eventually

NAMES = (
    "foundry_turns_total",
    "foundry_turn_seconds_bucket",
    "foundry_mailbox_age_seconds_bucket",
    "foundry_steps_total",
    "foundry_step_seconds_bucket",
    "foundry_activations",
)
LINE = re.compile(r"(?:ray_)?(foundry_\w+)\{(.*)\} (\S+)")


async def test_turns_steps_and_activations_can_be_scraped_and_name_no_entity(
    foundry: Foundry, acme: Acme
) -> None:
    task = await acme.create("say counted")
    await acme.settled(task["id"])
    [port] = [one for one in foundry.status()["ports"] if one["name"] == "Ray metrics"]
    assert is_loopback(port["address"])

    async with httpx.AsyncClient(trust_env=False) as http:

        async def scraped() -> list[tuple[str, dict[str, str], float]]:
            text = (await http.get(f"http://{port['address']}:{port['port']}/metrics")).text
            found = [
                (name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
                for name, labels, value in LINE.findall(text)
            ]
            names = {name for name, _, _ in found}
            assert set(NAMES) <= names, (names, text[:2000])
            assert {"task", "sandbox_instance"} <= {labels["kind"] for _, labels, _ in found}
            return found

        series = await eventually(scraped, timeout=40, every=0.5)

    ids = (task["id"], acme.organization, acme.repository, task["active_session_id"])
    for name, labels, _ in series:
        assert not {value for value in labels.values() if value in ids or "/" in value}, name
    done = [
        value
        for name, labels, value in series
        if name == "foundry_turns_total" and (labels["kind"], labels["result"]) == ("task", "done")
    ]
    assert sum(done) >= 1
