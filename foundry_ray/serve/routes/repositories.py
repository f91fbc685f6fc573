"""The repositories of an organization, and their branches."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from foundry_ray.core.errors import NotFound
from foundry_ray.serve import views
from foundry_ray.serve.auth import Member
from foundry_ray.serve.errors import documented
from foundry_ray.serve.models import Branch, Items, Page, RepositorySummary
from foundry_ray.serve.services import services_of
from foundry_ray.serve.shapes import Number

router = APIRouter(prefix="/api/organizations/{org}/repositories", tags=["repositories"])


@router.get("", response_model=Page[RepositorySummary], responses=documented(401, 404))
async def list_repositories(request: Request, org: Number, member: Member) -> JSONResponse:
    """Return the repositories that the installation can see, by name, all on one page."""
    async with services_of(request).database.transaction() as transaction:
        found = await views.repositories(transaction, org)
    return JSONResponse({"items": found, "next_cursor": None})


@router.get("/{repo}", response_model=RepositorySummary, responses=documented(401, 404))
async def get_repository(
    request: Request, org: Number, repo: Number, member: Member
) -> JSONResponse:
    """Return one repository."""
    async with services_of(request).database.transaction() as transaction:
        found = await views.repositories(transaction, org, repo)
    if not found:
        raise NotFound
    return JSONResponse(found[0])


@router.get("/{repo}/branches", response_model=Items[Branch], responses=documented(401, 404))
async def list_branches(
    request: Request, org: Number, repo: Number, member: Member
) -> JSONResponse:
    """Return the branches on the remote and those that tasks have reserved."""
    async with services_of(request).database.transaction() as transaction:
        if not await views.repositories(transaction, org, repo):
            raise NotFound
        return JSONResponse({"items": await views.branches(transaction, org, repo)})
