"""What is described is served, and what is served is described; and is Foundry ready?"""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from foundry_ray.serve.app import Services, api_app, streams_app, webhooks_app
from foundry_ray.serve.models import Readiness
from foundry_ray.store.engine import Database
from tests.helpers import eventually
from tests.integration.serve.world import Person, World, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")
ROOT = Path(__file__).resolve().parents[3]


def served(*apps: FastAPI) -> set[tuple[str, str]]:
    """Return every route of the applications, also those of included routers."""
    found = set()
    for app in apps:
        for route in app.routes:
            routes = getattr(route, "effective_candidates", None)
            for one in routes() if callable(routes) else [route]:
                path = getattr(one, "path", "")
                found |= {(method, path) for method in getattr(one, "methods", None) or ()}
    return found


async def test_every_route_is_described_and_no_other(world: World, ada: Person) -> None:
    described = await ada.get("/api/openapi.json")

    documented = {
        (method.upper(), path)
        for path, operations in described["paths"].items()
        for method in operations
    }
    apps = [make(world.services) for make in (api_app, streams_app, webhooks_app)]
    itself = {("GET", "/api/openapi.json"), ("GET", "/api/docs")}
    assert documented == served(*apps) - itself - {("HEAD", p) for _, p in documented | itself}
    assert ("GET", "/api/stream") in documented
    assert ("POST", "/webhooks/github") in documented


async def test_every_operation_says_what_it_does_and_how_it_fails(ada: Person) -> None:
    described = await ada.get("/api/openapi.json")

    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            name = f"{method} {path}"
            assert operation["description"], name
            if path.startswith("/api/organizations"):
                assert {"401", "404", "503"} <= operation["responses"].keys(), name
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and path != "/readyz":
                    assert list(answer["content"]) == ["application/problem+json"], name


async def test_the_reference_names_every_path(ada: Person) -> None:
    described = await ada.get("/api/openapi.json")
    text = (ROOT / "docs/reference/api.md").read_text()

    for path in described["paths"]:
        own = re.sub(r"^/api/organizations/\{org\}(/repositories|/tasks)?", "", path)
        last = own.rsplit("/", 1)[-1] if "{" in own else own
        assert f"/{last.lstrip('/')}" in text or last.startswith("{"), path


async def test_the_description_can_be_read_without_other_sites(ada: Person) -> None:
    page = await ada.call("GET", "/api/docs")

    assert "/api/organizations/{org}/tasks" in page.text
    assert "<script" not in page.text
    assert "//" not in re.sub(r"https?://127[^\s\"]*", "", page.text).replace("</", "")


async def test_ready_says_what_was_looked_at(world: World) -> None:
    async with world.browser() as http:

        async def ready() -> httpx.Response | None:
            answer = await http.get("/readyz")
            return answer if answer.status_code == 200 else None

        answer = await eventually(ready)
        up = await http.get("/healthz")

    assert answer is not None
    said = Readiness.model_validate(answer.json())
    assert said.checks == {"postgres": "ok", "migrations": "ok", "app_actor": "ok"}
    assert up.json() == {"status": "ok"}


async def test_without_its_store_foundry_says_to_try_again(world: World) -> None:
    nowhere = Database("postgresql://nobody@127.0.0.1:9/none", size=1)
    nowhere._pool.timeout = 0.2
    await nowhere.open()
    own = world.services

    async def away() -> str:
        return "no node is alive"

    services = Services(own.settings, nowhere, own.client, own.outside, own.clock, {"ray": away})
    transport = httpx.ASGITransport(api_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://foundry") as http:
        ready = await http.get("/readyz")
        cookie = {"Cookie": "foundry_session=some"}
        answer = await http.get("/api/organizations/1", headers=cookie)
        up = await http.get("/healthz")
    await nowhere.close()

    said = Readiness.model_validate(ready.json())
    assert ready.status_code == 503
    assert said.status == "not_ready"
    assert said.checks["ray"] == "no node is alive"
    assert said.checks["postgres"] != "ok"
    problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["retryable"] is True
    assert up.status_code == 200


async def test_what_nobody_expected_is_500_and_keeps_its_secrets(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = api_app(world.services)

    @app.get("/api/broken")
    async def broken() -> None:
        raise RuntimeError("a password")

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://foundry") as http:
        answer = await http.get("/api/broken")

    said = problem(answer, 500, "internal")
    assert "password" not in str(said)


async def test_without_a_github_app_nobody_can_sign_in_and_it_says_why(world: World) -> None:
    own = world.services
    bare = own.settings.model_copy(update={"github_app_id": None, "github_webhook_secret": None})
    outside = type(own.outside)(
        settings=bare,
        clock=own.outside.clock,
        sealer=own.outside.sealer,
        github=None,
        providers=own.outside.providers,
    )
    services = Services(bare, own.database, own.client, outside, own.clock)
    for app, method, path in (
        (api_app(services), "GET", "/api/auth/github/login"),
        (webhooks_app(services), "POST", "/webhooks/github"),
    ):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://foundry") as http:
            said = problem(await http.request(method, path), 503, "unavailable")
            assert "FOUNDRY_GITHUB" in said["hint"]
