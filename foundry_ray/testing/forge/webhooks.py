"""Webhooks: written down first, then sent in the background; nothing is sent twice by itself."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from typing import Any

import httpx

from foundry_ray.core.ids import new_uuid
from foundry_ray.testing.forge import shapes
from foundry_ray.testing.forge.directory import Directory
from foundry_ray.testing.forge.records import Account, Delivery, Installation, Repository
from foundry_ray.testing.forge.shapes import Addresses
from foundry_ray.testing.forge.store import Store

log = logging.getLogger("foundry.forge")

ANSWER_WITHIN = 10.0  # seconds, as GitHub gives
AT_ONCE = 8  # deliveries under way; like GitHub's, they arrive in no order
ANSWER_KEPT = 10_000  # characters of the receiver's answer


class Webhooks:
    """Records deliveries in the caller's transaction and sends what is recorded."""

    def __init__(self, store: Store, directory: Directory, at: Addresses) -> None:
        self.store = store
        self.directory = directory
        self.at = at
        self._ring = asyncio.Event()
        self._under_way: dict[int, asyncio.Task[None]] = {}

    # -- recording --------------------------------------------------------------

    def emit(
        self,
        event: str,
        action: str | None,
        payload: dict[str, Any],
        *,
        owner: Account,
        sender: Account,
        repository: Repository | None = None,
    ) -> None:
        """Record an event for every App that is installed where it happened.

        Args:
            owner: The account that the event belongs to.
            repository: The repository it happened in; its shape is added to the payload.
        """
        body = ({"action": action} if action else {}) | payload
        if repository is not None:
            shape = shapes.pushed_repository if event == "push" else shapes.repository
            count = self.directory.open_pulls(repository.id)
            body["repository"] = shape(self.at, repository, owner, open_pulls=count)
        if owner.kind == "Organization":
            body["organization"] = shapes.organization(self.at, owner)
        body["sender"] = shapes.account(self.at, sender)
        for installation in self.directory.installations_on(owner.id):
            if repository is not None and not self.directory.covers(installation, repository):
                continue
            if installation.suspended_at or event not in json.loads(installation.events):
                continue
            lite = {
                "id": installation.id,
                "node_id": shapes.node_id("IntegrationInstallation", installation.id),
            }
            self._record(installation, event, action, body | {"installation": lite}, repository)

    def emit_installation(
        self,
        event: str,
        action: str,
        installation: Installation,
        payload: dict[str, Any],
        sender: Account,
    ) -> None:
        """Record an event about an installation itself, for its App."""
        app = self.directory.app(installation.app_id)
        assert app is not None, "an installation belongs to an App"
        suspender = (
            None
            if installation.suspended_by is None
            else self.directory.known(installation.suspended_by)
        )
        shape = shapes.installation(
            self.at,
            installation,
            self.directory.known(installation.account_id),
            app.slug,
            suspender,
        )
        body = {"action": action, "installation": shape} | payload
        body["sender"] = shapes.account(self.at, sender)
        self._record(installation, event, action, body, None)

    def _record(
        self,
        installation: Installation,
        event: str,
        action: str | None,
        body: dict[str, Any],
        repository: Repository | None,
    ) -> None:
        self._insert(
            guid=str(new_uuid()),
            app_id=installation.app_id,
            event=event,
            action=action,
            installation_id=installation.id,
            repository_id=None if repository is None else repository.id,
            redelivery=0,
            payload=json.dumps(body, separators=(",", ":")),
        )

    def ping(self, app_id: int) -> None:
        """Record the event that tells an App its webhook is set up."""
        app = self.directory.app(app_id)
        assert app is not None, "only an App that exists has a webhook"
        body = {
            "zen": "Keep it logically awesome.",
            "hook_id": app.hook_id,
            "hook": {
                "type": "App",
                "id": app.hook_id,
                "name": "web",
                "active": True,
                "app_id": app.id,
                "events": json.loads(app.events),
                "config": {
                    "content_type": "json",
                    "insecure_ssl": "0",
                    "secret": "********",
                    "url": app.webhook_url,
                },
                "updated_at": app.updated_at,
                "created_at": app.created_at,
                "url": self.at.rest("app", "hook"),
                "ping_url": self.at.rest("app", "hook", "pings"),
                "deliveries_url": self.at.rest("app", "hook", "deliveries"),
            },
        }
        self._insert(
            guid=str(new_uuid()),
            app_id=app.id,
            event="ping",
            action=None,
            installation_id=None,
            repository_id=None,
            redelivery=0,
            payload=json.dumps(body, separators=(",", ":")),
        )

    def redeliver(self, delivery: Delivery) -> None:
        """Record one more attempt of a delivery: the same GUID and the same bytes."""
        self._insert(
            guid=delivery.guid,
            app_id=delivery.app_id,
            event=delivery.event,
            action=delivery.action,
            installation_id=delivery.installation_id,
            repository_id=delivery.repository_id,
            redelivery=1,
            payload=delivery.payload,
        )

    def _insert(self, **columns: Any) -> None:
        self.store.insert("deliveries", delivered_at=self.store.now(), **columns)
        self._ring.set()

    # -- sending ----------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether the receiver counts as unreachable."""
        return self.store.setting("deliveries_paused") == "yes"

    def pause(self, paused: bool) -> None:
        """Make the receiver unreachable, or reachable again; a restart remembers it."""
        self.store.set_setting("deliveries_paused", "yes" if paused else "no")

    def waiting(self) -> int:
        """Return how many deliveries are recorded but not yet attempted to the end."""
        return int(self.store.value("SELECT count(*) FROM deliveries WHERE done = 0"))

    async def run(self) -> None:
        """Send what is recorded until cancelled; what is under way then is sent after a restart."""
        # A connection for each: a kept one that the receiver just closed would fail a delivery.
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0)
        # No proxy of the environment: the receiver is where the URL says.
        client = httpx.AsyncClient(timeout=ANSWER_WITHIN, limits=limits, trust_env=False)
        async with client:
            try:
                while True:
                    self._ring.clear()
                    for delivery in self._next():
                        task = asyncio.create_task(self._send(client, delivery))
                        self._under_way[delivery.id] = task
                    await self._ring.wait()
            finally:
                tasks = list(self._under_way.values())
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _next(self) -> list[Delivery]:
        room = AT_ONCE - len(self._under_way)
        if room <= 0:
            return []
        first = self.store.all(
            Delivery, "SELECT * FROM deliveries WHERE done = 0 ORDER BY id LIMIT ?", AT_ONCE + room
        )
        return [delivery for delivery in first if delivery.id not in self._under_way][:room]

    async def _send(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        app = self.directory.app(delivery.app_id)
        assert app is not None, "a delivery belongs to an App"
        raw = delivery.payload.encode()
        headers = {
            "Accept": "*/*",
            "Content-Type": "application/json",
            "User-Agent": "GitHub-Hookshot/forge",
            "X-GitHub-Delivery": delivery.guid,
            "X-GitHub-Event": delivery.event,
            "X-GitHub-Hook-ID": str(app.hook_id),
            "X-GitHub-Hook-Installation-Target-ID": str(app.id),
            "X-GitHub-Hook-Installation-Target-Type": "integration",
            "X-Hub-Signature": "sha1=" + _sign(app.webhook_secret, raw, "sha1"),
            "X-Hub-Signature-256": "sha256=" + _sign(app.webhook_secret, raw, "sha256"),
        }
        began = time.monotonic()
        code, answer_headers, answer_text = 0, {}, ""
        try:
            if self.paused or not app.webhook_url:
                raise httpx.ConnectError("no receiver")
            answered = await client.post(app.webhook_url, content=raw, headers=headers)
            code = answered.status_code
            status = "OK" if answered.is_success else f"Invalid HTTP Response: {code}"
            answer_headers = dict(answered.headers)
            answer_text = answered.text[:ANSWER_KEPT]
        except httpx.TimeoutException:
            status = "timed out"
        except (httpx.HTTPError, httpx.InvalidURL) as trouble:
            log.info("delivery_failed guid=%s why=%s", delivery.guid, type(trouble).__name__)
            status = "failed to connect to host"
        finally:
            self._under_way.pop(delivery.id, None)
        self.store.update(
            "deliveries",
            delivery.id,
            done=1,
            delivered_at=self.store.now(),
            duration=round(time.monotonic() - began, 2),
            status=status,
            status_code=code,
            url=app.webhook_url,
            request_headers=json.dumps(headers),
            response_headers=json.dumps(answer_headers),
            response_payload=answer_text,
        )
        self._ring.set()


def _sign(secret: str, raw: bytes, algorithm: str) -> str:
    return hmac.new(secret.encode(), raw, getattr(hashlib, algorithm)).hexdigest()
