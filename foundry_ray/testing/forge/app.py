"""The forge as a web application: pages, REST and git below one base URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foundry_ray.testing.forge import (
    admin,
    apps,
    branches,
    commits,
    git_http,
    hooks,
    merging,
    oauth,
    pages,
    pulls,
    repositories,
    users,
)
from foundry_ray.testing.forge.context import Forge
from foundry_ray.testing.forge.web import DOCUMENTATION, Call, answer, route


def build_app(forge: Forge) -> Starlette:
    """Return the application; while it runs, recorded webhooks are sent."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sending = asyncio.create_task(forge.webhooks.run())
        try:
            yield
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending

    app = Starlette(
        routes=[
            *admin.ROUTES,
            *oauth.ROUTES,
            route("GET", "", _root),
            route("GET", "/meta", _meta),
            route("GET", "/rate_limit", _rate_limit),
            *users.ROUTES,
            *apps.ROUTES,
            *hooks.ROUTES,
            *repositories.ROUTES,
            *branches.ROUTES,
            *commits.ROUTES,
            *pulls.ROUTES,
            *merging.ROUTES,
            Route("/api/v3/{rest:path}", _missing),
            *git_http.ROUTES,
            *pages.ROUTES,
        ],
        lifespan=lifespan,
    )
    app.state.forge = forge
    return app


async def _root(call: Call) -> Response:
    api = call.forge.at.api
    return answer(
        {
            "current_user_url": f"{api}/user",
            "organization_url": api + "/orgs/{org}",
            "repository_url": api + "/repos/{owner}/{repo}",
        }
    )


async def _meta(call: Call) -> Response:
    return answer({"verifiable_password_authentication": False})


async def _rate_limit(call: Call) -> Response:
    """GET the caller's limit; asking is free."""
    _, headers = call.forge.limits.count(call.principal, cost=-1)
    core = {
        name: int(headers[f"X-RateLimit-{name.title()}"])
        for name in ("limit", "remaining", "reset", "used")
    }
    return answer({"resources": {"core": core, "search": core}, "rate": core})


async def _missing(request: Request) -> Response:
    body = {"message": "Not Found", "documentation_url": DOCUMENTATION, "status": "404"}
    return JSONResponse(body, 404)
