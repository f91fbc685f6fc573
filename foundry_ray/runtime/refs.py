"""How clients outside the tree talk to entities: tell, and ask = tell + wait."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from foundry_ray.core import keys
from foundry_ray.core.clock import Clock
from foundry_ray.core.errors import (
    Busy,
    FoundryError,
    IdempotencyConflict,
    Internal,
    NotFound,
    Unavailable,
    family,
)
from foundry_ray.core.ids import new_id
from foundry_ray.core.messages import Lane, Message
from foundry_ray.runtime import mailbox
from foundry_ray.runtime.actor import Actor, admit
from foundry_ray.runtime.ports import Waker
from foundry_ray.store.engine import Database, Transaction

ANSWER_PATIENCE = timedelta(seconds=2)
IDEMPOTENCY_LIFE = timedelta(hours=24)
DELIVERY_LIFE = timedelta(days=7)
# How much more may wait for an organization than for one entity, and of what must get in
# when nothing else does: commands that stop something, and deliveries.
MORE = 10


@dataclass(frozen=True)
class Answer:
    """What came of a command: a value, or nothing yet (then ask for the command later)."""

    command_id: str
    answered: bool
    status: int = 202
    body: Any = None


def request_hash(message: Message, target: str) -> str:
    """Return the hash by which a repeated request is told from another one."""
    text = json.dumps([target, message.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def raise_stored(body: dict[str, Any]) -> None:
    """Raise the error that a turn stored as its reply."""
    cls = family().get(body["code"], Internal)
    raise cls(body["message"], hint=body["hint"], **body["context"])


class Client:
    """Puts commands into mailboxes and waits for their reply rows.

    Args:
        actors: The kinds of entities; what they do not take is refused with
            ``invalid_input`` and never becomes a row.
        limit: Messages that may wait for one entity, and ``MORE`` times as many for an
            organization; beyond it callers get ``busy``. Only what comes from outside is
            refused: what entities say to each other is promised already.
    """

    def __init__(
        self,
        database: Database,
        waker: Waker,
        clock: Clock,
        *,
        actors: Mapping[str, type[Actor[Any]]],
        limit: int = 1000,
    ) -> None:
        self._actors = actors
        self._database = database
        self._waker = waker
        self._clock = clock
        self._limit = limit

    async def ask(
        self,
        target: str,
        command: Message,
        *,
        scope: str,
        idempotency_key: str | None = None,
        patience: timedelta = ANSWER_PATIENCE,
    ) -> Answer:
        """Send *command* durably and wait for its answer.

        Args:
            scope: Principal and route; an idempotency key means something only there.
            idempotency_key: The caller's own name for this command, if it repeats itself.
            patience: How long to wait; the command goes on all the same.

        Raises:
            IdempotencyConflict: The key was used with another request.
            Busy: The entity or its organization has too much mail; try again later.
            FoundryError: The entity refused, with its code.
        """
        admit(self._actors, target, command)
        now = self._clock.now()
        digest = request_hash(command, target)
        command_id = new_id()
        external = idempotency_key or command_id
        async with self._database.transaction() as transaction:
            known = await accept(
                transaction,
                command_id=command_id,
                scope=scope,
                external_id=external,
                digest=digest,
                target=target,
                now=now,
                life=IDEMPOTENCY_LIFE,
            )
            if known is None:
                await self._room(transaction, target, command, now)
                await mailbox.put(
                    transaction,
                    target,
                    command,
                    sender=f"client/{scope}",
                    now=now,
                    reply_to=command_id,
                )
        if known is not None:
            if known["request_hash"] != digest:
                raise IdempotencyConflict(
                    hint="Use a new Idempotency-Key for another request.", scope=scope
                )
            command_id = known["command_id"]
        return await self._await(target, command_id, patience)

    async def tell(self, target: str, message: Message, *, sender: str = "client") -> None:
        """Send *message* durably, and go on."""
        admit(self._actors, target, message)
        now = self._clock.now()
        async with self._database.transaction() as transaction:
            await self._room(transaction, target, message, now)
            await mailbox.put(transaction, target, message, sender=sender, now=now)
        self._waker.ring(target)

    async def receive(
        self, target: str, message: Message, *, scope: str, external_id: str, sender: str
    ) -> bool:
        """Send what came from outside under a name of its own, once, and go on.

        Returns:
            False when it came before, in the last seven days; then nothing is sent.

        Raises:
            Unavailable: Too much waits for the entity; it must come again later.
        """
        admit(self._actors, target, message)
        now = self._clock.now()
        async with self._database.transaction() as transaction:
            known = await accept(
                transaction,
                command_id=new_id(),
                scope=scope,
                external_id=external_id,
                digest="",
                target=target,
                now=now,
                life=DELIVERY_LIFE,
            )
            if known is None:
                if await mailbox.waiting(transaction, target, self._limit * MORE):
                    raise Unavailable("Too much waits there already.", retry_after=60)
                await mailbox.put(transaction, target, message, sender=sender, now=now)
        if known is None:
            self._waker.ring(target)
        return known is None

    async def look(self, command_id: str) -> Answer:
        """Return what has come of a command; NotFound when it is unknown or expired."""
        async with self._database.transaction() as transaction:
            row = await transaction.one(
                "SELECT reply FROM rt_inbox_seen WHERE command_id = %s", (command_id,)
            )
        if row is None:
            raise NotFound("No such command, or its answer has expired.")
        return self._answer(command_id, row["reply"])

    async def _room(
        self, transaction: Transaction, target: str, message: Message, now: datetime
    ) -> None:
        """Let a command in, or turn it away.

        Those that stop something find room as long as the entity's mailbox has any.
        """
        stops = message.lane is Lane.CONTROL
        if await mailbox.waiting(transaction, target, self._limit * (MORE if stops else 1)):
            raise Busy(hint="Try again in a few seconds.", target=target)
        root = keys.root_of(target)
        if not stops and await mailbox.waiting_below(transaction, root, self._limit * MORE, now):
            raise Busy(
                "Too much is waiting in this organization already.",
                hint="Try again in a few seconds.",
                retry_after=5,
            )

    async def _await(self, target: str, command_id: str, patience: timedelta) -> Answer:
        deadline = asyncio.get_running_loop().time() + patience.total_seconds()
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        await self._waker.answered(target, command_id)
                        break
                    except Unavailable:
                        await asyncio.sleep(0.05)  # the activation moved; find the new one
        except TimeoutError:
            pass
        return await self.look(command_id)

    @staticmethod
    def _answer(command_id: str, reply: dict[str, Any] | None) -> Answer:
        if reply is None:
            return Answer(command_id, answered=False)
        if reply["status"] == 0:
            raise_stored(reply["body"])
        return Answer(command_id, answered=True, status=reply["status"], body=reply["body"])


async def accept(
    transaction: Transaction,
    *,
    command_id: str,
    scope: str,
    external_id: str,
    digest: str,
    target: str,
    now: datetime,
    life: timedelta,
) -> dict[str, Any] | None:
    """Remember that something was accepted; return the earlier row if it was accepted before."""
    keys.kind_of(target)
    touched = await transaction.execute(
        "INSERT INTO rt_inbox_seen (command_id, scope, external_id, request_hash, target,"
        " created_at, expires_at) VALUES (%s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (scope, external_id) DO NOTHING",
        (command_id, scope, external_id, digest, target, now, now + life),
    )
    if touched == 1:
        return None
    return await transaction.one(
        "SELECT command_id, request_hash FROM rt_inbox_seen WHERE scope = %s AND external_id = %s",
        (scope, external_id),
    )


__all__ = ["Answer", "Client", "FoundryError", "accept", "request_hash"]
