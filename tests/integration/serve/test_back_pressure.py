"""Nothing queues without limit: the door says 429, and what stops things still gets in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from foundry_ray.core import keys
from foundry_ray.core.ids import new_uuid
from tests.helpers import eventually
from tests.integration.serve.test_webhooks import deliver, installation
from tests.integration.serve.world import Acme, World, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")


@asynccontextmanager
async def pile(acme: Acme, target: str, number: int, *, due: bool = False) -> AsyncIterator[None]:
    """Let so many messages wait for an entity meanwhile.

    Args:
        due: They are due, and the entity does not come to them; else they failed before.
    """
    root = keys.root_of(target)
    async with acme.world.database.transaction() as transaction:
        await transaction.execute(
            "INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, attempts, due_at,"
            " created_at) SELECT %s, %s, 'pile', 1, 'pile', '{}', 1,"
            " now() + make_interval(hours => %s), now() FROM generate_series(1, %s)",
            (target, root, 0 if due else 1, number),
        )
    try:
        yield
    finally:
        async with acme.world.database.transaction() as transaction:
            await transaction.execute("DELETE FROM rt_mailbox WHERE sender = 'pile'")


async def say(acme: Acme, place: str, text: str, **headers: str) -> Any:
    return await acme.ada.call("POST", f"{place}/messages", {"text": text}, **headers)


async def kept(world: World, target: str, external_id: str) -> list[dict[str, Any]]:
    """Return what is remembered of a command, and what its clients have in the mailbox."""
    return await world.fetch(
        "SELECT command_id AS id FROM rt_inbox_seen WHERE external_id = %s UNION ALL"
        " SELECT id::text FROM rt_mailbox WHERE target = %s AND sender LIKE 'client/%%'",
        (external_id, target),
    )


async def test_a_full_mailbox_is_answered_with_429_and_keeps_nothing(acme: Acme) -> None:
    limit = acme.world.settings.mailbox_limit
    talk = acme.session(await acme.create("wait"))
    other = acme.session(await acme.create("wait, too"))
    await talk.open()
    async with pile(acme, talk.key, limit):
        for _ in range(3):
            answer = await say(acme, talk.place, "more", Idempotency_Key="again")
            said = problem(answer, 429, "busy")
            assert said["retryable"]
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert not await kept(acme.world, talk.key, "again")

        # Everybody else is served, and what stops this one gets in.
        assert (await say(acme, other.place, "hello")).status_code == 202
        stopped = await acme.ada.call("POST", f"{talk.place}/stop")
        assert stopped.status_code in (200, 202), stopped.text
    # The same key again, now that there is room: it was never used.
    assert (await say(acme, talk.place, "more", Idempotency_Key="again")).status_code == 202

    place = f"{acme.place}/tasks/{talk.task['id']}"
    async with pile(acme, acme.task_key(talk.task), limit):
        problem(await acme.ada.call("POST", f"{place}/archive"), 429, "busy")
        killed = await acme.ada.call("POST", f"{place}/kill")
        assert killed.status_code == 202, killed.text


async def test_also_what_stops_things_ends_somewhere(acme: Acme) -> None:
    talk = acme.session(await acme.create("wait"))
    await talk.open()
    async with pile(acme, talk.key, acme.world.settings.mailbox_limit * 10):
        problem(await acme.ada.call("POST", f"{talk.place}/stop"), 429, "busy")


async def test_an_organization_has_ten_times_the_room(acme: Acme, world: World) -> None:
    limit = world.settings.mailbox_limit * 10
    talk = acme.session(await acme.create("wait"))
    await talk.open()
    hook = {"installation": {"id": await installation(acme)}}
    passive = keys.sandbox(acme.id, "local", "nowhere")
    async with pile(acme, passive, limit, due=True):
        body = {"repository_id": acme.repository, "prompt": "say x", "agent": "scripted"}
        answer = await acme.ada.call("POST", f"{acme.place}/tasks", body)
        assert "organization" in problem(answer, 429, "busy")["detail"]
        problem(await say(acme, talk.place, "more"), 429, "busy")

        guid = str(new_uuid())
        assert (await deliver(world, hook, guid=guid)).status_code == 202
        handled = "SELECT 1 FROM github_state_delivery WHERE guid = %s"
        await eventually(lambda: world.fetch(handled, (guid,)))
        assert (await acme.ada.call("POST", f"{talk.place}/stop")).status_code in (200, 202)
    await eventually(lambda: acme.create("say x"))


async def test_deliveries_that_find_no_room_must_come_again(acme: Acme, world: World) -> None:
    hook = {"installation": {"id": await installation(acme)}}
    guid = str(new_uuid())
    async with pile(acme, keys.github(acme.id), world.settings.mailbox_limit * 10):
        answer = await deliver(world, hook, guid=guid)
        problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "60"
    again = await deliver(world, hook, guid=guid)
    assert (again.status_code, again.json()["status"]) == (202, "accepted")
