"""The application for whoever asks, and a person's API tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from foundry_ray.actors.app_shell import read_models as app_shell
from foundry_ray.actors.app_shell.messages import CreateToken, DeleteToken
from foundry_ray.core import keys
from foundry_ray.core.errors import AlreadyCreated, IdempotencyConflict, NotFound
from foundry_ray.core.ids import new_id
from foundry_ray.core.secrets import fingerprint, random_token
from foundry_ray.serve import views
from foundry_ray.serve.auth import User, identify
from foundry_ray.serve.commands import Accepted, IdempotencyKey, came_before, respond, send
from foundry_ray.serve.errors import documented
from foundry_ray.serve.models import App, Items, NewToken, Token
from foundry_ray.serve.services import services_of
from foundry_ray.serve.shapes import Body, Id, Line, plain

router = APIRouter(tags=["app"])
TOKEN_PREFIX = "fdy_"  # noqa: S105 - so that scanners of leaked secrets know ours


@router.get("/api/app", response_model=App, responses=documented(401))
async def get_app(request: Request) -> JSONResponse:
    """Return who is signed in, and their organizations; anonymous callers are signed out."""
    services = services_of(request)
    async with services.database.transaction() as transaction:
        principal = await identify(request, transaction)
        return JSONResponse(await views.app(services, transaction, principal))


class TokenRequest(Body):
    """What a new API token is for."""

    name: Annotated[Line, Field(min_length=1, max_length=100)]
    expires_in_days: Annotated[int, Field(ge=1, le=3650)] | None = None


@router.get("/api/app/tokens", response_model=Items[Token], responses=documented(401))
async def list_tokens(request: Request, user: User) -> JSONResponse:
    """Return the caller's API tokens, without their secrets."""
    async with services_of(request).database.transaction() as transaction:
        rows = await app_shell.list_tokens(transaction, user.person.id)
    return JSONResponse({"items": plain(rows)})


@router.post(
    "/api/app/tokens",
    status_code=201,
    response_model=NewToken,
    responses=documented(400, 401, 403, 409, 422, 429),
)
async def create_token(
    request: Request, body: TokenRequest, user: User, key: IdempotencyKey = None
) -> JSONResponse:
    """Make an API token; its secret is shown only in this answer."""
    token = random_token(TOKEN_PREFIX)
    expires_at = None
    if body.expires_in_days is not None:
        expires_at = services_of(request).clock.now() + timedelta(days=body.expires_in_days)
    command = CreateToken(
        id=new_id(),
        user_id=user.person.id,
        name=body.name,
        token_hash=fingerprint(token),
        expires_at=expires_at,
    )
    try:
        answer = await send(request, user, keys.APP, command, key)
    except IdempotencyConflict as repeated:  # each call makes another secret
        raise AlreadyCreated(hint="List the tokens; delete it and make another.") from repeated
    # Durable even if it is not answered yet: the token works as soon as it is.
    status = answer.status if answer.answered else 201
    return JSONResponse({"id": command.id, "token": token}, status_code=max(status, 201))


@router.delete(
    "/api/app/tokens/{id}",
    status_code=204,
    responses={202: {"model": Accepted}, **documented(401, 403, 404, 429)},
)
async def delete_token(
    request: Request, id: Id, user: User, key: IdempotencyKey = None
) -> Response:
    """Make one of the caller's API tokens worthless at once."""
    async with services_of(request).database.transaction() as transaction:
        own = {row["id"] for row in await app_shell.list_tokens(transaction, user.person.id)}
    if id not in own and not await came_before(request, user, key):
        raise NotFound
    command = DeleteToken(id=id, user_id=user.person.id)
    answer = await send(request, user, keys.APP, command, key)
    return Response(status_code=204) if answer.answered else respond(answer)
