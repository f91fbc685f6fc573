"""Webhooks: whose they are, that they count once, and where they go."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import httpx
import pytest

from foundry_ray.core.ids import new_uuid
from tests.helpers import eventually
from tests.integration.serve.world import Acme, World, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")


def signature(world: World, body: bytes) -> str:
    secret = world.settings.github_webhook_secret
    assert secret is not None
    return (
        "sha256=" + hmac.new(secret.get_secret_value().encode(), body, hashlib.sha256).hexdigest()
    )


async def deliver(
    world: World, payload: Any, *, event: str = "star", guid: str | None = None, **headers: str
) -> httpx.Response:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    given = {
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": guid or str(new_uuid()),
        "X-Hub-Signature-256": signature(world, body),
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    async with world.browser() as http:
        return await http.post("/webhooks/github", content=body, headers=given)


async def installation(acme: Acme) -> int:
    [row] = await acme.world.fetch(
        "SELECT installation_id FROM github_state WHERE actor_key = %s", (f"org/{acme.id}/github",)
    )
    return int(row["installation_id"])


async def keeper(world: World, guid: str) -> str:
    """Return the key of the mirror that handled a delivery."""

    async def handled() -> list[dict[str, Any]]:
        return await world.fetch(
            "SELECT actor_key FROM github_state_delivery WHERE guid = %s", (guid,)
        )

    [row] = await eventually(handled)
    return str(row["actor_key"])


async def test_a_delivery_counts_once_also_after_it_was_consumed(acme: Acme) -> None:
    world, guid = acme.world, str(new_uuid())
    payload = {"action": "created", "installation": {"id": await installation(acme)}}

    first = await deliver(world, payload, guid=guid)
    assert await keeper(world, guid) == f"org/{acme.id}/github"
    before = await world.totals()
    again = await deliver(world, payload, guid=guid)
    other = await deliver(world, {**payload, "action": "deleted"}, guid=guid)

    assert [first.status_code, again.status_code, other.status_code] == [202, 202, 202]
    assert first.json() == {"status": "accepted"}
    assert again.json() == other.json() == {"status": "known"}
    assert await world.totals() == before


@pytest.mark.parametrize("wrong", ["", "sha256=", "sha256=" + "0" * 64, "sha1=abc", "ä"])
async def test_a_wrong_signature_changes_nothing(world: World, wrong: str) -> None:
    before = await world.totals()
    headers = {"X-GitHub-Event": "push", "X-GitHub-Delivery": str(new_uuid())}
    if wrong:
        headers["X-Hub-Signature-256"] = wrong
    async with world.browser() as http:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        answer = await http.post("/webhooks/github", content=b"{}", headers=raw)

    problem(answer, 401, "unauthenticated")
    assert await world.totals() == before


@pytest.mark.parametrize(
    "body", [b"", b"garbage", b"[]", b'{"installation": {"id": "x"}}', b'{"a": "\\u0000"}']
)
async def test_what_is_not_a_webhook_is_400(world: World, body: bytes) -> None:
    before = await world.totals()

    problem(await deliver(world, body), 400, "invalid_input")
    assert await world.totals() == before


async def test_a_webhook_without_a_name_is_400(world: World) -> None:
    problem(await deliver(world, {}, X_GitHub_Delivery=""), 400, "invalid_input")
    problem(await deliver(world, {}, event=""), 400, "invalid_input")


async def test_a_webhook_has_at_most_25_mib(world: World) -> None:
    large = b'{"a": "' + b"x" * (25 * 1024 * 1024) + b'"}'
    problem(await deliver(world, large), 413, "too_large")
    fits = b'{"a": "' + b"x" * (3 * 1024 * 1024) + b'"}'
    assert (await deliver(world, fits, event="ping")).status_code == 200


async def test_a_ping_is_answered(world: World) -> None:
    before = await world.totals()
    answer = await deliver(world, {"zen": "Keep it."}, event="ping")

    assert (answer.status_code, answer.json()) == (200, {"status": "pong"})
    assert await world.totals() == before


async def test_deliveries_find_their_way(acme: Acme) -> None:
    world, org = acme.world, int(acme.id)
    ours = f"org/{acme.id}/github"
    ways: list[tuple[dict[str, Any], str]] = [
        ({"installation": {"id": await installation(acme)}}, ours),
        ({"installation": {"id": 987654}, "organization": {"id": org}}, ours),
        ({"organization": {"id": org}}, ours),
        ({"repository": {"id": 1, "owner": {"id": org}}}, ours),
        ({"installation": {"id": 987654}}, "app/github"),
        ({"organization": {"id": 987654}, "repository": {"owner": {"id": 55}}}, "app/github"),
        ({}, "app/github"),
    ]
    for payload, target in ways:
        guid = str(new_uuid())
        answer = await deliver(world, payload, guid=guid)
        assert answer.status_code == 202
        assert await keeper(world, guid) == target


async def test_a_push_on_github_arrives(acme: Acme) -> None:
    """The whole way: the forge signs and delivers, the repository knows the branch."""
    world = acme.world
    async with httpx.AsyncClient(trust_env=False) as http:
        admin = {"X-Forge-Admin": world.forge.admin_secret}
        made = await http.post(f"{world.forge.url}/-/users/ada/tokens", headers=admin, json={})
        made.raise_for_status()
        token = {"Authorization": f"Bearer {made.json()['token']}"}
        base = f"{world.forge.api_url}/repos/acme/demo/git"
        head = (await http.get(f"{base}/ref/heads/main", headers=token)).json()
        sha = head["object"]["sha"]
        new = {"ref": "refs/heads/from/github", "sha": sha}
        (await http.post(f"{base}/refs", headers=token, json=new)).raise_for_status()

    async def arrived() -> bool:
        place = f"{acme.place}/repositories/{acme.repository}/branches"
        branches = {b["name"]: b["sha"] for b in (await acme.ada.get(place))["items"]}
        return branches.get("from/github") == sha

    await eventually(arrived)
    problem(
        await acme.ada.call(
            "POST",
            f"{acme.place}/tasks",
            {"repository_id": acme.repository, "prompt": "x", "branch": "from/github",
             "agent": "scripted"},
        ),
        409,
        "branch_taken",
    )  # fmt: skip
