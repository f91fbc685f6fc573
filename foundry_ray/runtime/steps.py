"""The steps of an activation: claimed and finished by commits, worked on beside the turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from psycopg.types.json import Jsonb
from pydantic import SecretStr, ValidationError

from foundry_ray.core import disk
from foundry_ray.core.errors import (
    FoundryError,
    Internal,
    NotFound,
    Timeout,
    Unavailable,
    WorkflowUnknown,
)
from foundry_ray.core.logging import bound, get_logger
from foundry_ray.core.messages import Message
from foundry_ray.runtime import commit, mailbox, points
from foundry_ray.runtime.commit import Fenced
from foundry_ray.runtime.doors import Doors
from foundry_ray.runtime.holding import Holding
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.mailbox import PATIENCE, Letter
from foundry_ray.runtime.turn import problem
from foundry_ray.runtime.turns import Turns
from foundry_ray.runtime.workflow import Run, Step, unknown
from foundry_ray.store.engine import StoreUnavailable

log = get_logger("runtime")

GIVING_UP = 0.5  # seconds in which a step that is given up may clean up


@dataclass
class Outcome:
    """What a step came to; counts only while *task* is the one that works on the run."""

    letter: Letter
    run: Run
    task: asyncio.Task[None] | None = None
    result: Any = None
    error: FoundryError | None = None
    seconds: float = 0.0


@dataclass
class Context:
    """What a step may use besides its adapters."""

    kernel: Kernel
    key: str
    run_id: str
    attempt: int

    async def secret(self, secret_id: str) -> SecretStr:
        """Open the secret row with this id; NotFound when it is gone or expired."""
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
        """Encrypt a secret so that it can leave the step in a result."""
        return self.kernel.sealer.seal(secret, secret_id)

    async def hand(self, key: str, message: Message) -> Any:
        """Give a message directly to an entity and return its answer."""
        return await self.kernel.waker.hand(key, message)


class Steps:
    """Works on the steps of one entity's runs.

    Attributes:
        outcomes: Of steps whose work is done and not committed, in the order of their ends.
    """

    def __init__(self, holding: Holding, turns: Turns, doors: Doors) -> None:
        self._holding = holding
        self._kernel = holding.kernel
        self._turns = turns
        self._doors = doors
        self.outcomes: deque[Outcome] = deque()

    def stop(self) -> None:
        """Stop all work; what it came to counts no more."""
        for task in self._holding.working.values():
            task.cancel()
        self._holding.working.clear()
        self._holding.leaving.clear()
        self.outcomes.clear()

    async def give_up(self) -> None:
        """Stop all work and see it stopped; the next activation does it again."""
        stopped = list(self._holding.working.values())
        self.stop()
        if stopped:
            await asyncio.wait(stopped, timeout=GIVING_UP)

    async def begin(self, letter: Letter) -> None:
        """Claim the step (a fenced commit), then work on it beside the turns."""
        holding = self._holding
        run_id = letter.run_id or ""
        run = holding.runs.get(run_id)
        if run is None:
            async with self._kernel.database.transaction() as transaction:
                await holding.fence(transaction)
                await mailbox.consume(transaction, letter.id)
            return
        step = self._step(run)
        if step is None:
            nobody = unknown(run.kind, run.version, run.step)
            await self._fail(Outcome(letter, run, error=nobody))
            return
        if run.attempt >= step.retry.max_attempts + PATIENCE.max_attempts:
            died = Internal(f"{step.name} never came to an end: its process ended each time.")
            await self._fail(Outcome(letter, run, error=died))
            return
        now = self._kernel.clock.now()
        async with self._kernel.database.transaction() as transaction:
            await holding.fence(transaction)
            row = await transaction.one(
                "UPDATE rt_run SET state = 'claimed', attempt = attempt + 1, claimed_epoch = %s,"
                " deadline = %s, updated_at = %s WHERE id = %s RETURNING attempt, step_input",
                (holding.epoch, now + step.timeout, now, run_id),
            )
            self._kernel.point(points.CLAIM_OPEN)
        if row is None:
            return
        run.attempt = row["attempt"]
        holding.held.pop(run_id, None)
        self._kernel.point(points.STEP_CLAIMED)
        work = self._work(letter, run, step, row["step_input"])
        holding.working[run_id] = asyncio.create_task(work, name=f"{holding.key}:{step.name}")

    async def resume_known(self) -> None:
        """Go on with runs that were parked by a release which did not know their workflow."""
        for run in list(self._holding.runs.values()):
            if run.error != WorkflowUnknown.code:
                continue
            turn = self._holding.turn()
            try:
                turn.retry(run.id)
            except (WorkflowUnknown, ValidationError):
                continue  # not by this release either
            log.info("run_resumed", workflow=run.kind, version=run.version, run_id=run.id)
            await self._turns.commit(turn, None)

    async def _work(
        self, letter: Letter, run: Run, step: Step[Any, Any], raw: dict[str, Any]
    ) -> None:
        this = asyncio.current_task()
        outcome = Outcome(letter, run, this)
        context = Context(self._kernel, self._holding.key, run.id, run.attempt)
        tools = self._kernel.tools.get(self._holding.actor_class.actor_type)
        begun = self._kernel.clock.now()
        with self._bound(outcome):
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
                if disk.is_full(trouble):
                    full = f"No room is left on the disk for {step.name}."
                    outcome.error = Unavailable(full, hint=disk.NEXT_STEP)
        outcome.seconds = (self._kernel.clock.now() - begun).total_seconds()
        self._kernel.point(points.STEP_DONE)
        self.outcomes.append(outcome)
        self._doors.ring()

    async def _fail(self, outcome: Outcome) -> None:
        """Fail a step that is not begun any more."""
        with self._bound(outcome):
            await self._failed(outcome)

    @staticmethod
    def _bound(outcome: Outcome) -> AbstractContextManager[Any]:
        run, letter = outcome.run, outcome.letter
        return bound(
            workflow=run.kind,
            step=run.step,
            run_id=run.id,
            attempt=run.attempt,
            request_id=letter.request_id,
        )

    async def finish(self, outcome: Outcome) -> None:
        """Commit a step's result, or its failure (a fenced commit)."""
        with self._bound(outcome):
            await self._finish(outcome)

    async def _finish(self, outcome: Outcome) -> None:
        holding, letter = self._holding, outcome.letter
        if holding.working.get(outcome.run.id) is not outcome.task:
            return  # the run was cancelled or sent elsewhere meanwhile: this counts no more
        if outcome.task in holding.leaving:
            holding.leaving.discard(outcome.task)
            del holding.working[outcome.run.id]
            return  # the run was given up meanwhile: what was done will be undone
        if outcome.error is not None:
            await self._failed(outcome)
            return
        run = holding.runs[outcome.run.id]
        turn = holding.turn()
        before = replace(run)
        try:
            turn.advance(run, outcome.result)
            over = run.id not in holding.runs
            if before.reported or (over and before.work in holding.troubled):
                turn.solved(before.work)
                holding.troubled.discard(before.work)
                run.reported = False
            await self._turns.commit(turn, letter)
            self._count(outcome, "done")
            log.debug("step_taken")
            holding.working.pop(run.id, None)
        except (Fenced, StoreUnavailable):
            raise
        except Exception as trouble:  # a bug of ours in the order of steps
            log.exception("workflow_failed")
            outcome.error = Internal(f"{type(trouble).__name__} after {before.step}.")
            await holding.reload()
            await self._failed(outcome)
            return
        self._doors.ring()

    def _count(self, outcome: Outcome, result: str) -> None:
        kind = self._holding.actor_class.actor_type
        self._kernel.meter.step(kind, result, outcome.seconds)

    def _step(self, run: Run) -> Step[Any, Any] | None:
        """Return the step at which a run stands; None when this release does not know it."""
        try:
            return self._holding.workflows.of(run).step_named(run.step)
        except WorkflowUnknown:
            return None

    def _hook(self, run: Run, *, again: bool) -> Callable[..., None]:
        """Return what the run's workflow wants to do about a failure."""
        workflow = self._holding.workflows.of(run)
        if not run.undoing:
            return workflow.on_retry if again else workflow.on_error
        return workflow.on_undo_error if not again else lambda *_: None

    async def _failed(self, outcome: Outcome) -> None:
        """Count a failed attempt: try later, or park the run and report (S28)."""
        holding, letter, error = self._holding, outcome.letter, outcome.error
        assert error is not None
        assert holding.actor is not None
        run = holding.runs[outcome.run.id]
        run.attempt = outcome.run.attempt
        step = self._step(run)
        now = self._kernel.clock.now()
        again = bool(step and error.retryable and run.attempt < step.retry.max_attempts)
        turn = holding.turn()
        work, name, attempt = run.work, run.step, run.attempt  # the hook may change them
        run.reported = False  # what the hook ends has not been solved by that
        try:
            if step is not None:  # what nobody knows has no hook
                hook = self._hook(run, again=again)
                hook(holding.actor.state, run, error, turn)
        except Exception:  # a bug of ours; the failure itself must be recorded all the same
            log.exception("error_hook_failed")
            await holding.reload()
            turn, run = holding.turn(), holding.runs[outcome.run.id]
            run.attempt = attempt
        run.reported = run.work == work  # what is undone now will not succeed
        # The hook may end the run instead of parking it, or send it elsewhere.
        over = run.id not in holding.runs
        moved = any(change.run is run for change in turn.effects.runs)
        run.parked = not again and not moved
        run.error = error.code if run.parked else ""
        turn.report(error, work, name, attempt=attempt, will_retry=again)
        async with self._kernel.database.transaction() as transaction:
            await holding.fence(transaction)
            if step is not None and again:
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
            await commit.write(transaction, holding.key, turn.effects, now)
            self._kernel.point(points.FAILURE_OPEN)
        self._kernel.point(points.AFTER_FAILURE)
        holding.working.pop(run.id, None)
        holding.troubled.add(work)
        self._count(outcome, "again" if again else "parked")
        log.warning(
            "step_undone", workflow=run.kind, failed=name, attempt=max(attempt, 1),
            code=error.code, again=again,
        )  # fmt: skip
        self._turns.after(turn)
        self._doors.ring()
