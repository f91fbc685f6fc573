"""Live updates: nothing is lost and nothing comes twice, whatever happens between."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse

from foundry_ray.actors.organization.messages import ClearIssues
from foundry_ray.core import keys
from foundry_ray.core.messages import SYSTEM
from foundry_ray.runtime.feed import Cursor
from foundry_ray.serve.streams import cursor as cursors
from foundry_ray.serve.streams import hub as hubs
from foundry_ray.serve.streams import stream as streams
from foundry_ray.serve.streams.cursor import Place
from foundry_ray.serve.streams.hub import Hub
from tests.helpers import eventually
from tests.integration.serve.world import Acme, Person, Stream, Talk, World, note, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")

INSERT = (
    "INSERT INTO rt_feed (topic, kind, item_id, item_revision, data, at)"
    " VALUES (%s, 'probe', %s, 1, %s::jsonb, now())"
)


def hub(world: World) -> Hub:
    found = world.streams.state.hub
    assert isinstance(found, Hub)
    return found


def probes(data: dict[str, Any]) -> list[str]:
    return [item["id"] for item in data.get("items", []) if item["kind"] == "probe"]


async def publish(world: World, topic: str, *ids: str, data: str = "{}") -> None:
    async with world.database.transaction() as transaction:
        for one in ids:
            await transaction.execute(INSERT, (topic, one, data))
    world.hinter.hint()


async def open_talk(acme: Acme, prompt: str) -> Talk:
    talk = acme.session(await acme.create(prompt))
    await talk.open()
    return talk


async def test_each_topic_begins_with_what_its_get_answers(acme: Acme) -> None:
    talk = await open_talk(acme, "say begin")
    topics = (f"organization:{acme.id}", f"task:{acme.id}/{talk.task['id']}", talk.topic)

    async with acme.ada.stream(*topics) as stream:
        seen = dict([(await stream.next())[1].values() for _ in topics])

    assert seen[topics[0]] == await acme.ada.get(acme.place)
    assert seen[topics[1]] == await acme.ada.get(f"{acme.place}/tasks/{talk.task['id']}")
    assert seen[topics[2]] == await acme.ada.get(talk.place)


async def test_changes_come_as_whole_items(acme: Acme) -> None:
    topic = f"organization:{acme.id}"
    async with acme.ada.stream(topic) as stream:
        kind, _ = await stream.next()
        task = await acme.create("say appears", title="Appears")

        async def item() -> dict[str, Any]:
            while True:
                data = await stream.until("update")
                for one in data["items"]:
                    if one["kind"] == "task" and one["id"] == task["id"] and one["revision"] > 0:
                        return dict(one)

        found = await item()

    assert kind == "snapshot"
    summary = (await acme.ada.get(f"{acme.place}/tasks?q=Appears"))["items"][0]
    assert found["data"].keys() == summary.keys()
    assert found["data"]["title"] == "Appears"


async def test_composed_items_look_like_those_of_the_snapshot(acme: Acme) -> None:
    topic = f"organization:{acme.id}"
    client = acme.world.services.client
    seen: dict[str, dict[str, Any]] = {}
    async with acme.ada.stream(topic) as stream:
        _, first = await stream.next()
        answer = await acme.ada.call("POST", f"{acme.place}/github/sync")
        await client.tell(keys.organization(acme.id), ClearIssues(by=SYSTEM))
        while not {"github", "runtime"} <= seen.keys():
            data = await stream.until("update")
            seen.update({one["kind"]: one["data"] for one in data["items"]})

    assert answer.status_code == 202
    assert answer.json().keys() == first["data"]["github"].keys()
    assert seen["github"].keys() == first["data"]["github"].keys()
    assert seen["github"]["install_url"] == first["data"]["github"]["install_url"]
    assert seen["runtime"].keys() == first["data"]["runtime"].keys()


async def test_a_transcript_goes_on_exactly_after_the_snapshot(acme: Acme) -> None:
    talk = await open_talk(acme, "say goes on")
    await talk.agent(note("one"), note("two"))

    async with acme.ada.stream(talk.topic) as stream:
        _, first = await stream.next()
        await talk.agent(note("three"))
        data = await stream.until("append")

    assert first["data"]["last_index"] == 2
    assert data["topic"] == talk.topic
    assert [event["index"] for event in data["events"]] == [3]
    assert (await acme.ada.get(f"{talk.place}/events?after=2"))["items"] == data["events"]


async def test_resuming_loses_nothing_and_repeats_nothing_under_concurrent_writers(
    acme: Acme,
) -> None:
    """Eight writers with overlapping transactions; the client leaves and returns all the time."""
    talk = await open_talk(acme, "say much")
    quiet = f"task:{acme.id}/{talk.task['id']}"
    writers, each, spoken = 8, 20, 30
    async with acme.ada.stream(quiet) as stream:
        await stream.until("snapshot")
        cursor = stream.cursor

    async def write(writer: int) -> None:
        for number in range(each):
            async with acme.world.database.transaction() as transaction:
                await transaction.execute(INSERT, (quiet, f"{writer}.{number}", "{}"))
                for _ in range(writer):  # some commit long after others that began later
                    await transaction.one("SELECT 1 AS one")

    async def speak() -> None:
        for number in range(spoken):
            await talk.agent(note(str(number)))

    working = asyncio.gather(speak(), *(write(writer) for writer in range(writers)))
    got: list[str] = []
    indexes: list[int] = []
    visits = snapshots = 0
    while len(got) < writers * each or len(indexes) < spoken:
        visits += 1
        async with acme.ada.stream(quiet, talk.topic, cursor=cursor) as stream:
            for _ in range(1 + visits % 7):
                kind, data = await stream.next()
                cursor = stream.cursor
                if kind == "snapshot":
                    assert data["topic"] == talk.topic
                    snapshots += 1
                    indexes.extend(range(1, data["data"]["last_index"] + 1))
                elif kind == "append":
                    indexes.extend(event["index"] for event in data["events"])
                else:
                    got += probes(data)
                if len(got) == writers * each and len(indexes) == spoken:
                    break
    await working

    assert sorted(got) == sorted(f"{w}.{n}" for w in range(writers) for n in range(each))
    assert indexes == list(range(1, spoken + 1))
    assert snapshots == 1
    assert visits > 3


async def test_what_a_snapshot_holds_is_not_said_again(acme: Acme) -> None:
    """A change committed before the snapshot lies beyond xmin while an older one is open."""
    task = await acme.create("say once")
    topic = f"task:{acme.id}/{task['id']}"
    async with acme.world.database.transaction() as older:
        await older.execute(INSERT, (topic, "late", "{}"))
        await publish(acme.world, topic, "held")
        async with acme.ada.stream(topic) as stream:
            await stream.until("snapshot")
            cursor = stream.cursor
            await publish(acme.world, topic, "after")
    got: list[str] = []
    async with acme.ada.stream(topic, cursor=cursor) as stream:
        while "after" not in got or "late" not in got:
            got += probes(await stream.until("update"))

    assert sorted(got) == ["after", "late"]


async def test_a_topic_that_the_cursor_does_not_name_begins_with_a_snapshot(acme: Acme) -> None:
    one, two = await acme.create("say one"), await acme.create("say two")
    first, second = (f"task:{acme.id}/{task['id']}" for task in (one, two))
    async with acme.ada.stream(first) as stream:
        await stream.until("snapshot")
        cursor = stream.cursor
    await publish(acme.world, first, "missed")

    seen = []
    async with acme.ada.stream(first, second, cursor=cursor) as stream:
        while len(seen) < 2:
            kind, data = await stream.next()
            if kind == "snapshot" or probes(data):
                seen.append((kind, data["topic"]))

    assert sorted(seen) == [("snapshot", second), ("update", first)]


async def test_the_header_wins_over_the_query(acme: Acme) -> None:
    topic = f"task:{acme.id}/{(await acme.create('say header'))['id']}"
    async with acme.ada.stream(topic) as stream:
        await stream.until("snapshot")
        early = stream.cursor
        await publish(acme.world, topic, "first")
        while "first" not in probes(await stream.until("update")):
            pass
        late = stream.cursor
    await publish(acme.world, topic, "second")

    async with aconnect_sse(
        acme.ada.http,
        "GET",
        "/api/stream",
        params={"topics": topic, "last_event_id": early},
        headers={"Last-Event-ID": late},
    ) as source:
        data = await Stream(source.aiter_sse()).until("update")
    async with aconnect_sse(
        acme.ada.http, "GET", "/api/stream", params={"topics": topic, "last_event_id": early}
    ) as source:
        both: list[str] = []
        stream = Stream(source.aiter_sse())
        while len(both) < 2:
            both += probes(await stream.until("update"))

    assert probes(data) == ["second"]
    assert both == ["first", "second"]


async def test_a_cursor_older_than_the_feed_begins_again(acme: Acme) -> None:
    topic = f"task:{acme.id}/{(await acme.create('say old'))['id']}"
    place = Place(Cursor(3, 1), None, when=1)
    old = cursors.write([(cursors.name_of(topic), place)])
    other_database = cursors.write(
        [(cursors.name_of(topic), Place(Cursor(2**60, 1), None, when=2**40))]
    )

    for cursor in (old, other_database):
        async with acme.ada.stream(topic, cursor=cursor) as stream:
            kinds = [(await stream.next())[0] for _ in range(2)]
        assert kinds == ["resync", "snapshot"]


async def test_a_cursor_that_nobody_wrote_begins_with_a_snapshot(acme: Acme) -> None:
    topic = f"task:{acme.id}/{(await acme.create('say garbage'))['id']}"

    async with acme.ada.stream(topic, cursor="garbage") as stream:
        assert (await stream.next())[0] == "snapshot"


async def test_signing_out_ends_the_stream(world: World, acme: Acme) -> None:
    person = Person(world, world.browser())
    await person.sign_in("ada")
    async with person.stream(f"organization:{acme.id}") as stream:
        await stream.until("snapshot")
        out = await person.call("POST", "/api/auth/logout")
        await hub(world).recheck()

        assert out.status_code == 204
        assert await stream.until("revoked") == {"topics": [f"organization:{acme.id}"]}
        assert await stream.ended()
    problem(await person.call("GET", acme.place), 401, "unauthenticated")
    await person.http.aclose()


async def test_losing_membership_ends_the_stream(world: World, acme: Acme) -> None:
    async def admin(verb: str, path: str, body: dict[str, Any]) -> None:
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.request(
                verb,
                f"{world.forge.url}/-{path}",
                json=body,
                headers={"X-Forge-Admin": world.forge.admin_secret},
            )
            answer.raise_for_status()

    await admin("POST", "/users", {"login": "cat", "name": "Cat"})
    await admin("PUT", "/orgs/acme/members/cat", {"role": "member"})
    cat = await world.person("cat")
    await cat.get(acme.place)
    async with cat.stream(f"organization:{acme.id}") as stream:
        await stream.until("snapshot")
        await admin("DELETE", "/orgs/acme/members/cat", {})
        again = Person(world, world.browser())
        await again.sign_in("cat")
        await hub(world).recheck()
        await stream.until("revoked")
    await again.http.aclose()
    problem(await cat.call("GET", acme.place), 404, "not_found")


async def test_a_client_that_does_not_read_is_cut(
    world: World, acme: Acme, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "BUFFER", 1024 * 1024)
    topic = f"task:{acme.id}/{(await acme.create('say slow'))['id']}"
    before = len(hub(world))
    async with acme.ada.stream(topic) as stream:
        await stream.until("snapshot")
        assert len(hub(world)) == before + 1
        large = '{"text": "%s"}' % ("x" * 500_000)
        for number in range(24):
            await publish(world, topic, str(number), data=large)
        await eventually(lambda: len(hub(world)) == before)


async def test_a_quiet_stream_is_kept_open(acme: Acme, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT", 0.05)
    topic = f"task:{acme.id}/{(await acme.create('say quiet'))['id']}"
    async with acme.ada.http.stream("GET", "/api/stream", params={"topics": topic}) as answer:
        async for line in answer.aiter_lines():
            if line == ": heartbeat":
                break
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_a_lost_hint_only_delays(acme: Acme, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(hubs, "CHANNEL", "nobody_speaks_here")
    topic = f"task:{acme.id}/{(await acme.create('say lost'))['id']}"
    async with acme.ada.stream(topic) as stream:
        await stream.until("snapshot")
        await publish(acme.world, topic, "unheard")
        while "unheard" not in probes(await stream.until("update")):
            pass


async def test_clients_that_leave_at_any_moment_leave_nothing_behind(acme: Acme) -> None:
    topics = [f"task:{acme.id}/{(await acme.create('say leave'))['id']}", f"organization:{acme.id}"]
    async with acme.ada.stream(*topics) as stream:
        await stream.until("snapshot")
        cursor = stream.cursor
    where = httpx.URL(acme.world.settings.public_url)
    cookie = acme.ada.http.cookies["foundry_session"]
    request = (
        f"GET /api/stream?topics={','.join(topics)}&last_event_id={cursor} HTTP/1.1\r\n"
        f"Host: {where.netloc.decode()}\r\nCookie: foundry_session={cookie}\r\n\r\n"
    ).encode()

    async def visit(patience: int) -> None:
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(request)
        for _ in range(patience):  # so many turns of the loop, not so much time
            await asyncio.sleep(0)
        writer.transport.abort()
        del reader

    for wave in range(10):
        await asyncio.gather(*(visit(40 * number + wave) for number in range(20)))
    await eventually(lambda: len(hub(acme.world)) == 0)


async def test_the_reader_rests_when_nobody_watches(world: World) -> None:
    await eventually(lambda: len(hub(world)) == 0)

    assert await hub(world).tick() == (False, False)


async def test_only_members_may_watch_and_only_what_there_is(
    world: World, acme: Acme, eve: Person
) -> None:
    task = await acme.create("say private")
    mine = f"organization:{acme.id}"
    there = f"task:{acme.id}/{task['id']}"

    async def ask(who: httpx.AsyncClient, *topics: str) -> httpx.Response:
        return await who.get("/api/stream", params={"topics": ",".join(topics)})

    async with world.browser() as nobody:
        problem(await ask(nobody, mine), 401, "unauthenticated")
    for topic in (mine, there, f"session:{acme.id}/{task['id']}/{task['active_session_id']}"):
        problem(await ask(eve.http, topic), 404, "not_found")
    problem(await ask(acme.ada.http, mine, f"task:{acme.id}/none"), 404, "not_found")
    problem(await ask(acme.ada.http, f"session:{acme.id}/{task['id']}/none"), 404, "not_found")
    problem(await ask(acme.ada.http, "organization:999999"), 404, "not_found")
    for topic in ("", "app", f"repository:{acme.id}/1", "organization:x", f"{mine}\x00"):
        problem(await ask(acme.ada.http, topic), 422, "invalid_input")
    many = [f"task:{acme.id}/t{number}" for number in range(51)]
    problem(await ask(acme.ada.http, *many), 422, "invalid_input")
