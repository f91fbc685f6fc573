"""Agent sessions: messages, stop, permissions, and the transcript."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from foundry_ray.actors.task.messages import CreateSession
from foundry_ray.actors.task_session import read_models as task_session
from foundry_ray.actors.task_session.messages import AnswerPermission, SendMessage, StopTurn
from foundry_ray.core import keys
from foundry_ray.core.errors import NotFound
from foundry_ray.serve import views
from foundry_ray.serve.auth import Member
from foundry_ray.serve.commands import Accepted, IdempotencyKey, respond, send
from foundry_ray.serve.errors import documented
from foundry_ray.serve.models import (
    PermissionRequest,
    Sent,
    Session,
    SessionSummary,
    Transcript,
)
from foundry_ray.serve.services import services_of
from foundry_ray.serve.shapes import Body, Id, Number, Text, check_prompt

of_task = APIRouter(prefix="/api/organizations/{org}/tasks/{task}/sessions", tags=["sessions"])
router = APIRouter(
    prefix="/api/organizations/{org}/tasks/{task}/sessions/{session}", tags=["sessions"]
)


class SessionRequest(Body):
    """What kind of session to begin; everything has a default."""

    agent: Text | None = None
    model: Text | None = None
    title: Annotated[Text, Field(max_length=200)] | None = None


@of_task.post(
    "",
    status_code=201,
    response_model=SessionSummary,
    responses={202: {"model": Accepted}, **documented(400, 401, 403, 404, 409, 422, 429)},
)
async def create_session(
    request: Request,
    org: Number,
    task: Id,
    member: Member,
    body: SessionRequest,
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Begin another agent session on the task's branch, at once; its agent starts behind."""
    async with services_of(request).database.transaction() as transaction:
        task_key = await views.task_key(transaction, org, task)
    command = CreateSession(**body.model_dump(), by=member.person)
    return respond(await send(request, member, task_key, command, key))


async def _session_key(request: Request, org: Number, task: Id, session: Id, member: Member) -> str:
    """Return the key of a session that exists, so that nobody wakes one that does not."""
    async with services_of(request).database.transaction() as transaction:
        key = keys.session(await views.task_key(transaction, org, task), session)
        await views.one_session(transaction, key)
    return key


SessionKey = Annotated[str, Depends(_session_key)]


@router.get("", response_model=Session, responses=documented(401, 404))
async def get_session(request: Request, session_key: SessionKey) -> JSONResponse:
    """Return a session whole."""
    async with services_of(request).database.transaction(snapshot=True) as transaction:
        return JSONResponse(await views.one_session(transaction, session_key))


class MessageRequest(Body):
    """What to say to the agent."""

    text: Text


@router.post(
    "/messages",
    status_code=202,
    response_model=Sent | Accepted,
    responses=documented(400, 401, 403, 404, 409, 413, 422, 429),
)
async def send_message(
    request: Request,
    member: Member,
    session_key: SessionKey,
    body: MessageRequest,
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Give the agent a message; it waits its turn while another one runs."""
    check_prompt(body.text)
    command = SendMessage(text=body.text, by=member.person)
    return respond(await send(request, member, session_key, command, key))


@router.post(
    "/stop",
    response_model=SessionSummary,
    responses={202: {"model": Accepted}, **documented(401, 403, 404, 429)},
)
async def stop(
    request: Request, member: Member, session_key: SessionKey, key: IdempotencyKey = None
) -> JSONResponse:
    """Cancel the running agent turn; the session stays usable."""
    command = StopTurn(by=member.person)
    return respond(await send(request, member, session_key, command, key))


class PermissionAnswer(Body):
    """Which of the agent's options is chosen."""

    option_id: Annotated[Text, Field(min_length=1, max_length=500)]


@router.post(
    "/permissions/{id}",
    response_model=PermissionRequest,
    responses={202: {"model": Accepted}, **documented(400, 401, 403, 404, 422, 429)},
)
async def answer_permission(
    request: Request,
    member: Member,
    session_key: SessionKey,
    id: Id,
    body: PermissionAnswer,
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Answer a permission request of the agent; the first answer counts."""
    async with services_of(request).database.transaction() as transaction:
        if not await task_session.has_permission(transaction, session_key, id):
            raise NotFound("There is no such permission request.")
    command = AnswerPermission(permission_id=id, option_id=body.option_id, by=member.person)
    return respond(await send(request, member, session_key, command, key))


@router.get("/events", response_model=Transcript, responses=documented(401, 404, 422))
async def list_events(
    request: Request,
    session_key: SessionKey,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> JSONResponse:
    """Return the transcript after an index: complete, in the agent's order."""
    async with services_of(request).database.transaction() as transaction:
        found = await task_session.list_events(transaction, session_key, after, limit)
    last = found[-1]["index"] if found else after
    return JSONResponse({"items": found, "next_after": last})
