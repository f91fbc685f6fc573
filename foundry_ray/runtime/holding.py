"""What an activation holds: the epoch of its entity, the state, and the runs.

It is a cache. The epoch is what counts: only who holds the current one may commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from functools import partial
from typing import Any

from psycopg.types.json import Jsonb
from pydantic import ValidationError

from foundry_ray.core import keys
from foundry_ray.core.errors import WorkflowUnknown
from foundry_ray.runtime import commit, host, issues, points, supervision
from foundry_ray.runtime.actor import Actor, admit
from foundry_ray.runtime.commit import Fenced
from foundry_ray.runtime.kernel import Kernel, LeaseElsewhere
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Run, Workflows
from foundry_ray.store.engine import Transaction


class Holding:
    """One entity in memory.

    Attributes:
        actor: The state's holder; None while there is nothing to trust in memory.
        epoch: Ours; 0 before the first activation.
        runs: What is not over, by id.
        working: The runs whose step is being worked on here, by id.
        leaving: Work on a step whose result counts no more, and which is let end.
        held: Runs claimed by an older activation that may still be working, with the
            instant from which their step may run again.
        troubled: Workflows and message kinds with an open issue (see ``issues``).
        careful: The last activation died; perhaps of the message that is next.
        undone: A turn was undone and may have left its traces in the state.
        moved_at: When something was last committed.
    """

    def __init__(self, kernel: Kernel, key: str) -> None:
        self.kernel = kernel
        self.key = key
        self.actor_class = kernel.actors[keys.kind_of(key)]
        self.workflows = Workflows(self.actor_class.workflows)
        self.actor: Actor[Any] | None = None
        self.epoch = 0
        self.runs: dict[str, Run] = {}
        self.working: dict[str, asyncio.Task[None]] = {}
        self.leaving: set[asyncio.Task[None]] = set()
        self.held: dict[str, datetime] = {}
        self._predecessor: dict[str, Any] | None = None  # may still work on what is held
        self.troubled: set[str] = set()
        self.careful = False
        self.undone = False
        self.moved_at = kernel.clock.now()

    # -- the epoch ---------------------------------------------------------------------

    async def take(self) -> None:
        """Raise the epoch and load the state; whoever held the entity before commits no more.

        Raises:
            Fenced: While the database was away somebody else took over.
            LeaseElsewhere: Another cluster may activate now.
        """
        now = self.kernel.clock.now()
        async with self.kernel.database.transaction() as transaction:
            before = await transaction.one(
                "SELECT host, epoch FROM rt_entity WHERE key = %s FOR UPDATE", (self.key,)
            )
            gone = before is None or host.proven_gone(before["host"])
            if before is not None and not gone and 0 < self.epoch < before["epoch"]:
                raise Fenced(key=self.key, epoch=self.epoch)
            await self._check_lease(transaction, predecessor_gone=gone)
            row = await transaction.one(
                "INSERT INTO rt_entity (key, kind, parent_key, root, epoch, revision, host,"
                " activated_at, created_at) VALUES (%(key)s, %(kind)s, %(parent)s, %(root)s, 1, 0,"
                " %(host)s, %(now)s, %(now)s) ON CONFLICT (key) DO UPDATE SET"
                " epoch = rt_entity.epoch + 1, host = excluded.host, activated_at = %(now)s"
                " RETURNING epoch",
                {
                    "key": self.key,
                    "kind": self.actor_class.actor_type,
                    "parent": keys.parent_of(self.key),
                    "root": keys.root_of(self.key),
                    "host": Jsonb(host.here().as_json()),
                    "now": now,
                },
            )
            assert row is not None
            if before is not None:
                await self._inherit(transaction, before, gone)
            self.kernel.point(points.ACTIVATING)
        self.epoch = row["epoch"]
        await self._load()

    async def _check_lease(self, transaction: Transaction, *, predecessor_gone: bool) -> None:
        """Let only the cluster that has the lease activate; ``app`` takes it.

        Raises:
            LeaseElsewhere: Another cluster has it.
        """
        holder = self.kernel.lease_holder
        if holder is None:
            return
        if self.key == keys.APP:
            # The process of the last `app` renewed the lease: if it is gone, nobody does.
            mine = await supervision.take_lease(transaction, holder, orphaned=predecessor_gone)
        else:
            mine = await supervision.has_lease(transaction, holder)
        if not mine:
            raise LeaseElsewhere(key=self.key)

    async def _inherit(self, transaction: Transaction, before: dict[str, Any], gone: bool) -> None:
        """Take over what the activation before this one left."""
        if before["host"] is not None and self.epoch == 0:
            self.careful = True  # it did not release: it died
        self._predecessor = None if gone else before
        if gone:
            await self._free_claims(transaction, before["epoch"])

    @property
    def waits_for_predecessor(self) -> bool:
        """Whether the end of the process before this one would free a run."""
        return bool(self.held) and self._predecessor is not None

    async def inherit_late(self) -> None:
        """Take over from a process that was only stopped when this began, and is gone by now."""
        before = self._predecessor
        if before is None or not self.held or not host.proven_gone(before["host"]):
            return
        async with self.kernel.database.transaction() as transaction:
            await self.fence(transaction)
            freed = await self._free_claims(transaction, before["epoch"])
        for run_id in freed:
            self.held.pop(run_id, None)
        self._predecessor = None

    async def _free_claims(self, transaction: Transaction, epoch: int) -> list[str]:
        """Free the runs that an activation had claimed which is gone; return their ids.

        What activations before that one had claimed keeps its deadlines.
        """
        rows = await transaction.fetch(
            "UPDATE rt_run SET claimed_epoch = NULL, deadline = NULL, state = 'pending'"
            " WHERE entity_key = %s AND claimed_epoch = %s RETURNING id",
            (self.key, epoch),
        )
        return [row["id"] for row in rows]

    async def fence(self, transaction: Transaction) -> None:
        """Lock the entity's row for a commit of ours; Fenced when it is ours no more."""
        await commit.fence(transaction, self.key, self.epoch)

    async def release(self, *, at_once: bool) -> bool:
        """Let the entity go if nothing is due; one statement, so that no mail is overlooked.

        Args:
            at_once: Let it go even if something is due.

        Raises:
            Fenced: A newer activation exists; this one has nothing to release.
        """
        async with self.kernel.database.transaction() as transaction:
            touched = await transaction.execute(
                "UPDATE rt_entity SET host = NULL WHERE key = %(key)s AND epoch = %(epoch)s"
                " AND (%(at_once)s OR NOT EXISTS (SELECT 1 FROM rt_mailbox WHERE target = %(key)s"
                " AND parked_at IS NULL AND due_at <= %(now)s))",
                {
                    "key": self.key,
                    "epoch": self.epoch,
                    "at_once": at_once,
                    "now": self.kernel.clock.now(),
                },
            )
            if touched != 1:
                await self.fence(transaction)
                return False
            self.kernel.point(points.RELEASING)
        self.kernel.point(points.RELEASED)
        return True

    # -- the state ---------------------------------------------------------------------

    async def _load(self) -> None:
        async with self.kernel.database.transaction() as transaction:
            state = await self.actor_class.load(transaction, self.key)
            rows = await transaction.fetch(
                "SELECT id, kind, version, input, step, step_input, state, attempt, reported,"
                " undo, undoing, error ->> 'code' AS error, claimed_epoch, deadline FROM rt_run"
                " WHERE entity_key = %s",
                (self.key,),
            )
            self.troubled = await issues.troubled(transaction, self.key)
        self.runs, self.held = {}, {}
        for row in rows:
            self.runs[row["id"]] = self._run(row)
            if row["claimed_epoch"] not in (None, self.epoch):
                self.held[row["id"]] = row["deadline"]
        self.actor = self.actor_class(self.key, state)
        self.undone = False

    def _run(self, row: dict[str, Any]) -> Run:
        run = Run(
            id=row["id"],
            kind=row["kind"],
            input=row["input"],
            step=row["step"],
            attempt=row["attempt"],
            reported=row["reported"],
            step_input=row["step_input"],
            parked=row["state"] == "parked",
            error=row["error"] or "",
            version=row["version"],
            undo=[(name, given) for name, given in row["undo"]],
            undoing=row["undoing"],
        )
        # What this release does not understand stays as it is stored: the run's next step
        # says so, and parks it; everything else of the entity goes on.
        with contextlib.suppress(WorkflowUnknown, ValidationError):
            run.input = self.workflows.of(run).input_type.model_validate(row["input"])
        return run

    async def reload(self) -> None:
        """Forget what a failed turn may have changed; the epoch and running steps stay."""
        held = self.held
        await self._load()
        self.held = {run_id: until for run_id, until in held.items() if run_id in self.runs}

    def forget(self) -> None:
        """Trust nothing in memory: the outcome of the last commit is unknown."""
        self.actor = None

    def turn(self, **told: Any) -> Turn:
        """Open a turn on the state; what *told* says besides is for its handler."""
        assert self.actor is not None
        return Turn(
            self.key,
            self.kernel.clock.now(),
            workflows=self.workflows,
            state=self.actor.state,
            runs=self.runs,
            admit=partial(admit, self.kernel.actors),
            **told,
        )
