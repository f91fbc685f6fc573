"""One live activation of an entity: takes turns, works on steps, and ends when idle.

It is a cache that may commit only while it holds the current epoch. Whatever
happens to it, the rows say what is still to do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from foundry_ray.core import keys
from foundry_ray.core.clock import Clock
from foundry_ray.core.errors import FoundryError, Internal, NotFound, Timeout, Unavailable
from foundry_ray.core.logging import get_logger
from foundry_ray.core.messages import (
    ChildFailed,
    Failure,
    IssueReported,
    IssueResolved,
    Message,
    decode,
)
from foundry_ray.core.secrets import Sealer
from foundry_ray.runtime import commit, host, issues, mailbox, points, supervision
from foundry_ray.runtime.actor import Actor
from foundry_ray.runtime.commit import AlreadyApplied, Fenced
from foundry_ray.runtime.mailbox import PATIENCE, Letter
from foundry_ray.runtime.ports import Waker
from foundry_ray.runtime.turn import Turn, problem
from foundry_ray.runtime.workflow import Run, Step, Workflow
from foundry_ray.store.engine import CommitConflict, Database, StoreUnavailable, Transaction

log = get_logger("runtime")

# A store that is away is asked again this often; turns wait meanwhile, nothing is lost.
STORE_PATIENCE = timedelta(seconds=0.5)
# How long an activation waits for its cluster's turn; ``app`` waits for ever.
LEASE_PATIENCE = timedelta(seconds=15)


class Passivated(Unavailable):
    """The activation ended; ring again to start a new one."""

    code = "passivated"


class LeaseElsewhere(Unavailable):
    """Another cluster on this database may activate now, not this one."""

    code = "lease_elsewhere"


@dataclass
class Kernel:
    """What every activation of a process shares.

    Attributes:
        tools: Per actor type, what its steps work with (adapters).
        lease_holder: Name of the cluster, which activates only while it has the lease;
            None when there can be only one.
        hint: Called after a commit with feed rows; wakes the streams.
        point: Called with the name of each of the ``points`` that is passed.
    """

    database: Database
    clock: Clock
    sealer: Sealer
    waker: Waker
    tools: dict[str, Any]
    actors: dict[str, type[Actor[Any]]]
    idle_factor: float = 1.0
    lease_holder: str | None = None
    hint: Callable[[], None] = lambda: None
    point: Callable[[str], None] = lambda _name: None


@dataclass
class _Outcome:
    """What a step came to; counts only while *task* is the one that works on the run."""

    letter: Letter
    run: Run
    task: asyncio.Task[None] | None = None
    result: Any = None
    error: FoundryError | None = None


@dataclass
class _Handed:
    """A message handed over directly, and who waits for its answer."""

    message: Message
    future: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass
class _Context:
    """What a step may use besides its adapters."""

    kernel: Kernel
    key: str
    run_id: str
    attempt: int

    async def secret(self, secret_id: str) -> SecretStr:
        async with self.kernel.database.transaction() as transaction:
            row = await transaction.one(
                "SELECT sealed FROM rt_secret WHERE id = %s"
                " AND (expires_at IS NULL OR expires_at > %s)",
                (secret_id, self.kernel.clock.now()),
            )
        if row is None:
            raise NotFound("A secret is gone or has expired.", secret_id=secret_id)
        return self.kernel.sealer.open(row["sealed"], secret_id)

    def seal(self, secret: SecretStr | str, secret_id: str) -> str:
        return self.kernel.sealer.seal(secret, secret_id)

    async def hand(self, key: str, message: Message) -> Any:
        return await self.kernel.waker.hand(key, message)


class Activation:
    """The live part of one entity; run :meth:`run` as a task of its own."""

    def __init__(self, kernel: Kernel, key: str) -> None:
        self.key = key
        self.kernel = kernel
        self.actor_class = kernel.actors[keys.kind_of(key)]
        self.workflows: dict[str, Workflow[Any]] = {
            workflow.kind: workflow() for workflow in self.actor_class.workflows
        }
        self.actor: Actor[Any] | None = None
        self.epoch = 0
        self.activated = asyncio.Event()
        self.ended = asyncio.Event()
        self.moved_at = kernel.clock.now()
        self._runs: dict[str, Run] = {}
        self._held: dict[str, datetime] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._outcomes: deque[_Outcome] = deque()
        self._handed: deque[_Handed] = deque()
        self._waiters: dict[str, list[asyncio.Event]] = {}
        self._troubled: set[str] = set()
        self._careful = False
        self._wake = asyncio.Event()
        self._draining = False
        self._undone = False  # a turn was undone and may have left its traces in the state

    # -- doors -----------------------------------------------------------------------

    def ring(self) -> None:
        """Look into the mailbox soon."""
        self._wake.set()

    async def answered(self, command_id: str) -> None:
        """Return when the reply of *command_id* is committed; Passivated if this ends before."""
        event = asyncio.Event()
        self._waiters.setdefault(command_id, []).append(event)
        self.ring()
        try:
            if await self._has_reply(command_id):
                return
            ended = asyncio.ensure_future(self.ended.wait())
            replied = asyncio.ensure_future(event.wait())
            try:
                await asyncio.wait((ended, replied), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                replied.cancel()
            if not event.is_set():
                raise Passivated(key=self.key)
        finally:
            waiters = self._waiters[command_id]
            waiters.remove(event)
            if not waiters:
                del self._waiters[command_id]

    async def hand(self, message: Message) -> Any:
        """Handle *message* in a turn of its own and return the answer."""
        if self.ended.is_set():
            raise Passivated(key=self.key)
        handed = _Handed(message)
        self._handed.append(handed)
        self.ring()
        return await handed.future

    def drain(self) -> None:
        """Finish the turn, release, end."""
        self._draining = True
        self.ring()

    def make_room(self) -> None:
        """Leave to somebody who waits for a place; but not while a step is under way."""
        if not self._working:
            self.drain()

    async def _has_reply(self, command_id: str) -> bool:
        async with self.kernel.database.transaction() as transaction:
            row = await transaction.one(
                "SELECT replied_at FROM rt_inbox_seen WHERE command_id = %s", (command_id,)
            )
        return row is not None and row["replied_at"] is not None

    # -- life ------------------------------------------------------------------------

    async def run(self) -> None:
        """Activate, take turns until idle, fenced or drained, then release."""
        try:
            with structlog.contextvars.bound_contextvars(actor_key=self.key):
                await self._live()
        finally:
            self._end()

    async def _live(self) -> None:
        while True:
            try:
                if self.actor is None:
                    await self._activate()
                    self.kernel.point(points.ACTIVATED)
                elif self._undone:
                    await self._reload()
                if await self._once():
                    return
            except Fenced:
                log.info("activation_fenced", epoch=self.epoch)
                return
            except LeaseElsewhere:
                waited = self.kernel.clock.now() - self.moved_at
                if self._draining or (self.key != keys.APP and waited > LEASE_PATIENCE):
                    log.info("lease_elsewhere")
                    return
                await asyncio.sleep(STORE_PATIENCE.total_seconds())
            except CommitConflict as conflict:
                log.info("turn_repeated", reason=conflict.context.get("reason"))
                self._undone = True
            except StoreUnavailable as trouble:
                # The outcome of the last commit is unknown: begin again from the rows.
                log.warning("store_away", reason=trouble.context.get("reason"))
                self.actor = None
                self._wake.clear()
                await self._nap(STORE_PATIENCE)

    async def _activate(self) -> None:
        now = self.kernel.clock.now()
        self._stop_steps()
        async with self.kernel.database.transaction() as transaction:
            before = await transaction.one(
                "SELECT host, epoch FROM rt_entity WHERE key = %s FOR UPDATE", (self.key,)
            )
            gone = before is None or host.proven_gone(before["host"])
            if before is not None and not gone and 0 < self.epoch < before["epoch"]:
                # The database was away, and somebody else took over meanwhile.
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
        await self._wake_the_answered()
        self.activated.set()
        log.info("activated", epoch=self.epoch)

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
            self._careful = True  # it did not release: it died
        if gone:
            # Its claims are free; those of activations before it keep their deadlines.
            await transaction.execute(
                "UPDATE rt_run SET claimed_epoch = NULL, deadline = NULL, state = 'pending'"
                " WHERE entity_key = %s AND claimed_epoch = %s",
                (self.key, before["epoch"]),
            )

    async def _suspect(self, letter: Letter) -> None:
        """Count the attempt before it is made: perhaps this message ended the last process."""
        self._careful = False
        async with self.kernel.database.transaction() as transaction:
            await commit.fence(transaction, self.key, self.epoch)
            await mailbox.count(transaction, letter.id, letter.attempts + 1)

    async def _wake_the_answered(self) -> None:
        """Let go who waits for a reply whose commit was unknown and turned out to be there."""
        if not self._waiters:
            return
        async with self.kernel.database.transaction() as transaction:
            rows = await transaction.fetch(
                "SELECT command_id FROM rt_inbox_seen"
                " WHERE command_id = ANY(%s) AND replied_at IS NOT NULL",
                (list(self._waiters),),
            )
        for row in rows:
            self._answer(row["command_id"])

    def _answer(self, command_id: str) -> None:
        for event in self._waiters.get(command_id, ()):
            event.set()

    async def _load(self) -> None:
        async with self.kernel.database.transaction() as transaction:
            state = await self.actor_class.load(transaction, self.key)
            rows = await transaction.fetch(
                "SELECT id, kind, input, step, step_input, state, attempt, reported, claimed_epoch,"
                " deadline"
                " FROM rt_run WHERE entity_key = %s",
                (self.key,),
            )
            troubled = await issues.troubled(transaction, self.key)
        self._troubled = troubled
        self._runs = {}
        self._held = {}
        for row in rows:
            workflow = self.workflows[row["kind"]]
            self._runs[row["id"]] = Run(
                id=row["id"],
                kind=row["kind"],
                input=workflow.input_type.model_validate(row["input"]),
                step=row["step"],
                attempt=row["attempt"],
                reported=row["reported"],
                step_input=row["step_input"],
                parked=row["state"] == "parked",
            )
            claimed = row["claimed_epoch"]
            if claimed is not None and claimed != self.epoch:
                self._held[row["id"]] = row["deadline"]
        self.actor = self.actor_class(self.key, state)
        self._undone = False

    async def _reload(self) -> None:
        """Forget what a failed turn may have changed; the epoch and running steps stay."""
        held = self._held
        await self._load()
        self._held = {run_id: until for run_id, until in held.items() if run_id in self._runs}

    async def _once(self) -> bool:
        """Do one thing; return True when the activation is over."""
        self._wake.clear()
        if self._outcomes:
            await self._finish_step(self._outcomes[0])
            self._outcomes.popleft()
            return False
        if self._handed:
            await self._take(self._handed.popleft())
            return False
        if self._draining and not self._working:
            return await self._release()
        now = self.kernel.clock.now()
        choice = await self._choose(now)
        if not self._draining:
            for letter in choice.steps:
                await self._begin_step(letter)
            if choice.message is not None:
                if choice.message.attempts >= PATIENCE.max_attempts:
                    await self._failed(choice.message, Internal("Its process ended each time."))
                    return False
                if self._careful:
                    await self._suspect(choice.message)
                await self._handle(choice.message)
                return False
        idle = self.actor_class.idle_after
        patience = idle * self.kernel.idle_factor if idle is not None else timedelta(hours=1)
        until = choice.look_again
        wait = patience if until is None else min(patience, max(until - now, timedelta(0)))
        if await self._nap(wait) or self._working or idle is None:
            return False
        if until is not None and until - now <= patience:
            return False
        return await self._release()

    async def _choose(self, now: datetime) -> mailbox.Choice:
        """Choose among the first pending rows; look further while all of them must wait."""
        batch = mailbox.BATCH
        while True:
            async with self.kernel.database.transaction() as transaction:
                letters = await mailbox.pending(transaction, self.key, batch)
            choice = mailbox.choose(letters, now, self._working.keys(), self._held)
            steps = sum(letter.run_id is not None for letter in letters)
            whole = max(steps, len(letters) - steps) < batch
            if whole or choice.message is not None or choice.steps:
                return choice
            batch *= 4

    async def _nap(self, wait: timedelta) -> bool:
        """Wait for a ring; return whether one came."""
        try:
            async with asyncio.timeout(wait.total_seconds()):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def _release(self) -> bool:
        """Passivate if nothing is due; one statement, so that no mail is overlooked.

        Raises:
            Fenced: A newer activation exists; this one has nothing to release.
        """
        now = self.kernel.clock.now()
        async with self.kernel.database.transaction() as transaction:
            touched = await transaction.execute(
                "UPDATE rt_entity SET host = NULL WHERE key = %(key)s AND epoch = %(epoch)s"
                " AND (%(draining)s OR NOT EXISTS (SELECT 1 FROM rt_mailbox WHERE target = %(key)s"
                " AND parked_at IS NULL AND due_at <= %(now)s))",
                {"key": self.key, "epoch": self.epoch, "draining": self._draining, "now": now},
            )
            if touched != 1:
                await commit.fence(transaction, self.key, self.epoch)
                return False
            self.kernel.point(points.RELEASING)
        self.kernel.point(points.RELEASED)
        if self._handed or (self._wake.is_set() and not self._draining):
            self.actor = None  # somebody came meanwhile; a released entity is activated anew
            return False
        log.info("passivated", epoch=self.epoch)
        return True

    def _end(self) -> None:
        self.ended.set()
        self._stop_steps()
        for handed in self._handed:
            if not handed.future.done():
                handed.future.set_exception(Passivated(key=self.key))
        self._handed.clear()

    def _stop_steps(self) -> None:
        for task in self._working.values():
            task.cancel()
        self._working.clear()
        self._outcomes.clear()

    # -- turns -----------------------------------------------------------------------

    def _turn(self, **told: Any) -> Turn:
        assert self.actor is not None
        return Turn(
            self.key,
            self.kernel.clock.now(),
            workflows=self.workflows,
            state=self.actor.state,
            runs=self._runs,
            **told,
        )

    async def _handle(self, letter: Letter) -> None:
        assert self.actor is not None
        turn = self._turn(sender=letter.sender, command_id=letter.reply_to)
        refusal: FoundryError | None = None
        try:
            message = decode(letter.kind, letter.body)
            answer = self.actor.receive(message, turn)
            if not turn.replied and not turn.deferred:
                turn.reply(answer)
        except FoundryError as error:
            if letter.reply_to is None or error.retryable:
                await self._failed(letter, error)
                return
            refusal = error
        except Exception as trouble:  # a bug of ours: the message is tried again, then parked
            log.exception("turn_failed", message_kind=letter.kind, letter=letter.id)
            await self._failed(letter, Internal(f"{type(trouble).__name__} in {letter.kind}."))
            return
        if refusal is not None:
            await self._reload()
            turn = self._turn(sender=letter.sender, command_id=letter.reply_to)
            turn.refuse(refusal)
        try:
            await self._commit(turn, letter)
        except (Fenced, StoreUnavailable):
            raise
        except Exception as trouble:  # the rows refuse what the handler wrote: a bug of ours
            log.exception("commit_refused", message_kind=letter.kind, letter=letter.id)
            await self._failed(letter, Internal(f"{type(trouble).__name__} after {letter.kind}."))

    async def _take(self, handed: _Handed) -> None:
        assert self.actor is not None
        turn = self._turn()
        future = handed.future
        try:
            answer = self.actor.receive(handed.message, turn)
            await self._commit(turn, None)
            if not future.done():
                future.set_result(answer)
        except FoundryError as error:
            fenced = isinstance(error, Fenced)
            if not future.done():
                future.set_exception(Passivated(key=self.key) if fenced else error)
            if isinstance(error, Fenced | StoreUnavailable):
                raise
            await self._reload()
        except Exception as trouble:  # a bug of ours: who handed it over hears of it
            log.exception("handed_failed", message_kind=handed.message.kind)
            if not future.done():
                future.set_exception(Internal(type(trouble).__name__))
            await self._reload()
        finally:
            if not future.done():  # this activation dies in the middle of it
                future.set_exception(Passivated(key=self.key))

    async def _commit(self, turn: Turn, letter: Letter | None) -> None:
        self.kernel.point(points.BEFORE_BEGIN)
        try:
            async with self.kernel.database.transaction() as transaction:
                await commit.fence(transaction, self.key, self.epoch)
                self.kernel.point(points.TURN_OPEN)
                if letter is not None:
                    await commit.consume(transaction, letter.id)
                await commit.write(transaction, self.key, turn.effects, turn.now)
                self.kernel.point(points.BEFORE_COMMIT)
        except AlreadyApplied:
            log.info("already_applied", letter=letter.id if letter else None)
            await self._reload()
            return
        self.kernel.point(points.AFTER_COMMIT)
        self._after(turn)

    def _after(self, turn: Turn) -> None:
        """Ring the doorbells and let replies leave; only now, after COMMIT."""
        self.moved_at = self.kernel.clock.now()
        effects = turn.effects
        # What was cancelled, or sent elsewhere, by somebody else than its own step.
        for run_id in (*effects.cancelled, *(change.run.id for change in effects.runs)):
            task = self._working.pop(run_id, None)
            if task is not None:
                task.cancel()
        for reply in effects.replies:
            self._answer(reply.command_id)
        for target in dict.fromkeys(mail.target for mail in effects.mail):
            if target != self.key:
                self.kernel.waker.ring(target)
        if effects.feed:
            self.kernel.hint()

    async def _failed(self, letter: Letter, error: FoundryError) -> None:
        """Count a failed attempt: try later, or park, report and tell the parent (S28)."""
        await self._reload()
        attempt = min(letter.attempts + 1, PATIENCE.max_attempts)
        now = self.kernel.clock.now()
        parking = attempt >= PATIENCE.max_attempts
        turn = self._turn(sender=letter.sender, command_id=letter.reply_to)
        failure = Failure(
            fingerprint=f"{letter.kind}:{error.code}",
            code=error.code,
            message=error.message,
            hint=error.hint,
            entity=self.key,
            workflow=letter.kind,
            attempt=attempt,
            will_retry=not parking,
        )
        if parking:
            self._report(turn, failure, to_parent=True)
            turn.refuse(error)
        async with self.kernel.database.transaction() as transaction:
            await commit.fence(transaction, self.key, self.epoch)
            if parking:
                await mailbox.park(transaction, letter.id, attempt, now, problem(error))
                await commit.write(transaction, self.key, turn.effects, now)
            else:
                due = now + PATIENCE.delay(attempt)
                await mailbox.delay(transaction, letter.id, attempt, due, problem(error))
            self.kernel.point(points.FAILURE_OPEN)
        self.kernel.point(points.AFTER_FAILURE)
        log.warning("turn_undone", message_kind=letter.kind, attempt=attempt, parked=parking)
        self._after(turn)

    def _report(self, turn: Turn, failure: Failure, *, to_parent: bool) -> None:
        if failure.workflow != issues.REPORTED:  # a root that cannot take issues takes no more
            turn.tell(keys.root_of(self.key), IssueReported(failure=failure))
        parent = keys.parent_of(self.key)
        if to_parent and parent is not None:
            turn.tell(parent, ChildFailed(child=self.key, failure=failure))

    # -- steps -----------------------------------------------------------------------

    async def _begin_step(self, letter: Letter) -> None:
        """Claim the step (a fenced commit), then work on it beside the turns."""
        run_id = letter.run_id or ""
        run = self._runs.get(run_id)
        if run is None:
            async with self.kernel.database.transaction() as transaction:
                await commit.fence(transaction, self.key, self.epoch)
                await mailbox.consume(transaction, letter.id)
            return
        step = self.workflows[run.kind].step_named(run.step)
        if run.attempt >= step.retry.max_attempts + PATIENCE.max_attempts:
            died = Internal(f"{step.name} never came to an end: its process ended each time.")
            await self._step_failed(_Outcome(letter, run, error=died))
            return
        now = self.kernel.clock.now()
        async with self.kernel.database.transaction() as transaction:
            await commit.fence(transaction, self.key, self.epoch)
            row = await transaction.one(
                "UPDATE rt_run SET state = 'claimed', attempt = attempt + 1, claimed_epoch = %s,"
                " deadline = %s, updated_at = %s WHERE id = %s RETURNING attempt, step_input",
                (self.epoch, now + step.timeout, now, run_id),
            )
            self.kernel.point(points.CLAIM_OPEN)
        if row is None:
            return
        run.attempt = row["attempt"]
        self._held.pop(run_id, None)
        self.kernel.point(points.STEP_CLAIMED)
        work = self._work(letter, run, step, row["step_input"])
        self._working[run_id] = asyncio.create_task(work, name=f"{self.key}:{step.name}")

    async def _work(
        self, letter: Letter, run: Run, step: Step[Any, Any], raw: dict[str, Any]
    ) -> None:
        this = asyncio.current_task()
        outcome = _Outcome(letter, run, this)
        context = _Context(self.kernel, self.key, run.id, run.attempt)
        tools = self.kernel.tools.get(self.actor_class.actor_type)
        with structlog.contextvars.bound_contextvars(step=step.name, run_id=run.id):
            try:
                async with asyncio.timeout(step.timeout.total_seconds()):
                    outcome.result = await step.work(
                        tools, step.input_type.model_validate(raw), context
                    )
            except TimeoutError:
                outcome.error = Timeout(f"{step.name} took longer than {step.timeout}.")
            except FoundryError as error:
                outcome.error = error
            except asyncio.CancelledError:
                if this is None or this.cancelling():
                    raise
                outcome.error = Unavailable(f"Something that {step.name} waited for was cancelled.")
            except Exception as trouble:  # a bug of ours, or an error no adapter classified
                log.exception("step_failed")
                outcome.error = Internal(f"{type(trouble).__name__} in {step.name}.")
        self.kernel.point(points.STEP_DONE)
        self._outcomes.append(outcome)
        self.ring()

    async def _finish_step(self, outcome: _Outcome) -> None:
        """Commit a step's result, or its failure (a fenced commit)."""
        run, letter = outcome.run, outcome.letter
        if self._working.get(run.id) is not outcome.task:
            return  # the run was cancelled or sent elsewhere meanwhile: this counts no more
        run = self._runs[run.id]
        if outcome.error is None:
            turn = self._turn()
            before = replace(run)
            try:
                turn.advance(run, outcome.result)
                over = run.id not in self._runs
                if before.reported or (over and run.kind in self._troubled):
                    solved = IssueResolved(entity=self.key, workflow=run.kind)
                    turn.tell(keys.root_of(self.key), solved)
                    self._troubled.discard(run.kind)
                    run.reported = False
                await self._commit(turn, letter)
                self._working.pop(run.id, None)
            except (Fenced, StoreUnavailable):
                raise
            except Exception as trouble:  # a bug of ours in the order of steps
                log.exception("workflow_failed", workflow=run.kind)
                outcome.error = Internal(f"{type(trouble).__name__} after {before.step}.")
                await self._reload()
                await self._step_failed(outcome)
                return
            self.ring()
        else:
            await self._step_failed(outcome)

    async def _step_failed(self, outcome: _Outcome) -> None:
        run, letter, error = self._runs[outcome.run.id], outcome.letter, outcome.error
        assert error is not None
        run.attempt = outcome.run.attempt
        workflow = self.workflows[run.kind]
        step = workflow.step_named(run.step)
        now = self.kernel.clock.now()
        again = error.retryable and run.attempt < step.retry.max_attempts
        turn = self._turn()
        failure = Failure(
            fingerprint=f"{run.kind}:{step.name}:{error.code}",
            code=error.code,
            message=error.message,
            hint=error.hint,
            entity=self.key,
            workflow=run.kind,
            step=step.name,
            attempt=run.attempt,
            will_retry=again,
        )
        assert self.actor is not None
        run.reported = False  # what the hook ends has not been solved by that
        try:
            hook = workflow.on_retry if again else workflow.on_error
            hook(self.actor.state, run, error, turn)
        except Exception:  # a bug of ours; the failure itself must be recorded all the same
            log.exception("error_hook_failed", workflow=run.kind)
            await self._reload()
            turn, run = self._turn(), self._runs[outcome.run.id]
            run.attempt = outcome.run.attempt
        run.reported = True
        # The hook may end the run instead of parking it, or send it elsewhere.
        over = run.id not in self._runs
        moved = any(change.run is run for change in turn.effects.runs)
        run.parked = not again and not moved
        self._report(turn, failure, to_parent=not again)
        async with self.kernel.database.transaction() as transaction:
            await commit.fence(transaction, self.key, self.epoch)
            if again:
                due = now + step.retry.delay(run.attempt)
                await mailbox.delay(transaction, letter.id, run.attempt, due, problem(error))
            else:
                await mailbox.consume(transaction, letter.id)
            if not over and not moved:
                await transaction.execute(
                    "UPDATE rt_run SET state = %s, reported = true, error = %s,"
                    " claimed_epoch = NULL, deadline = NULL, updated_at = %s WHERE id = %s",
                    ("pending" if again else "parked", Jsonb(problem(error)), now, run.id),
                )
            await commit.write(transaction, self.key, turn.effects, now)
            self.kernel.point(points.FAILURE_OPEN)
        self.kernel.point(points.AFTER_FAILURE)
        self._working.pop(run.id, None)
        self._troubled.add(run.kind)
        log.warning(
            "step_undone", workflow=run.kind, failed=step.name, attempt=run.attempt,
            code=error.code, again=again,
        )  # fmt: skip
        self._after(turn)
        self.ring()
