"""Sign-in with GitHub (state, PKCE), and out again."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import timedelta
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from foundry_ray.actors.app_shell.messages import BeginSignIn, CompleteSignIn, SignOut
from foundry_ray.core import keys
from foundry_ray.core.errors import (
    FoundryError,
    InvalidInput,
    PermissionDenied,
    Timeout,
    Unavailable,
)
from foundry_ray.core.logging import get_logger
from foundry_ray.core.secrets import fingerprint, random_token
from foundry_ray.serve.auth import COOKIE, User
from foundry_ray.serve.commands import IdempotencyKey, send
from foundry_ray.serve.errors import documented
from foundry_ray.serve.services import Services, services_of
from foundry_ray.serve.shapes import Text

router = APIRouter(tags=["sign-in"])
log = get_logger("serve")

STATE_COOKIE = "foundry_sign_in"
STATE_PATH = "/api/auth/github"
STATE_LIFE = 600  # seconds, as long as the application remembers a sign-in
SESSION_LIFE = 30 * 24 * 3600  # seconds, as long as an app session lasts
GITHUB_PATIENCE = timedelta(seconds=15)
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@router.get(
    "/api/auth/github/login",
    status_code=302,
    response_class=RedirectResponse,
    responses=documented(422, 429),
)
async def login(
    request: Request,
    return_to: Annotated[Text, Query(max_length=1000)] = "/",
    login: Annotated[
        Text | None, Query(max_length=100, description="Suggests the account.")
    ] = None,
) -> Response:
    """Send the browser to GitHub; it comes back to the callback, then to *return_to*."""
    services = services_of(request)
    github = services.outside.github
    if github is None:
        raise Unavailable(
            "No GitHub App is configured.",
            hint="Set FOUNDRY_GITHUB_APP_ID and its companions; `foundry doctor` explains each.",
        )
    _check_return(return_to)
    state = random_token()
    # Durable before the browser leaves, answered or not.
    await services.client.ask(
        keys.APP,
        BeginSignIn(state_hash=fingerprint(state), return_to=return_to),
        scope="anonymous:GET /api/auth/github/login",
    )
    verifier = services.outside.sealer.derive("pkce", state)
    digest = hashlib.sha256(verifier.encode()).digest()
    page = github.authorize_url(
        state=state,
        code_challenge=base64.urlsafe_b64encode(digest).decode().rstrip("="),
        redirect_uri=_callback(services),
        login=login,
    )
    answer = RedirectResponse(page, status_code=302)
    answer.set_cookie(
        STATE_COOKIE,
        state,
        max_age=STATE_LIFE,
        path=STATE_PATH,
        httponly=True,
        samesite="lax",
        secure=_secure(services),
    )
    return answer


@router.get(
    "/api/auth/github/callback",
    status_code=302,
    response_class=RedirectResponse,
    responses=documented(429),
)
async def callback(
    request: Request,
    code: Annotated[Text, Query(max_length=500)] = "",
    state: Annotated[Text, Query(max_length=500)] = "",
    error: Annotated[Text, Query(max_length=200)] = "",
) -> Response:
    """Take the browser back from GitHub; a failure leads to `/signin?error=<code>`."""
    services = services_of(request)
    secret = random_token()
    try:
        return_to = await _complete(services, request, code, state, error, secret)
    except FoundryError as trouble:
        log.info("sign_in_failed", code=trouble.code, reason=trouble.message)
        answer = RedirectResponse(f"/signin?error={quote(trouble.code)}", status_code=302)
    else:
        answer = RedirectResponse(return_to, status_code=302)
        answer.set_cookie(
            COOKIE,
            secret,
            max_age=SESSION_LIFE,
            httponly=True,
            samesite="lax",
            secure=_secure(services),
        )
    answer.delete_cookie(STATE_COOKIE, path=STATE_PATH)
    return answer


async def _complete(
    services: Services, request: Request, code: str, state: str, error: str, secret: str
) -> str:
    """Let the application finish the sign-in; return where the browser goes."""
    if error:
        raise PermissionDenied("The sign-in was not granted on GitHub.")
    bound = request.cookies.get(STATE_COOKIE, "")
    if not state or not code or not hmac.compare_digest(state.encode(), bound.encode()):
        raise InvalidInput("This browser did not begin this sign-in.")
    answer = await services.client.ask(
        keys.APP,
        CompleteSignIn(
            state=state,
            sealed_code=services.outside.sealer.seal(code, "oauth-code"),
            redirect_uri=_callback(services),
            session_hash=fingerprint(secret),
        ),
        scope="anonymous:GET /api/auth/github/callback",
        patience=GITHUB_PATIENCE,
    )
    if not answer.answered:
        raise Timeout("GitHub did not answer in time.")
    return str(answer.body["return_to"])


@router.post("/api/auth/logout", status_code=204, responses=documented(401, 403, 429))
async def logout(request: Request, user: User, key: IdempotencyKey = None) -> Response:
    """End the session; its cookie is worthless at once."""
    if user.via == "token":
        raise InvalidInput(
            "An API token has no session to end.", hint="DELETE /api/app/tokens/{id} ends a token."
        )
    command = SignOut(session_id=user.id, user_id=user.person.id)
    answer = await send(request, user, keys.APP, command, key, GITHUB_PATIENCE)
    if not answer.answered:
        raise Unavailable("The session could not be ended yet.", hint="Try again.")
    response = Response(status_code=204)
    response.delete_cookie(COOKIE)
    return response


def _callback(services: Services) -> str:
    return f"{services.settings.public_url}/api/auth/github/callback"


def _secure(services: Services) -> bool:
    return urlsplit(services.settings.public_url).hostname not in _LOCAL


def _check_return(path: str) -> None:
    """Refuse to be a springboard to other sites.

    Raises:
        InvalidInput: Not a path of ours.
    """
    odd = "\\" in path or any(ord(one) < 32 for one in path)
    if odd or not path.startswith("/") or path.startswith("//"):
        raise InvalidInput("return_to: must be a path that begins with a single slash.")
