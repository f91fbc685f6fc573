"""Every error as `application/problem+json` (RFC 9457), by one table of codes."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from foundry_ray.core.errors import (
    FoundryError,
    Internal,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unavailable,
    WrongState,
    family,
)

# What a code is in HTTP. A code that is not here stays within Foundry: `unavailable`.
STATUS = {
    "invalid_input": 422,
    "invalid_branch": 422,
    "prompt_empty": 422,
    "unauthenticated": 401,
    "permission_denied": 403,
    "quota_exceeded": 403,
    "not_found": 404,
    "branch_taken": 409,
    "idempotency_conflict": 409,
    "already_created": 409,
    "wrong_state": 409,
    "dropped": 409,
    "push_rejected": 409,
    "merge_conflict": 409,
    "sandbox_gone": 409,
    "too_large": 413,
    "busy": 429,
    "rate_limited": 429,
    "internal": 500,
    "workflow_unknown": 503,
    "sandbox_agent_missing": 502,
    "sandbox_start_failed": 502,
    "clone_failed": 502,
    "setup_failed": 502,
    "agent_missing": 502,
    "agent_exited": 502,
    "agent_refused": 502,
    "unavailable": 503,
    "delivery_unknown": 503,
    "github_unavailable": 503,
    "provider_unavailable": 503,
    "timeout": 504,
}
# Seconds after which trying again makes sense, where the error does not say.
RETRY_AFTER = {429: 2, 503: 1}
_BY_STATUS: dict[int, type[FoundryError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: WrongState,
    413: TooLarge,
    422: InvalidInput,
    503: Unavailable,
}


class Problem(BaseModel):
    """An error as clients see it."""

    model_config = ConfigDict(extra="forbid")

    type: str
    title: str
    status: int
    code: str
    detail: str
    retryable: bool
    request_id: str
    hint: str = ""
    context: dict[str, Any] = {}


class ProblemResponse(JSONResponse):
    """An error as an answer."""

    media_type = "application/problem+json"


def problem(error: FoundryError, status: int | None = None) -> Problem:
    """Return an error as clients see it.

    Args:
        status: Instead of the one that its code has.
    """
    code = error.code if error.code in STATUS else "unavailable"
    said = status or STATUS[code]
    kind = family().get(code, Internal)
    # Whoever asked learns what helps them to ask better; the inside stays inside.
    context = error.context if said < 500 else {}
    return Problem(
        type=f"urn:foundry:problem:{code}",
        title=(kind.__doc__ or code).strip().splitlines()[0],
        status=said,
        code=code,
        detail=error.message,
        retryable=error.retryable,
        request_id=str(structlog.contextvars.get_contextvars().get("request_id", "")),
        hint=error.hint,
        context=context,
    )


def answer(error: FoundryError, status: int | None = None) -> ProblemResponse:
    """Return an error as an answer; for *status* see `problem`."""
    said = problem(error, status)
    headers = {}
    if said.status in RETRY_AFTER:
        wait = error.context.get("retry_after")
        headers["Retry-After"] = str(max(1, round(wait)) if wait else RETRY_AFTER[said.status])
    if said.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="foundry"'
    return ProblemResponse(said.model_dump(mode="json"), status_code=said.status, headers=headers)


def install(app: FastAPI) -> None:
    """Let every error of *app* be a problem document."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, FoundryError)
        return answer(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _invalid(error)

    async def plain(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = _BY_STATUS.get(error.status_code, InvalidInput)
        message = "" if error.status_code == 404 else str(error.detail)
        if message and not message.endswith("."):
            message += "."
        said = answer(kind(message), status=error.status_code)
        said.headers.update(error.headers or {})
        return said

    app.add_exception_handler(FoundryError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)


def _invalid(error: RequestValidationError) -> ProblemResponse:
    """Name the fields, never the values: those may be secrets or prompts."""
    found = error.errors()
    if any(one["loc"][:1] == ("path",) for one in found):
        return answer(NotFound())  # nothing can have such an id
    if any(one["type"] == "json_invalid" for one in found):
        return answer(InvalidInput("The body is not JSON."), status=400)
    fields = [
        {"field": ".".join(str(part) for part in one["loc"]), "problem": one["msg"]}
        for one in found[:20]
    ]
    first = fields[0] if fields else {"field": "request", "problem": "not valid"}
    return answer(InvalidInput(f"{first['field']}: {first['problem']}.", fields=fields))


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route for OpenAPI: these, and what every route may answer."""
    schema = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    titles = {
        400: "The body is not JSON",
        401: "Nobody is signed in",
        403: "Not allowed, or from another origin",
        404: "Not there, or nothing that you may see",
        409: "A conflict with the present state",
        413: "Larger than the limit",
        422: "A field is missing or wrong",
        429: "Too much at once; Retry-After says how long to wait",
        503: "A part of Foundry is away; Retry-After says how long to wait",
    }
    return {s: {"description": titles[s], "content": schema} for s in sorted({*statuses, 503})}
