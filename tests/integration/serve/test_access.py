"""Who may do what: sign-in, sessions, tokens, members and strangers."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from foundry_ray.serve import models
from tests.integration.serve.world import Acme, Person, World, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")


def members_only(acme: Acme, task: dict[str, Any]) -> list[tuple[str, str]]:
    """Return every route of an organization."""
    place = acme.place
    tasks, repos = f"{place}/tasks", f"{place}/repositories"
    one = f"{tasks}/{task['id']}"
    session = f"{one}/sessions/{task['active_session_id']}"
    return [
        ("GET", place),
        ("POST", f"{place}/github/sync"),
        ("GET", f"{place}/runtime-issues"),
        ("DELETE", f"{place}/runtime-issues"),
        ("DELETE", f"{place}/runtime-issues/x"),
        ("GET", f"{place}/history"),
        ("GET", repos),
        ("GET", f"{repos}/{acme.repository}"),
        ("GET", f"{repos}/{acme.repository}/branches"),
        ("GET", tasks),
        ("POST", tasks),
        ("GET", one),
        ("GET", f"{one}/changes"),
        ("GET", f"{one}/diff?path=x"),
        *(("POST", f"{one}/{what}") for what in ("retry", "push", "archive", "kill")),
        ("PUT", f"{one}/pull-request"),
        ("POST", f"{one}/sessions"),
        ("GET", session),
        ("GET", f"{session}/events"),
        ("POST", f"{session}/messages"),
        ("POST", f"{session}/stop"),
        ("POST", f"{session}/permissions/1"),
    ]


BODIES = {
    "tasks": {"prompt": "x"},
    "sessions": {},
    "messages": {"text": "x"},
    "pull-request": {},
}


def body_of(acme: Acme, path: str) -> Any:
    last = path.rsplit("/", 1)[-1]
    if last == "1":
        return {"option_id": "x"}
    found = BODIES.get(last)
    return {**found, "repository_id": acme.repository} if last == "tasks" and found else found


async def test_strangers_find_nothing_and_anonymous_callers_are_asked_to_sign_in(
    world: World, acme: Acme, eve: Person
) -> None:
    task = await acme.create("say private")
    await acme.session(task).open()
    before = await world.totals()
    async with world.browser() as nobody:
        for method, path in members_only(acme, task):
            body = body_of(acme, path) if method in ("POST", "PUT") else None
            problem(await eve.call(method, path, body), 404, "not_found")
            answer = await nobody.request(method, path, json=body)
            problem(answer, 401, "unauthenticated")
            assert "Bearer" in answer.headers["www-authenticate"]
    assert await world.totals() == before


async def test_the_list_above_is_every_route_of_an_organization(acme: Acme) -> None:
    described = await acme.ada.get("/api/openapi.json")
    served = {
        (method.upper(), path)
        for path, operations in described["paths"].items()
        for method in operations
        if path.startswith("/api/organizations")
    }

    listed = members_only(acme, {"id": "{task}", "active_session_id": "{session}"})
    named = {
        (
            method,
            path.split("?")[0]
            .replace(acme.place, "/api/organizations/{org}")
            .replace(f"repositories/{acme.repository}", "repositories/{repo}")
            .replace("issues/x", "issues/{id}")
            .replace("permissions/1", "permissions/{id}"),
        )
        for method, path in listed
    }
    assert named == served


async def test_members_may(acme: Acme, ben: Person) -> None:
    task = await acme.create("say shared")

    assert (await ben.get(f"{acme.place}/tasks/{task['id']}"))["id"] == task["id"]
    assert (await ben.call("POST", f"{acme.place}/tasks/{task['id']}/kill")).status_code == 202


async def test_a_foreign_page_cannot_use_the_cookie(acme: Acme) -> None:
    path = f"{acme.place}/github/sync"
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Referer": "https://evil.example/page"},
        {},
    ):
        answer = await acme.ada.http.post(path, headers=headers)
        problem(answer, 403, "permission_denied")
    own = {"Referer": f"{acme.world.settings.public_url}/"}
    assert (await acme.ada.http.post(path, headers=own)).status_code == 202


async def test_the_cookie_is_out_of_reach_of_scripts(world: World) -> None:
    person = Person(world, world.browser())
    pages = []
    page = await person.http.get("/api/auth/github/login", params={"login": "ben"})
    while page.is_redirect:
        pages.append(page)
        page = await person.http.get(page.headers["location"])
    cookies = [c for one in pages for c in one.headers.get_list("set-cookie")]
    [session] = [one for one in cookies if one.startswith("foundry_session=")]

    assert "HttpOnly" in session
    assert "SameSite=lax" in session
    assert "Secure" not in session  # on loopback there is no TLS
    assert page.url.path == "/"
    assert "ben" in page.text
    await person.http.aclose()


async def test_signing_in_leads_back_to_where_it_began(world: World) -> None:
    person = Person(world, world.browser())
    page = await person.sign_in("ben", return_to="/api/app?x=1")

    assert str(page.url).endswith("/api/app?x=1")
    assert page.json()["user"]["login"] == "ben"
    await person.http.aclose()


@pytest.mark.parametrize(
    "path", ["https://evil.example", "//evil.example", "/\\evil.example", "", "x", "/a\r\nb: c"]
)
async def test_signing_in_leads_nowhere_else(world: World, path: str) -> None:
    async with world.browser() as http:
        answer = await http.get("/api/auth/github/login", params={"return_to": path})
    problem(answer, 422, "invalid_input")


async def test_a_sign_in_counts_once_and_in_its_own_browser(world: World) -> None:
    async with world.browser() as mine, world.browser() as other:
        page = await mine.get("/api/auth/github/login", params={"login": "ben"})
        back = (await mine.get(page.headers["location"])).headers["location"]
        stolen = await other.get(back)
        taken = await mine.get(back)
        again = await mine.get(back)
        state = parse_qs(urlsplit(back).query)["state"][0]
        denied = await other.get(
            "/api/auth/github/callback", params={"error": "access_denied", "state": state}
        )
        told = await other.get(denied.headers["location"])

    assert stolen.headers["location"] == "/signin?error=invalid_input"
    assert "foundry_session" not in stolen.headers.get("set-cookie", "")
    assert taken.headers["location"] == "/"
    assert again.headers["location"] == "/signin?error=invalid_input"
    assert denied.headers["location"] == "/signin?error=permission_denied"
    assert "permission_denied" in told.text


async def test_a_code_that_github_refuses_is_said(world: World) -> None:
    async with world.browser() as http:
        page = await http.get("/api/auth/github/login")
        state = parse_qs(urlsplit(page.headers["location"]).query)["state"][0]
        answer = await http.get(
            "/api/auth/github/callback", params={"code": "wrong", "state": state}
        )

    assert answer.headers["location"].startswith("/signin?error=")


async def test_pages_escape_what_they_show(world: World) -> None:
    async with world.browser() as http:
        page = await http.get("/signin", params={"error": "<script>alert(1)</script>"})
        home = await http.get("/")

    assert "<script>" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert 'href="/signin"' in home.text


async def test_a_token_acts_for_its_owner_until_it_is_deleted(
    world: World, acme: Acme, ben: Person
) -> None:
    made = await ben.call("POST", "/api/app/tokens", {"name": "laptop", "expires_in_days": 1})
    token = models.NewToken.model_validate(made.json())
    bearer = {"Authorization": f"Bearer {token.token}"}
    listed = await ben.get("/api/app/tokens")
    async with world.browser() as http:
        seen = await http.get("/api/app", headers=bearer)
        # No cookie travels, so no other site can use it: no origin is asked for.
        sync = await http.post(f"{acme.place}/github/sync", headers=bearer)
        cookie = await http.get("/api/app", headers={"Cookie": f"foundry_session={token.token}"})
        foreign = await acme.ada.call("DELETE", f"/api/app/tokens/{token.id}")
        gone = await ben.call("DELETE", f"/api/app/tokens/{token.id}", idempotency_key="gone")
        again = await ben.call("DELETE", f"/api/app/tokens/{token.id}", idempotency_key="gone")
        dead = await http.get("/api/app", headers=bearer)

    assert made.status_code == 201
    assert token.token.startswith("fdy_")
    assert token.token not in str(listed)
    models.Items[models.Token].model_validate(listed)
    assert seen.json()["user"]["login"] == "ben"
    assert sync.status_code == 202
    assert cookie.json()["auth"]["status"] == "signed_out"
    problem(foreign, 404, "not_found")
    assert (gone.status_code, again.status_code) == (204, 204)
    problem(dead, 401, "unauthenticated")


async def test_a_token_is_shown_once(ben: Person) -> None:
    body = {"name": "once"}
    first = await ben.call("POST", "/api/app/tokens", body, idempotency_key="once")
    second = await ben.call("POST", "/api/app/tokens", body, idempotency_key="once")

    assert first.status_code == 201
    problem(second, 409, "already_created")
    names = [one["name"] for one in (await ben.get("/api/app/tokens"))["items"]]
    assert names.count("once") == 1


@pytest.mark.parametrize("value", ["Bearer", "Bearer wrong", "Basic YTpi", "fdy_x"])
async def test_a_worthless_token_is_never_anonymous(world: World, value: str) -> None:
    async with world.browser() as http:
        answer = await http.get("/api/app", headers={"Authorization": value})
    problem(answer, 401, "unauthenticated")


async def test_a_command_is_shown_to_who_gave_it_only(acme: Acme, ben: Person, eve: Person) -> None:
    task = await acme.create("hang")
    talk = acme.session(task)
    await talk.open()
    late = (await acme.ada.call("POST", f"{talk.place}/stop")).json()

    pending = models.CommandState.model_validate(await acme.ada.get(late["url"]))
    assert pending.state == "pending"
    for other in (ben, eve):
        problem(await other.call("GET", late["url"]), 404, "not_found")
    async with acme.world.browser() as nobody:
        problem(await nobody.get(late["url"]), 401, "unauthenticated")
    await talk.end()


async def test_a_refused_command_keeps_its_problem(acme: Acme) -> None:
    task = await acme.create("say refused")
    await acme.ada.call("POST", f"{acme.place}/tasks/{task['id']}/push")
    [row] = await acme.world.fetch(
        "SELECT command_id FROM rt_inbox_seen WHERE scope LIKE '%%/push%%' AND scope LIKE %s",
        (f"%{task['id']}%",),
    )

    state = models.CommandState.model_validate(
        await acme.ada.get(f"/api/commands/{row['command_id']}")
    )
    assert (state.state, state.status) == ("refused", 409)
    assert state.answer["code"] == "wrong_state"


async def test_the_same_key_gives_the_same_answer(acme: Acme) -> None:
    place = f"{acme.place}/tasks"
    body = {"repository_id": acme.repository, "prompt": "say key", "agent": "scripted"}

    async def ask(prompt: str, key: str) -> httpx.Response:
        return await acme.ada.call("POST", place, {**body, "prompt": prompt}, idempotency_key=key)

    first, second = await ask("say key", "k1"), await ask("say key", "k1")
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    problem(await ask("say other", "k1"), 409, "idempotency_conflict")
    problem(await ask("say key", "k" * 201), 422, "invalid_input")
    assert (await ask("say key", "k2")).json()["id"] != first.json()["id"]


async def test_a_repeated_command_gives_its_stored_answer(acme: Acme) -> None:
    task = await acme.create("say twice")
    path = f"{acme.place}/tasks/{task['id']}/archive"
    first = await acme.ada.call("POST", path, idempotency_key="twice")
    await acme.ada.call("POST", f"{acme.place}/tasks/{task['id']}/kill")
    second = await acme.ada.call("POST", path, idempotency_key="twice")

    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    assert first.json()["status"] == "archiving"


async def test_a_repeated_refusal_is_the_same_refusal(acme: Acme) -> None:
    body = {"repository_id": acme.repository, "prompt": " ", "agent": "scripted"}
    for _ in range(2):
        answer = await acme.ada.call("POST", f"{acme.place}/tasks", body, idempotency_key="refused")
        problem(answer, 422, "prompt_empty")
