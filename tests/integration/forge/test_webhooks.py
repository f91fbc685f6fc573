"""Webhooks: signed, recorded, redelivered; needs forge processes and a receiver."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from foundry_ray.testing.forge.process import ForgeProcess
from tests.helpers import eventually

from .world import Receiver, World, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
async def told(own_forge: ForgeProcess, receiver: Receiver) -> AsyncIterator[World]:
    """A world whose webhooks go to the receiver, with its first event sent and forgotten."""
    world = World(own_forge)
    await _settled(world)
    answered = world.app("PATCH", "/app/hook/config", json={"url": receiver.url})
    assert answered.json()["url"] == receiver.url
    yield world
    world.close()


async def _settled(world: World) -> None:
    await eventually(lambda: world.admin("GET", "/state")["deliveries"]["waiting"] == 0)


async def test_a_push_and_a_pull_request_are_told_and_signed(
    told: World, receiver: Receiver, tmp_path: Path
) -> None:
    made = told.repository()
    tree = told.checkout(made, told.personal_token("ben"), tmp_path / "tree")
    sha = await asyncio.to_thread(tree.push, "task/one", {"b.txt": "two\n"})
    repo = told.github(told.personal_token("ben")).get_repo(made["full_name"])
    pull = await asyncio.to_thread(
        repo.create_pull, base="main", head="task/one", title="One", body=""
    )
    await asyncio.to_thread(pull.merge)
    await eventually(lambda: receiver.of("pull_request", "closed"))
    await _settled(told)

    secret = told.settings["github_webhook_secret"].encode()
    for one in receiver.arrivals:
        signature = hmac.new(secret, one.raw, hashlib.sha256).hexdigest()
        assert one.headers["X-Hub-Signature-256"] == f"sha256={signature}"
        assert one.headers["X-GitHub-Hook-Installation-Target-ID"] == str(
            told.settings["github_app_id"]
        )
        assert one.payload["installation"]["id"] == told.installation_id()
    assert len({one.guid for one in receiver.arrivals}) == len(receiver.arrivals)
    assert receiver.of("create")[0].payload["ref"] == "task/one"
    by_ref = {one.payload["ref"]: one.payload for one in receiver.of("push")}
    push = by_ref["refs/heads/task/one"]
    assert (push["after"], push["created"], push["forced"]) == (sha, True, False)
    assert push["commits"][0]["added"] == ["b.txt"]
    assert push["sender"]["login"] == "ben"
    assert push["organization"]["login"] == "acme"
    assert isinstance(push["repository"]["pushed_at"], int)
    closed = receiver.of("pull_request", "closed")[0].payload["pull_request"]
    assert closed["merged"] is True
    assert closed["merge_commit_sha"] == by_ref["refs/heads/main"]["after"]
    assert receiver.of("repository", "created")
    assert receiver.of("installation_repositories", "added")


async def test_changes_of_a_pull_request_are_told(
    told: World, receiver: Receiver, tmp_path: Path
) -> None:
    made = told.repository()
    tree = told.checkout(made, told.personal_token("ben"), tmp_path / "tree")
    await asyncio.to_thread(tree.push, "side", {"b.txt": "two\n"})
    repo = told.github(told.personal_token("ben")).get_repo(made["full_name"])
    pull = await asyncio.to_thread(repo.create_pull, base="main", head="side", title="One", body="")
    await asyncio.to_thread(pull.edit, title="Two")
    await asyncio.to_thread(pull.edit, state="closed")
    await asyncio.to_thread(pull.edit, state="open")
    await asyncio.to_thread(tree.push, "side", {"b.txt": "three\n"}, start=None)
    await asyncio.to_thread(tree.git, "push", "-q", "origin", ":side")
    await eventually(lambda: len(receiver.of("pull_request", "closed")) == 2)
    await _settled(told)
    actions = sorted(one.payload["action"] for one in receiver.of("pull_request"))
    assert actions == ["closed", "closed", "edited", "opened", "reopened", "synchronize"]
    assert receiver.of("pull_request", "edited")[0].payload["changes"] == {"title": {"from": "One"}}
    assert receiver.of("delete")[0].payload["ref"] == "side"


async def test_members_come_and_go(told: World, receiver: Receiver) -> None:
    told.admin("PUT", "/orgs/acme/members/eve", {"role": "member"})
    told.admin("DELETE", "/orgs/acme/members/eve")
    await eventually(lambda: len(receiver.of("organization")) == 2)
    assert {one.payload["action"] for one in receiver.of("organization")} == {
        "member_added",
        "member_removed",
    }


async def test_a_redelivery_keeps_guid_and_bytes(told: World, receiver: Receiver) -> None:
    receiver.status = 500
    told.repository()
    await eventually(lambda: len(receiver.arrivals) == 2)
    await _settled(told)
    failed = told.app("GET", "/app/hook/deliveries").json()[0]
    assert (failed["status_code"], failed["redelivery"]) == (500, False)
    assert failed["status"] != "OK"

    receiver.status = 202
    path = f"/app/hook/deliveries/{failed['id']}"
    assert told.app("POST", f"{path}/attempts").status_code == 202
    await eventually(lambda: len(receiver.arrivals) == 3)
    await _settled(told)

    first = next(one for one in receiver.arrivals if one.guid == failed["guid"])
    assert (receiver.arrivals[2].guid, receiver.arrivals[2].raw) == (first.guid, first.raw)
    newest = told.app("GET", "/app/hook/deliveries").json()[0]
    assert (newest["guid"], newest["redelivery"], newest["status"]) == (first.guid, True, "OK")
    detail = told.app("GET", f"/app/hook/deliveries/{newest['id']}").json()
    assert detail["request"]["payload"] == first.payload
    assert detail["request"]["headers"]["X-GitHub-Delivery"] == first.guid
    assert detail["response"]["payload"] == "ok"


async def test_an_absent_receiver_is_a_failed_delivery(told: World, receiver: Receiver) -> None:
    told.admin("POST", "/deliveries/pause")
    told.repository()
    await _settled(told)
    assert receiver.arrivals == []
    told.admin("POST", "/deliveries/resume")
    told.app("PATCH", "/app/hook/config", json={"url": "http://127.0.0.1:9/nobody"})
    told.repository()
    await _settled(told)
    listed = told.app("GET", "/app/hook/deliveries").json()
    # The first was recorded before there was any address.
    assert [one["status"] for one in listed] == ["failed to connect to host"] * 5
    assert listed[-1]["event"] == "installation"


async def test_deliveries_are_read_by_cursor(told: World) -> None:
    for _ in range(2):
        told.repository()
    await _settled(told)
    seen, path = [], "/app/hook/deliveries?per_page=2"
    while path:
        answered = told.app("GET", path)
        seen += [one["id"] for one in answered.json()]
        following = answered.links.get("next", {}).get("url", "")
        path = following.removeprefix(told.forge.api_url)
    assert len(seen) == 5
    assert seen == sorted(seen, reverse=True)


async def test_a_ping_tells_the_app(told: World, receiver: Receiver) -> None:
    assert told.app("POST", "/app/hook/pings").status_code == 204
    await eventually(lambda: receiver.of("ping"))
    assert receiver.of("ping")[0].payload["hook"]["app_id"] == told.settings["github_app_id"]
