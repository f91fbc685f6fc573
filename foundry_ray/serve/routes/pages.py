"""Two pages for people, until there is a frontend: who you are, and how to sign in.

No scripts and nothing from other sites; every value is escaped.
"""

from __future__ import annotations

from html import escape
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from foundry_ray.core.errors import FoundryError, family
from foundry_ray.serve import views
from foundry_ray.serve.auth import identify
from foundry_ray.serve.services import services_of

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}"
    "code{background:#8882;padding:.1em .3em}li{margin:.4em 0}.trouble{border-left:4px solid"
    " #c33;padding-left:1rem}"
)
_POLICY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


def page(title: str, body: str) -> HTMLResponse:
    """Return a whole page; *body* is HTML already."""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f'</title><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"</head><body><h1>{escape(title)}</h1>{body}</body></html>",
        headers=_POLICY,
    )


@router.get("/")
async def home(request: Request) -> HTMLResponse:
    """Show who is signed in and what there is, in words and links."""
    services = services_of(request)
    async with services.database.transaction() as transaction:
        seen = await views.app(services, transaction, await identify(request, transaction))
    if seen["auth"]["status"] == "signed_out":
        return page("Foundry", '<p>You are not signed in. <a href="/signin">Sign in</a>.</p>')
    rows = "".join(_organization(one) for one in seen["organizations"])
    return page(
        "Foundry",
        f"<p>You are signed in as <strong>{escape(seen['user']['login'])}</strong>.</p>"
        f"<h2>Organizations</h2><ul>{rows}</ul>"
        '<p>Foundry is used through its <a href="/api/docs">HTTP interface</a>'
        " and the command line: see <code>foundry --help</code>.</p>",
    )


def _organization(one: dict[str, object]) -> str:
    github = one["github"]
    assert isinstance(github, dict)
    text = (
        f'<a href="/api/organizations/{escape(str(one["id"]))}">{escape(str(one["login"]))}</a>'
        f": {escape(str(one['role']))}, GitHub {escape(github['installation_status'])},"
        f" {escape(github['sync_status'])}"
    )
    if github["installation_status"] == "install_required" and github["install_url"]:
        text += f' (<a href="{escape(github["install_url"])}">install the GitHub App</a>)'
    return f"<li>{text}</li>"


@router.get("/signin")
async def signin(
    request: Request, error: Annotated[str, Query(max_length=100)] = ""
) -> HTMLResponse:
    """Show how to sign in, and why the last attempt failed."""
    parts = []
    if error:
        kind = family().get(error, FoundryError)
        words = (kind.__doc__ or "").strip().splitlines()[0]
        if kind is FoundryError:
            words = "The sign-in failed."
        parts.append(
            f'<p class="trouble">{escape(words)}<br>Code: <code>{escape(error)}</code></p>'
        )
    if services_of(request).outside.github is None:
        parts.append(
            "<p>No GitHub App is configured, so nobody can sign in."
            " <code>foundry doctor</code> says what is missing.</p>"
        )
    else:
        parts.append('<p><a href="/api/auth/github/login?return_to=/">Sign in with GitHub</a></p>')
    return page("Sign in to Foundry", "".join(parts))
