"""One organization: its snapshot, GitHub sync, runtime issues and history."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from foundry_ray.actors.github_state.messages import SyncGitHub
from foundry_ray.actors.organization import read_models as organization
from foundry_ray.actors.organization.messages import ClearIssues
from foundry_ray.core import keys
from foundry_ray.core.errors import NotFound
from foundry_ray.serve import views
from foundry_ray.serve.auth import Member
from foundry_ray.serve.commands import Accepted, IdempotencyKey, came_before, respond, send
from foundry_ray.serve.errors import documented
from foundry_ray.serve.models import (
    Cleared,
    GitHubPart,
    HistoryItem,
    Items,
    Organization,
    Page,
    RuntimeIssue,
)
from foundry_ray.serve.services import services_of
from foundry_ray.serve.shapes import Id, Limit, Number, PageCursor, read_page_cursor

router = APIRouter(prefix="/api/organizations/{org}", tags=["organization"])


@router.get("", response_model=Organization, responses=documented(401, 404))
async def get_organization(request: Request, org: Number, member: Member) -> JSONResponse:
    """Return the organization with everything that its pages begin with."""
    services = services_of(request)
    async with services.database.transaction(snapshot=True) as transaction:
        return JSONResponse(await views.one_organization(services, transaction, org))


@router.post(
    "/github/sync",
    status_code=202,
    response_model=GitHubPart | Accepted,
    responses=documented(401, 403, 404, 409, 429),
)
async def sync_github(
    request: Request, org: Number, member: Member, key: IdempotencyKey = None
) -> JSONResponse:
    """Read everything from GitHub again; the answer shows that it has begun."""
    answer = await send(request, member, keys.github(org), SyncGitHub(), key)
    if not answer.answered:
        return respond(answer)
    url = services_of(request).install_url(org)
    return respond(answer, {**answer.body, "install_url": url})


@router.get("/runtime-issues", response_model=Items[RuntimeIssue], responses=documented(401, 404))
async def list_issues(request: Request, org: Number, member: Member) -> JSONResponse:
    """Return the runtime issues, the latest seen first; the last resolved ones too."""
    async with services_of(request).database.transaction() as transaction:
        return JSONResponse({"items": await organization.list_issues(transaction, org)})


@router.delete(
    "/runtime-issues",
    response_model=Cleared,
    responses={202: {"model": Accepted}, **documented(401, 403, 404, 429)},
)
async def clear_issues(
    request: Request, org: Number, member: Member, key: IdempotencyKey = None
) -> JSONResponse:
    """Clear all runtime issues; history and audit say who did it."""
    command = ClearIssues(by=member.person)
    return respond(await send(request, member, keys.organization(org), command, key))


@router.delete(
    "/runtime-issues/{id}",
    response_model=Cleared,
    responses={202: {"model": Accepted}, **documented(401, 403, 404, 429)},
)
async def clear_issue(
    request: Request, org: Number, id: Id, member: Member, key: IdempotencyKey = None
) -> JSONResponse:
    """Clear one runtime issue."""
    async with services_of(request).database.transaction() as transaction:
        there = await organization.has_issue(transaction, org, id)
    if not there and not await came_before(request, member, key):
        raise NotFound("There is no such runtime issue.")
    command = ClearIssues(by=member.person, issue_id=id)
    return respond(await send(request, member, keys.organization(org), command, key))


@router.get("/history", response_model=Page[HistoryItem], responses=documented(401, 404, 422))
async def get_history(
    request: Request,
    org: Number,
    member: Member,
    repository: Annotated[str | None, Query(pattern=r"^[0-9]{1,19}$")] = None,
    task: Annotated[str | None, Query(pattern=r"^[0-9a-z][0-9a-z_-]{0,63}$")] = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> JSONResponse:
    """Return who did what and when, the newest first."""
    before = read_page_cursor(cursor)
    async with services_of(request).database.transaction() as transaction:
        found = await views.events(
            transaction, org, repository_id=repository, task_id=task, before=before, limit=limit
        )
    return JSONResponse(found)
