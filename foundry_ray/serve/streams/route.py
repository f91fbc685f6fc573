"""The door of live updates: who watches what, and from where on."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from foundry_ray.actors.app_shell import read_models as app_shell
from foundry_ray.core.errors import NotFound, Unauthenticated
from foundry_ray.serve.auth import identify
from foundry_ray.serve.errors import documented
from foundry_ray.serve.services import services_of
from foundry_ray.serve.shapes import Text
from foundry_ray.serve.streams import cursor as cursors
from foundry_ray.serve.streams.cursor import Place
from foundry_ray.serve.streams.hub import Access, Hub
from foundry_ray.serve.streams.stream import EventStream, seconds
from foundry_ray.serve.streams.topics import find, parse

router = APIRouter(tags=["live updates"])
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events: snapshot, update, append, resync, revoked",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/api/stream",
    response_class=Response,
    responses={**_EVENTS, **documented(401, 404, 422)},
)
async def stream(
    request: Request,
    topics: Annotated[Text, Query(max_length=16_000)],
    last_event_id: Annotated[Text | None, Query(max_length=16_000)] = None,
    header: Annotated[
        str | None, Header(alias="Last-Event-ID", description="Wins over last_event_id.")
    ] = None,
) -> Response:
    """Watch topics: `organization:<org>`, `task:<org>/<task>`, `session:<org>/<task>/<session>`.

    Each begins with a snapshot, unless the cursor names it; then everything since the cursor
    comes, once.
    """
    services = services_of(request)
    asked = parse(topics)
    organizations = frozenset(one.organization_id for one in asked)
    async with services.database.transaction(snapshot=True) as transaction:
        principal = await identify(request, transaction)
        if principal is None:
            raise Unauthenticated
        needed = {(principal.person.id, one) for one in organizations}
        _, member = await app_shell.list_valid(
            transaction, [], sorted(needed), services.clock.now()
        )
        if member != needed:
            raise NotFound
        found = [await find(transaction, one) for one in asked]
        seen = await cursors.sight(transaction)
    places: dict[str, Place] = {}
    stale: list[str] = []
    known = cursors.read(header or last_event_id or "")
    oldest = seconds(services.clock.now() - cursors.KEPT)
    for topic in found:
        place = known.get(cursors.name_of(topic.name))
        if place is None:
            continue
        # Older than the feed is kept, or of another database.
        if place.when < oldest or place.at.xid >= seen.xmax:
            stale.append(topic.name)
        else:
            places[topic.name] = place
    hub = request.app.state.hub
    assert isinstance(hub, Hub)
    access = Access(principal.token_hash, principal.person.id, organizations)
    return EventStream(services, hub, found, access, places, stale)
