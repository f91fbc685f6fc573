"""Signing people in: the authorize page and the exchange of its code for a token."""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import json
import secrets
from datetime import timedelta
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from foundry_ray.testing.forge.auth import digest
from foundry_ray.testing.forge.context import Forge
from foundry_ray.testing.forge.records import Account, App, Code
from foundry_ray.testing.forge.store import instant

CODE_LIFE = timedelta(minutes=10)
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sign in to {name}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 10vh auto; max-width: 22rem; }}
button {{ display: block; width: 100%; margin: .5rem 0; padding: .6rem 1rem; font: inherit;
  text-align: left; border: 1px solid #ccc; border-radius: 6px; background: #fff; }}
button:hover {{ background: #f3f4f6; }}
small {{ color: #666; }}
</style></head><body>
<h1>{name}</h1>
<p>wants to know who you are. This is a local forge: choose a person, no password is asked.</p>
<form method="get" action="/login/oauth/authorize">
{fields}
{people}
<button name="deny" value="1"><small>Cancel</small></button>
</form></body></html>
"""


async def authorize(request: Request) -> Response:
    """Show who can sign in, or send the person that ``login`` names straight back with a code."""
    forge: Forge = request.app.state.forge
    query = request.query_params
    app = forge.directory.app_by_client(query.get("client_id", ""))
    if app is None:
        return PlainTextResponse("There is no application with this client id.", 404)
    target = query.get("redirect_uri", "")
    if urlsplit(target).scheme != "http" or urlsplit(target).hostname not in LOOPBACK:
        return PlainTextResponse("redirect_uri must be on this machine.", 400)
    method = query.get("code_challenge_method", "S256")
    if query.get("code_challenge") and method != "S256":
        return _back(target, error="invalid_request", error_description="S256 is needed")
    state = {"state": query["state"]} if "state" in query else {}
    if query.get("deny"):
        return _back(
            target,
            error="access_denied",
            error_description="The user has denied your application access.",
            **state,
        )
    user = forge.directory.account(query.get("login", ""))
    if user is None or user.kind != "User":
        return HTMLResponse(_choose(forge, app, dict(query)))
    return _back(target, code=_code(forge, app, user, query.get("scope", ""), request), **state)


def _choose(forge: Forge, app: App, query: dict[str, str]) -> str:
    fields = "\n".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
        for name, value in query.items()
        if name not in ("login", "deny")
    )
    people = "\n".join(
        f'<button name="login" value="{html.escape(user.login)}">{html.escape(user.login)}'
        f" <small>{html.escape(user.name or '')}</small></button>"
        for user in forge.directory.people()
    )
    return _PAGE.format(name=html.escape(app.name), fields=fields, people=people)


def _code(forge: Forge, app: App, user: Account, scopes: str, request: Request) -> str:
    code = secrets.token_hex(10)
    forge.store.insert(
        "codes",
        digest=digest(code),
        app_id=app.id,
        user_id=user.id,
        redirect_uri=request.query_params.get("redirect_uri", ""),
        scopes=", ".join(scopes.replace(",", " ").split()),
        challenge=request.query_params.get("code_challenge", ""),
        expires_at=instant(forge.store.clock.now() + CODE_LIFE),
    )
    return code


def _back(target: str, **answers: str) -> Response:
    parts = urlsplit(target)
    query = urlencode([*parse_qsl(parts.query), *answers.items()])
    where = urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
    return Response(status_code=302, headers={"Location": where, "Cache-Control": "no-store"})


async def access_token(request: Request) -> Response:
    """Exchange a code, once, for a person's token; errors answer 200 with ``error``."""
    forge: Forge = request.app.state.forge
    given = await _fields(request)
    app = forge.directory.app_by_client(given.get("client_id", ""))
    if app is None or not hmac.compare_digest(
        app.client_secret.encode(), given.get("client_secret", "").encode()
    ):
        return _refuse(
            request,
            "incorrect_client_credentials",
            "The client_id and/or client_secret passed are incorrect.",
        )
    if given.get("grant_type", "authorization_code") != "authorization_code":
        return _refuse(request, "unsupported_grant_type", "Only authorization_code is supported.")
    with forge.store.transaction():
        hashed = digest(given.get("code", ""))
        code = forge.store.one(
            Code, "SELECT * FROM codes WHERE digest = ? AND app_id = ?", hashed, app.id
        )
        # Used up by any attempt: a code that leaked once must not work a second time.
        forge.store.run("DELETE FROM codes WHERE digest = ? AND app_id = ?", hashed, app.id)
        if code is None or code.expires_at <= forge.store.now() or not _proven(code, given):
            refused = "The code passed is incorrect or expired."
        elif given.get("redirect_uri", code.redirect_uri) != code.redirect_uri:
            return _refuse(
                request,
                "redirect_uri_mismatch",
                "The redirect_uri MUST match the registered callback URL for this application.",
            )
        else:
            user = forge.directory.known(code.user_id)
            token = forge.gate.user_token(user, app=app, scopes=code.scopes)
            return _answer(
                request,
                {
                    "access_token": token,
                    "scope": code.scopes.replace(" ", ""),
                    "token_type": "bearer",
                },
            )
    return _refuse(request, "bad_verification_code", refused)


def _proven(code: Code, given: dict[str, str]) -> bool:
    """Tell whether the verifier fits the challenge that the code was made with."""
    if not code.challenge:
        return True
    hashed = hashlib.sha256(given.get("code_verifier", "").encode()).digest()
    expected = base64.urlsafe_b64encode(hashed).decode().rstrip("=")
    return hmac.compare_digest(expected, code.challenge)


async def _fields(request: Request) -> dict[str, str]:
    raw = await request.body()
    kind = request.headers.get("content-type", "")
    if kind.startswith("application/json"):
        try:
            body = json.loads(raw)
        except ValueError:
            return {}
        return {str(key): str(value) for key, value in body.items()}
    return dict(parse_qsl(raw.decode(errors="replace"))) | dict(request.query_params)


def _refuse(request: Request, error: str, description: str) -> Response:
    return _answer(
        request,
        {
            "error": error,
            "error_description": description,
            "error_uri": "https://docs.github.com/apps/managing-oauth-apps/"
            "troubleshooting-oauth-app-access-token-request-errors/",
        },
    )


def _answer(request: Request, body: dict[str, str]) -> Response:
    if "json" in request.headers.get("accept", ""):
        return JSONResponse(body)
    return PlainTextResponse(urlencode(body), media_type="application/x-www-form-urlencoded")


ROUTES = [
    Route("/login/oauth/authorize", authorize, methods=["GET"]),
    Route("/login/oauth/access_token", access_token, methods=["POST"]),
]
