"""Is the process up, and can Foundry work?"""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from foundry_ray.core import keys
from foundry_ray.core.errors import FoundryError
from foundry_ray.serve.models import Health, Readiness
from foundry_ray.serve.services import Check, Services, services_of
from foundry_ray.store import migrate

router = APIRouter(tags=["health"])
CHECK_WITHIN = 5.0  # seconds


@router.get("/healthz", response_model=Health)
async def healthz() -> JSONResponse:
    """Say that the process is up."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(request: Request) -> JSONResponse:
    """Say whether Foundry can work, and what it lacks."""
    services = services_of(request)
    checks: dict[str, Check] = {
        "postgres": partial(_postgres, services),
        "migrations": partial(_migrations, services),
        "app_actor": partial(_app_actor, services),
        **services.checks,
    }
    said = await asyncio.gather(*(_within(check) for check in checks.values()))
    ready = all(one == "ok" for one in said)
    body = {
        "status": "ready" if ready else "not_ready",
        "checks": dict(zip(checks, said, strict=True)),
    }
    headers = {} if ready else {"Retry-After": "1"}
    return JSONResponse(body, status_code=200 if ready else 503, headers=headers)


async def _within(check: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_WITHIN):
            return await check()
    except TimeoutError:
        return "does not answer"
    except FoundryError as trouble:
        return trouble.code


async def _postgres(services: Services) -> str:
    async with services.database.transaction() as transaction:
        await transaction.one("SELECT 1 AS one")
    return "ok"


async def _migrations(services: Services) -> str:
    if not services.migrated:
        waiting = await asyncio.to_thread(migrate.pending, services.database.url)
        if waiting:
            return f"pending: {', '.join(waiting)}"
        services.migrated = True
    return "ok"


async def _app_actor(services: Services) -> str:
    """Look whether somebody holds the application's activation; looking wakes nobody."""
    async with services.database.transaction() as transaction:
        row = await transaction.one("SELECT host FROM rt_entity WHERE key = %s", (keys.APP,))
    return "ok" if row is not None and row["host"] is not None else "not active"
