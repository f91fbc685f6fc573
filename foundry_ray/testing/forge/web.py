"""REST in GitHub's manner: credentials, errors, pages, rate limits and conditional requests."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foundry_ray.testing.forge.auth import (
    AsApp,
    AsInstallation,
    AsUser,
    BadCredentials,
    Principal,
    Suspended,
)
from foundry_ray.testing.forge.context import Forge
from foundry_ray.testing.forge.records import Account, Repository

log = logging.getLogger("foundry.forge")

T = TypeVar("T")
MAX_PAGE = 100
DEFAULT_PAGE = 30
DOCUMENTATION = "https://docs.github.com/rest"


class ApiError(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        self.status = status
        self.body = {
            "message": message,
            "documentation_url": DOCUMENTATION,
            "status": str(status),
        } | more
        super().__init__(message)


def not_found() -> NoReturn:
    """Answer 404: it is not there, or the caller may not know that it is.

    Raises:
        ApiError: Always.
    """
    raise ApiError(404, "Not Found")


def invalid(*errors: dict[str, Any]) -> NoReturn:
    """Answer 422 with what was wrong.

    Raises:
        ApiError: Always.
    """
    raise ApiError(422, "Validation Failed", errors=list(errors))


@dataclass
class Call:
    """One request to the REST API."""

    request: Request
    forge: Forge
    principal: Principal | None
    body: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> str:
        """Return a piece of the path."""
        return str(self.request.path_params[name])

    def number(self, name: str) -> int:
        """Return a piece of the path that must be a number, else 404."""
        text = self.part(name)
        if not text.isdigit():
            not_found()
        return int(text)

    def query(self, name: str, default: str = "") -> str:
        """Return a query parameter."""
        return self.request.query_params.get(name, default)

    def text(self, name: str) -> str | None:
        """Return a text of the body, or none if it is absent; 422 if it is something else."""
        value = self.body.get(name)
        if value is not None and not isinstance(value, str):
            raise ApiError(422, f"Invalid request.\n\nFor '{name}', {value!r} is not a string.")
        return value

    # -- who --------------------------------------------------------------------

    def user(self) -> AsUser:
        """Return the person who asks.

        Raises:
            ApiError: 401 for nobody, 403 for an App or an installation.
        """
        if self.principal is None:
            raise ApiError(401, "Requires authentication")
        if not isinstance(self.principal, AsUser):
            raise ApiError(403, "Resource not accessible by integration")
        return self.principal

    def app(self) -> AsApp:
        """Return the App that asks with its JWT; 401 for anybody else."""
        if not isinstance(self.principal, AsApp):
            raise ApiError(401, "A JSON web token could not be decoded")
        return self.principal

    def actor(self) -> Account:
        """Return the account in whose name a change is made."""
        match self.principal:
            case AsUser(_, user):
                return user
            case AsInstallation(_, _, bot):
                return bot
            case _:
                raise ApiError(401, "Requires authentication")

    def repository(self, permission: str = "metadata", level: str = "read") -> Repository:
        """Return the repository in the path, if the caller may do this there.

        Raises:
            ApiError: 404 if the caller may not see it, 403 if they may not do that.
        """
        if "repository_id" in self.request.path_params:
            found = self.forge.directory.repository_by_id(self.number("repository_id"))
        else:
            found = self.forge.directory.repository(self.part("owner"), self.part("repo"))
        if found is None or not self.forge.gate.sees(self.principal, found):
            not_found()
        if self.principal is None and level != "read":
            raise ApiError(401, "Requires authentication")
        if not self.forge.gate.may(self.principal, found, permission, level):
            if isinstance(self.principal, AsInstallation):
                raise ApiError(403, "Resource not accessible by integration")
            raise ApiError(403, "Must have push access to repository")
        if found.archived and level != "read":
            raise ApiError(403, "Repository was archived so is read-only.")
        return found


Handler = Callable[[Call], Awaitable[Response]]


def answer(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return *data* as JSON."""
    return JSONResponse(data, status_code=status, headers=headers)


def nothing() -> Response:
    """Return 204."""
    return Response(status_code=204)


def route(method: str, path: str, handler: Handler) -> Route:
    """Serve *handler* at this REST path."""

    async def endpoint(request: Request) -> Response:
        return await _serve(handler, request)

    return Route(f"/api/v3{path}", endpoint, methods=[method])


async def _serve(handler: Handler, request: Request) -> Response:
    forge: Forge = request.app.state.forge
    principal: Principal | None = None
    headers: dict[str, str] = {}
    try:
        try:
            principal = forge.gate.recognize(request.headers.get("authorization", ""))
        except BadCredentials as trouble:
            raise ApiError(401, str(trouble)) from trouble
        except Suspended as trouble:
            raise ApiError(403, "This installation has been suspended") from trouble
        passes, headers = forge.limits.count(principal)
        if not passes:
            raise ApiError(403, "API rate limit exceeded")
        call = Call(request, forge, principal, await _body(request))
        response = await handler(call)
    except ApiError as trouble:
        response = answer(trouble.body, trouble.status)
    except ClientDisconnect:
        raise
    except Exception:
        log.exception("request_failed method=%s path=%s", request.method, request.url.path)
        response = answer({"message": "Server Error", "documentation_url": DOCUMENTATION}, 500)
    response = _conditional(request, response)
    if response.status_code == 304:
        # What did not change costs nothing.
        _, headers = forge.limits.count(principal, cost=-1)
    if isinstance(principal, AsUser):
        headers["X-OAuth-Scopes"] = principal.token.scopes
        headers["X-Accepted-OAuth-Scopes"] = ""
    headers["X-GitHub-Media-Type"] = "github.v3; format=json"
    headers["X-GitHub-Request-Id"] = secrets.token_hex(8).upper()
    response.headers.update(headers)
    return response


async def _body(request: Request) -> dict[str, Any]:
    raw = await request.body()
    if not raw or request.method in ("GET", "HEAD"):
        return {}
    try:
        body = json.loads(raw)
    except ValueError as trouble:
        raise ApiError(400, "Problems parsing JSON") from trouble
    if not isinstance(body, dict):
        raise ApiError(400, "Body should be a JSON object")
    return body


def _conditional(request: Request, response: Response) -> Response:
    if request.method not in ("GET", "HEAD") or response.status_code != 200:
        return response
    tag = f'"{hashlib.sha256(bytes(response.body)).hexdigest()}"'
    offered = request.headers.get("if-none-match", "").removeprefix("W/")
    if offered == tag:
        return Response(status_code=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    return response


# -- pages ----------------------------------------------------------------------


def page_size(call: Call) -> int:
    """Return how many items the caller wants on a page."""
    text = call.query("per_page")
    return min(MAX_PAGE, max(1, int(text))) if text.isdigit() else DEFAULT_PAGE


def address(call: Call, **changes: object) -> str:
    """Return the address of this request with other query parameters."""
    query = dict(call.request.query_params) | {key: str(value) for key, value in changes.items()}
    return f"{call.forge.at.base}{call.request.url.path}?{urlencode(query)}"


def page(call: Call, items: Sequence[T]) -> tuple[list[T], dict[str, str]]:
    """Return the page that was asked for and the ``Link`` header to its neighbours."""
    size = page_size(call)
    text = call.query("page")
    number = max(1, int(text)) if text.isdigit() else 1
    last = max(1, -(-len(items) // size))
    near: dict[str, int] = {}
    if number > 1:
        near |= {"prev": min(number - 1, last), "first": 1}
    if number < last:
        near |= {"next": number + 1, "last": last}
    link = ", ".join(
        f'<{address(call, per_page=size, page=at)}>; rel="{name}"' for name, at in near.items()
    )
    chosen = list(items[(number - 1) * size : number * size])
    return chosen, {"Link": link} if link else {}


def listing(call: Call, items: Sequence[T], shape: Callable[[T], Any]) -> Response:
    """Answer one page of *items*, each in its shape."""
    chosen, headers = page(call, items)
    return answer([shape(item) for item in chosen], headers=headers)


def wrapped(
    call: Call, key: str, items: Sequence[T], shape: Callable[[T], Any], **more: Any
) -> Response:
    """Answer one page of *items* inside an object with their ``total_count``."""
    chosen, headers = page(call, items)
    body = {"total_count": len(items), **more, key: [shape(item) for item in chosen]}
    return answer(body, headers=headers)
