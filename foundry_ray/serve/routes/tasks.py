"""Tasks: from a prompt to a pull request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from foundry_ray.actors.organization import read_models as organization
from foundry_ray.actors.repository.messages import CreateTask
from foundry_ray.actors.repository.read_models import TaskFilter
from foundry_ray.actors.task import read_models as task_models
from foundry_ray.actors.task.messages import Archive, Kill, Publish, Push, RetryTask
from foundry_ray.core import keys
from foundry_ray.core.errors import InvalidInput, NotFound
from foundry_ray.core.messages import Message
from foundry_ray.serve import views
from foundry_ray.serve.auth import Member, Principal
from foundry_ray.serve.commands import Accepted, IdempotencyKey, respond, send
from foundry_ray.serve.errors import documented
from foundry_ray.serve.models import Changes, Diff, Page, Task, TaskSummary
from foundry_ray.serve.services import services_of
from foundry_ray.serve.shapes import (
    Body,
    Id,
    Limit,
    Line,
    Number,
    PageCursor,
    Text,
    check_prompt,
    plain,
    read_page_cursor,
)

router = APIRouter(prefix="/api/organizations/{org}/tasks", tags=["tasks"])
DEFAULT_AGENT = "claude"
_BEGUN: dict[str, Any] = {
    "status_code": 202,
    "response_model": Task | Accepted,
}


async def _task_key(request: Request, org: Number, task: Id, member: Member) -> str:
    async with services_of(request).database.transaction() as transaction:
        return await views.task_key(transaction, org, task)


TaskKey = Annotated[str, Depends(_task_key)]
Status = Literal[
    "killed", "killing", "archived", "archiving", "error", "provisioning", "needs_you",
    "running", "ready",
]  # fmt: skip


class TaskRequest(Body):
    """What a new task is to do, and where."""

    repository_id: Annotated[str, Field(pattern=r"^[0-9]{1,19}$")]
    prompt: Text
    title: Line | None = None
    branch: Line | None = Field(None, description="The name of the task's branch.")
    on_branch: Line | None = Field(None, description="Where it begins; else the default branch.")
    agent: Line | None = None
    model: Line | None = None
    provider: Line | None = None


@router.post(
    "",
    status_code=201,
    response_model=Task,
    responses={202: {"model": Accepted}, **documented(400, 401, 403, 404, 409, 413, 422, 429)},
)
async def create_task(
    request: Request, org: Number, body: TaskRequest, member: Member, key: IdempotencyKey = None
) -> JSONResponse:
    """Make a task: the answer comes at once, in phase `queued`, with its branch reserved."""
    services = services_of(request)
    check_prompt(body.prompt)
    provider = body.provider or services.settings.sandbox_provider
    if provider not in services.outside.providers:
        known = sorted(services.outside.providers)
        raise InvalidInput("provider: there is no such provider.", providers=known)
    async with services.database.transaction() as transaction:
        if not await views.repositories(transaction, org, body.repository_id):
            raise NotFound("There is no such repository.")
        row = await organization.get_organization(transaction, org)
    chosen = (row or {"settings": {}})["settings"].get("default_agent")
    command = CreateTask(
        prompt=body.prompt,
        title=body.title,
        branch=body.branch,
        on_branch=body.on_branch,
        agent=body.agent or chosen or DEFAULT_AGENT,
        model=body.model,
        provider=provider,
        by=member.person,
    )
    target = keys.repository(org, body.repository_id)
    return respond(await send(request, member, target, command, key))


@router.get("", response_model=Page[TaskSummary], responses=documented(401, 404, 422))
async def list_tasks(
    request: Request,
    org: Number,
    member: Member,
    repository: Annotated[str | None, Query(pattern=r"^[0-9]{1,19}$")] = None,
    status: Status | None = None,
    q: Annotated[Text | None, Query(max_length=200, description="In title or branch.")] = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> JSONResponse:
    """Return the tasks of the organization, the newest first."""
    wanted = TaskFilter(
        status=status, text=q or None, before=read_page_cursor(cursor), limit=limit + 1
    )
    async with services_of(request).database.transaction() as transaction:
        return JSONResponse(await views.tasks(transaction, org, repository, wanted, limit))


@router.get("/{task}", response_model=Task, responses=documented(401, 404))
async def get_task(request: Request, task_key: TaskKey) -> JSONResponse:
    """Return a task whole."""
    async with services_of(request).database.transaction() as transaction:
        return JSONResponse(await views.one_task(transaction, task_key))


# -- what people ask of a task -------------------------------------------------------


async def _tell(
    request: Request, member: Principal, task_key: str, command: Message, key: str | None
) -> JSONResponse:
    """Give a command to the task; it answers with itself."""
    return respond(await send(request, member, task_key, command, key))


class RetryRequest(Body):
    """How to go on."""

    branch: Line | None = Field(None, description="Another name, if the first was taken.")


@router.post("/{task}/retry", **_BEGUN, responses=documented(400, 401, 403, 404, 409, 422, 429))
async def retry(
    request: Request,
    member: Member,
    task_key: TaskKey,
    body: RetryRequest | None = None,
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Resume a failed provisioning at the step that failed."""
    command = RetryTask(branch=body.branch if body else None, by=member.person)
    return await _tell(request, member, task_key, command, key)


@router.post("/{task}/push", **_BEGUN, responses=documented(401, 403, 404, 409, 429))
async def push(
    request: Request, member: Member, task_key: TaskKey, key: IdempotencyKey = None
) -> JSONResponse:
    """Push the branch with the rights of the caller."""
    return await _tell(request, member, task_key, Push(by=member.person), key)


class PullRequestRequest(Body):
    """What the pull request says; what is left out stays, or is made of the task."""

    title: Line | None = None
    body: Annotated[Text, Field(max_length=60_000)] | None = None
    draft: bool | None = None
    base: Line | None = None


@router.put(
    "/{task}/pull-request", **_BEGUN, responses=documented(400, 401, 403, 404, 409, 422, 429)
)
async def publish(
    request: Request,
    member: Member,
    task_key: TaskKey,
    body: PullRequestRequest,
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Create or update the branch's one pull request; the branch is pushed first."""
    command = Publish(
        title=body.title, body=body.body, draft=body.draft, base=body.base, by=member.person
    )
    return await _tell(request, member, task_key, command, key)


@router.post("/{task}/archive", **_BEGUN, responses=documented(401, 403, 404, 409, 429))
async def archive(
    request: Request, member: Member, task_key: TaskKey, key: IdempotencyKey = None
) -> JSONResponse:
    """Stop the work and keep everything."""
    return await _tell(request, member, task_key, Archive(by=member.person), key)


@router.post("/{task}/kill", **_BEGUN, responses=documented(401, 403, 404, 409, 429))
async def kill(
    request: Request, member: Member, task_key: TaskKey, key: IdempotencyKey = None
) -> JSONResponse:
    """Destroy the sandbox and give the branch name back; what was pushed stays."""
    return await _tell(request, member, task_key, Kill(by=member.person), key)


# -- what it has changed -------------------------------------------------------------


@router.get("/{task}/changes", response_model=Changes, responses=documented(401, 404))
async def get_changes(request: Request, task_key: TaskKey) -> JSONResponse:
    """Return the branch against its merge base, as last taken; the work tree is not touched."""
    async with services_of(request).database.transaction() as transaction:
        return JSONResponse(await views.changes(transaction, task_key))


@router.get("/{task}/diff", response_model=Diff, responses=documented(401, 404, 422))
async def get_diff(
    request: Request,
    task_key: TaskKey,
    path: Annotated[Text, Query(min_length=1, max_length=4096)],
) -> JSONResponse:
    """Return the differences in one of the changed files."""
    async with services_of(request).database.transaction(snapshot=True) as transaction:
        row = await task_models.get_changes(transaction, task_key)
        patch = await task_models.get_patch(transaction, task_key, path)
    if row is None or patch is None:
        raise NotFound("The last snapshot has no differences in this file.")
    return JSONResponse(plain({"path": path, "patch": patch, "as_of": row["as_of"]}))
