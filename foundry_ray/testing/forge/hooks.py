"""REST: where the App's webhooks go, and what became of each delivery."""

from __future__ import annotations

from starlette.responses import Response

from foundry_ray.testing.forge import shapes
from foundry_ray.testing.forge.records import App, Delivery
from foundry_ray.testing.forge.web import (
    ApiError,
    Call,
    address,
    answer,
    not_found,
    nothing,
    page_size,
    route,
)


def _hook(app: App) -> dict[str, str]:
    return {
        "content_type": "json",
        "insecure_ssl": "0",
        "secret": "********",
        "url": app.webhook_url,
    }


async def hook_config(call: Call) -> Response:
    """GET where webhooks go; the secret is masked."""
    return answer(_hook(call.app().app))


async def update_hook_config(call: Call) -> Response:
    """PATCH the webhook's URL or secret."""
    app = call.app().app
    url, secret = call.text("url"), call.text("secret")
    if url is not None and not url.startswith(("http://", "https://")):
        raise ApiError(422, "Invalid request.\n\n'url' is not an address of the web.")
    call.forge.store.update(
        "apps",
        app.id,
        webhook_url=app.webhook_url if url is None else url,
        webhook_secret=app.webhook_secret if secret is None else secret,
        updated_at=call.forge.store.now(),
    )
    fresh = call.forge.directory.app(app.id)
    assert fresh is not None, "just changed"
    return answer(_hook(fresh))


async def ping(call: Call) -> Response:
    """POST a ping to the webhook."""
    call.forge.webhooks.ping(call.app().app.id)
    return nothing()


async def deliveries(call: Call) -> Response:
    """GET the deliveries that were attempted, newest first, page by cursor."""
    app = call.app().app
    size = page_size(call)
    cursor = call.query("cursor")
    number = cursor.removeprefix("v1_")
    if cursor and not number.isdigit():
        raise ApiError(400, "Invalid cursor")
    below = int(number) if cursor else 2**62
    found = call.forge.store.all(
        Delivery,
        "SELECT * FROM deliveries WHERE app_id = ? AND done = 1 AND id < ?"
        " ORDER BY id DESC LIMIT ?",
        app.id,
        below,
        size + 1,
    )
    shown = found[:size]
    headers = {}
    if len(found) > size:
        following = address(call, per_page=size, cursor=f"v1_{shown[-1].id}")
        headers["Link"] = f'<{following}>; rel="next"'
    return answer([shapes.delivery(call.forge.at, one) for one in shown], headers=headers)


def _delivery(call: Call) -> Delivery:
    found = call.forge.store.one(
        Delivery,
        "SELECT * FROM deliveries WHERE app_id = ? AND done = 1 AND id = ?",
        call.app().app.id,
        call.number("delivery_id"),
    )
    if found is None:
        not_found()
    return found


async def delivery(call: Call) -> Response:
    """GET one delivery with what was sent and what was answered."""
    return answer(shapes.delivery(call.forge.at, _delivery(call), detail=True))


async def redeliver(call: Call) -> Response:
    """POST one more attempt: same GUID, same bytes, a delivery of its own in the list."""
    call.forge.webhooks.redeliver(_delivery(call))
    return answer({}, 202)


ROUTES = [
    route("GET", "/app/hook/config", hook_config),
    route("PATCH", "/app/hook/config", update_hook_config),
    route("POST", "/app/hook/pings", ping),
    route("GET", "/app/hook/deliveries", deliveries),
    route("GET", "/app/hook/deliveries/{delivery_id}", delivery),
    route("POST", "/app/hook/deliveries/{delivery_id}/attempts", redeliver),
]
