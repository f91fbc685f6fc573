"""From a request to a command, and from its answer to a response."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from foundry_ray.core.messages import Message
from foundry_ray.runtime.refs import ANSWER_PATIENCE, Answer
from foundry_ray.serve.auth import Principal
from foundry_ray.serve.services import services_of

# The caller's own name for a request; parameters of that name are only for OpenAPI.
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="The same key with the same body gives the same answer for 24 hours.",
    ),
]


class Accepted(BaseModel):
    """The command is durable and not answered yet; ask for it again."""

    command_id: str
    url: str


def scope_of(request: Request, principal: Principal) -> str:
    """Return principal and route: an idempotency key means something only there."""
    route = request.scope["route"].path
    ids = " ".join(f"{name}={value}" for name, value in sorted(request.path_params.items()))
    return f"{principal.scope}{request.method} {route} {ids}".rstrip()


async def send(
    request: Request,
    principal: Principal,
    target: str,
    command: Message,
    key: str | None,
    patience: timedelta = ANSWER_PATIENCE,
) -> Answer:
    """Give *command* to an entity and wait a little for its answer."""
    return await services_of(request).client.ask(
        target,
        command,
        scope=scope_of(request, principal),
        idempotency_key=key,
        patience=patience,
    )


async def came_before(request: Request, principal: Principal, key: str | None) -> bool:
    """Return whether this very request was accepted before: then its answer is kept.

    What it was about may be gone since, by this request.
    """
    if key is None:
        return False
    async with services_of(request).database.transaction() as transaction:
        row = await transaction.one(
            "SELECT 1 AS there FROM rt_inbox_seen WHERE scope = %s AND external_id = %s",
            (scope_of(request, principal), key),
        )
    return row is not None


def respond(answer: Answer, body: Any = None) -> JSONResponse:
    """Return an answer over HTTP: what the entity said (or *body* instead), or where to look."""
    if not answer.answered:
        url = f"/api/commands/{answer.command_id}"
        accepted = Accepted(command_id=answer.command_id, url=url)
        return JSONResponse(accepted.model_dump(), status_code=202)
    return JSONResponse(answer.body if body is None else body, status_code=answer.status)
