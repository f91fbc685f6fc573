"""The three applications: the API, live updates, GitHub's webhooks.

Each carries full paths, so it does not matter under which prefix a proxy hangs it.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse

from foundry_ray import __version__
from foundry_ray.serve import errors, streams, webhooks
from foundry_ray.serve.docs import documentation
from foundry_ray.serve.edge import JSON_LIMIT, WEBHOOK_LIMIT, Edge
from foundry_ray.serve.routes import (
    app,
    commands,
    health,
    organization,
    pages,
    repositories,
    sessions,
    sign_in,
    tasks,
)
from foundry_ray.serve.services import Services

__all__ = ["Services", "api_app", "streams_app", "webhooks_app"]

API_ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    pages.router,
    sign_in.router,
    app.router,
    organization.router,
    repositories.router,
    tasks.router,
    sessions.of_task,
    sessions.router,
    commands.router,
)
_ELSEWHERE: tuple[APIRouter, ...] = (streams.router, webhooks.router)


def api_app(services: Services) -> FastAPI:
    """Return everything but the streams and the webhooks."""
    made = _application(services, API_ROUTERS, JSON_LIMIT)
    described = openapi(made)

    @made.get("/api/openapi.json", include_in_schema=False)
    async def openapi_json() -> JSONResponse:
        return JSONResponse(described)

    @made.get("/api/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return documentation(described)

    return made


def streams_app(services: Services) -> FastAPI:
    """Return the live updates: an open stream holds a request slot, so they stand apart."""
    made = _application(services, (streams.router,), JSON_LIMIT)
    made.state.hub = streams.Hub(services.database, services.clock, services.install_url)
    return made


def webhooks_app(services: Services) -> FastAPI:
    """Return the door for GitHub's webhooks."""
    return _application(services, (webhooks.router,), WEBHOOK_LIMIT)


def _application(services: Services, routers: tuple[APIRouter, ...], limit: int) -> FastAPI:
    made = FastAPI(
        title="Foundry",
        version=__version__,
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    made.state.services = services
    errors.install(made)
    for router in routers:
        made.include_router(router)
    made.add_middleware(Edge, limit=limit)
    return made


def openapi(api: FastAPI) -> dict[str, Any]:
    """Return the description of all three applications: what is served, and nothing else."""
    whole = FastAPI(redirect_slashes=False, openapi_url=None)
    for router in (*API_ROUTERS, *_ELSEWHERE):
        whole.include_router(router)
    described = get_openapi(
        title=api.title,
        version=api.version,
        summary="Runs coding agents for a team; no work is ever lost.",
        routes=whole.routes,
    )
    parts = described.setdefault("components", {})
    problem = errors.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    parts.setdefault("schemas", {})["Problem"] = problem
    parts["securitySchemes"] = {
        "session": {"type": "apiKey", "in": "cookie", "name": "foundry_session"},
        "token": {"type": "http", "scheme": "bearer"},
    }
    for path in described["paths"].values():
        for operation in path.values():
            # FastAPI's own shape of 422 is not ours.
            answers = operation["responses"]
            if "422" in answers and "application/json" in answers["422"].get("content", {}):
                answers.update(_plain(errors.documented(422)))
            if "401" in answers:
                operation["security"] = [{"session": []}, {"token": []}]
    for unused in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(unused, None)
    return described


def _plain(responses: dict[int | str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(status): said for status, said in responses.items() if status != 503}
