"""What has come of a command that was not answered in time."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from foundry_ray.core.errors import FoundryError, NotFound
from foundry_ray.runtime.refs import raise_stored
from foundry_ray.serve import errors
from foundry_ray.serve.auth import User
from foundry_ray.serve.errors import documented
from foundry_ray.serve.models import CommandState
from foundry_ray.serve.services import services_of
from foundry_ray.serve.shapes import Id, plain

router = APIRouter(tags=["commands"])


@router.get("/api/commands/{id}", response_model=CommandState, responses=documented(401, 404))
async def get_command(request: Request, id: Id, user: User) -> JSONResponse:
    """Return the state of a command and its answer, to the person who gave it."""
    async with services_of(request).database.transaction() as transaction:
        row = await transaction.one(
            "SELECT reply, created_at FROM rt_inbox_seen"
            " WHERE command_id = %s AND starts_with(scope, %s)",
            (id, user.scope),
        )
    if row is None:
        raise NotFound("There is no such command of yours, or its answer has expired.")
    said = {"command_id": id, "state": "pending", "created_at": row["created_at"]}
    return JSONResponse(plain({**said, **_outcome(row["reply"])}))


def _outcome(reply: dict[str, Any] | None) -> dict[str, Any]:
    if reply is None:
        return {}
    if reply["status"] != 0:
        return {"state": "done", "status": reply["status"], "answer": reply["body"]}
    try:
        raise_stored(reply["body"])
    except FoundryError as refusal:
        shown = errors.problem(refusal)
        return {"state": "refused", "status": shown.status, "answer": shown.model_dump(mode="json")}
    raise AssertionError("a stored refusal is raised")
