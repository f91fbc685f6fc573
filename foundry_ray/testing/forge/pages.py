"""The few pages that links of the REST API lead to; they show no code and no names of private
repositories, since nobody signs in to look at them.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from foundry_ray.testing.forge.context import Forge

_COLOURS = ("#3b82f6", "#10b981", "#f59e0b", "#ef4444", "#8b5cf6", "#14b8a6")


async def avatar(request: Request) -> Response:
    """Draw an account's first letter."""
    forge: Forge = request.app.state.forge
    number = request.path_params["id"]
    who = forge.directory.account_by_id(number)
    if who is None:
        return PlainTextResponse("Not Found", 404)
    colour = _COLOURS[number % len(_COLOURS)]
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">'
        f'<rect width="64" height="64" fill="{colour}"/>'
        '<text x="32" y="43" font-family="sans-serif" font-size="32" fill="#fff"'
        f' text-anchor="middle">{who.login[0].upper()}</text></svg>'
    )
    return Response(drawing, media_type="image/svg+xml")


async def front(request: Request) -> Response:
    """Say what this is."""
    return HTMLResponse(
        "<!doctype html><title>Local forge</title><h1>Local forge</h1>"
        "<p>A GitHub-shaped server on real git, for Foundry's demo and tests.</p>"
    )


ROUTES = [
    Route("/", front, methods=["GET"]),
    Route("/avatars/u/{id:int}", avatar, methods=["GET"]),
]
