"""GitHub's webhooks: a signature, a place in a mailbox, 202."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse

from foundry_ray.actors.github_state import read_models as github_state
from foundry_ray.actors.github_state.messages import ReceiveDelivery
from foundry_ray.core import keys
from foundry_ray.core.errors import InvalidInput, Unauthenticated, Unavailable
from foundry_ray.core.logging import get_logger
from foundry_ray.integrations.github import webhook
from foundry_ray.integrations.github.webhook import WebhookFacts
from foundry_ray.serve import errors
from foundry_ray.serve.errors import documented
from foundry_ray.serve.models import Delivered
from foundry_ray.serve.services import Services, services_of

router = APIRouter(tags=["github"])
log = get_logger("serve")

_BODY = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}
Said = Annotated[str, Header(max_length=200)]


@router.post(
    "/webhooks/github",
    status_code=202,
    response_model=Delivered,
    responses={200: {"model": Delivered}, **documented(400, 401, 413)},
    openapi_extra=_BODY,
)
async def receive(
    request: Request,
    x_github_event: Said = "",
    x_github_delivery: Said = "",
    x_hub_signature_256: Annotated[str | None, Header(max_length=200)] = None,
) -> JSONResponse:
    """Take a delivery: 202 once it is durable; one that came before has no further effect."""
    services = services_of(request)
    secret = services.settings.github_webhook_secret
    if secret is None:
        raise Unavailable(
            "No GitHub App is configured.", hint="Set FOUNDRY_GITHUB_WEBHOOK_SECRET and the rest."
        )
    body = await request.body()
    if not webhook.verify(secret, body, x_hub_signature_256):
        raise Unauthenticated("The signature is missing or wrong.")
    try:
        facts, payload = webhook.parse(x_github_event, x_github_delivery, body)
        _check(facts, payload)
    except InvalidInput as odd:
        return errors.answer(odd, status=400)
    if facts.event == "ping":
        return JSONResponse({"status": "pong"})
    fresh = await _keep(services, facts, payload)
    return JSONResponse({"status": "accepted" if fresh else "known"}, status_code=202)


def _check(facts: WebhookFacts, payload: dict[str, Any]) -> None:
    """Refuse what cannot be kept or told apart.

    Raises:
        InvalidInput: No event, no delivery id, or text that PostgreSQL cannot hold.
    """
    if not facts.event or not facts.guid:
        raise InvalidInput("X-GitHub-Event and X-GitHub-Delivery are needed.")
    if _has_nul(payload):
        raise InvalidInput("The webhook holds a NUL character.")


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any("\x00" in key or _has_nul(one) for key, one in value.items())
    if isinstance(value, list):
        return any(map(_has_nul, value))
    return False


async def _keep(services: Services, facts: WebhookFacts, payload: dict[str, Any]) -> bool:
    """Put the delivery into the mailbox that it is for; False when it came before."""
    installation = None if facts.installation_id is None else str(facts.installation_id)
    accounts = dict.fromkeys(
        str(one) for one in (facts.organization_id, facts.owner_id) if one is not None
    )
    async with services.database.transaction() as transaction:
        found = await github_state.get_route(transaction, installation, list(accounts))
    target = found or keys.APP_GITHUB
    fresh = await services.client.receive(
        target,
        ReceiveDelivery(guid=facts.guid, event=facts.event, action=facts.action, payload=payload),
        scope="github",
        external_id=facts.guid,
        sender=f"github/{installation or 'app'}",
    )
    log.info("delivery", guid=facts.guid, github_event=facts.event, target=target, fresh=fresh)
    return fresh
