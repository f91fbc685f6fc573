"""The turns of an activation: one message, one commit; or a failed attempt, written down."""

from __future__ import annotations

from foundry_ray.core.errors import FoundryError, Internal
from foundry_ray.core.logging import bound, get_logger
from foundry_ray.core.messages import decode
from foundry_ray.runtime import commit, mailbox, points
from foundry_ray.runtime.commit import AlreadyApplied, Fenced
from foundry_ray.runtime.doors import Doors, Handed
from foundry_ray.runtime.holding import Holding
from foundry_ray.runtime.kernel import Passivated
from foundry_ray.runtime.mailbox import PATIENCE, Letter
from foundry_ray.runtime.turn import Turn, problem
from foundry_ray.store.engine import StoreUnavailable

log = get_logger("runtime")


class Turns:
    """Takes the turns of one entity, one at a time."""

    def __init__(self, holding: Holding, doors: Doors) -> None:
        self._holding = holding
        self._kernel = holding.kernel
        self._doors = doors

    async def handle(self, letter: Letter) -> None:
        """Let the entity handle a message of its mailbox, and commit what comes of it."""
        begun = self._kernel.clock.now()
        with bound(
            message_id=letter.id,
            message_kind=letter.kind,
            command_id=letter.reply_to,
            request_id=letter.request_id,
        ):
            result = await self._handle(letter)
        took = (self._kernel.clock.now() - begun).total_seconds()
        waited = max((begun - letter.due_at).total_seconds(), 0)
        self._kernel.meter.turn(self._holding.actor_class.actor_type, result, took, waited)

    async def _handle(self, letter: Letter) -> str:
        """Return what became of the message, as a meter's result."""
        holding = self._holding
        if letter.attempts >= PATIENCE.max_attempts:
            return await self.failed(letter, Internal("Its process ended each time."))
        if holding.careful:
            await self._suspect(letter)
        assert holding.actor is not None
        turn = holding.turn(sender=letter.sender, command_id=letter.reply_to)
        refusal: FoundryError | None = None
        try:
            message = decode(letter.kind, letter.body)
            answer = holding.actor.receive(message, turn)
            if not turn.replied and not turn.deferred:
                turn.reply(answer)
        except FoundryError as error:
            if letter.reply_to is None or error.retryable:
                return await self.failed(letter, error)
            refusal = error
        except Exception as trouble:  # a bug of ours: the message is tried again, then parked
            log.exception("turn_failed")
            told = Internal(f"{type(trouble).__name__} in {letter.kind}.")
            return await self.failed(letter, told)
        if refusal is not None:
            await holding.reload()
            turn = holding.turn(sender=letter.sender, command_id=letter.reply_to)
            turn.refuse(refusal)
        try:
            await self.commit(turn, letter)
            # What people asked for is news; what entities tell each other is not.
            say = log.info if letter.reply_to else log.debug
            say("turn_taken", refused=refusal.code if refusal else None)
        except (Fenced, StoreUnavailable):
            raise
        except Exception as trouble:  # the rows refuse what the handler wrote: a bug of ours
            log.exception("commit_refused")
            told = Internal(f"{type(trouble).__name__} after {letter.kind}.")
            return await self.failed(letter, told)
        return "refused" if refusal else "done"

    async def _suspect(self, letter: Letter) -> None:
        """Count the attempt before it is made: perhaps this message ended the last process."""
        self._holding.careful = False
        async with self._kernel.database.transaction() as transaction:
            await self._holding.fence(transaction)
            await mailbox.count(transaction, letter.id, letter.attempts + 1)

    async def take(self, handed: Handed) -> None:
        """Let the entity handle a message that was handed over directly."""
        holding = self._holding
        assert holding.actor is not None
        turn = holding.turn()
        future = handed.future
        try:
            answer = holding.actor.receive(handed.message, turn)
            await self.commit(turn, None)
            if not future.done():
                future.set_result(answer)
        except FoundryError as error:
            fenced = isinstance(error, Fenced)
            if not future.done():
                future.set_exception(Passivated(key=holding.key) if fenced else error)
            if isinstance(error, Fenced | StoreUnavailable):
                raise
            await holding.reload()
        except Exception as trouble:  # a bug of ours: who handed it over hears of it
            log.exception("handed_failed", message_kind=handed.message.kind)
            if not future.done():
                future.set_exception(Internal(type(trouble).__name__))
            await holding.reload()
        finally:
            if not future.done():  # this activation dies in the middle of it
                future.set_exception(Passivated(key=holding.key))

    async def commit(self, turn: Turn, letter: Letter | None) -> None:
        """Write all that the turn collected, or nothing; *letter* is what it consumes.

        With the last message of its kind that had failed, the entity's issue is solved (N8).
        """
        point, troubled = self._kernel.point, self._holding.troubled
        point(points.BEFORE_BEGIN)
        try:
            async with self._kernel.database.transaction() as transaction:
                await self._holding.fence(transaction)
                point(points.TURN_OPEN)
                if letter is not None:
                    await commit.consume(transaction, letter.id)
                    if letter.kind in troubled and not await mailbox.failing(
                        transaction, turn.key, letter.kind
                    ):
                        turn.solved(letter.kind)
                        troubled.discard(letter.kind)
                await commit.write(transaction, turn.key, turn.effects, turn.now)
                point(points.BEFORE_COMMIT)
        except AlreadyApplied:
            log.info("already_applied")
            await self._holding.reload()
            return
        point(points.AFTER_COMMIT)
        self.after(turn)

    def after(self, turn: Turn) -> None:
        """Ring the doorbells and let replies leave; only now, after COMMIT."""
        holding, effects = self._holding, turn.effects
        holding.moved_at = self._kernel.clock.now()
        let_end = {change.run.id for change in effects.runs if change.let_end}
        # What was cancelled, or sent elsewhere, by somebody else than its own step.
        for run_id in (*effects.cancelled, *(change.run.id for change in effects.runs)):
            if (task := holding.working.get(run_id)) is None:
                continue
            if run_id in let_end and run_id in holding.runs:
                holding.leaving.add(task)
            else:
                task.cancel()
                del holding.working[run_id]
        for reply in effects.replies:
            self._doors.answer(reply.command_id)
        for target in dict.fromkeys(mail.target for mail in effects.mail):
            if target != holding.key:
                self._kernel.waker.ring(target)
        if effects.feed:
            self._kernel.hint()

    async def failed(self, letter: Letter, error: FoundryError) -> str:
        """Count a failed attempt: try later, or park, report and tell the parent (S28).

        Returns:
            Which of the two, as a meter's result.
        """
        holding = self._holding
        await holding.reload()
        attempt = min(letter.attempts + 1, PATIENCE.max_attempts)
        now = self._kernel.clock.now()
        parking = attempt >= PATIENCE.max_attempts
        turn = holding.turn(sender=letter.sender, command_id=letter.reply_to)
        if parking:
            turn.report(error, letter.kind, None, attempt=attempt, will_retry=False)
            turn.refuse(error)
        async with self._kernel.database.transaction() as transaction:
            await holding.fence(transaction)
            if parking:
                await mailbox.park(transaction, letter.id, attempt, now, problem(error))
                await commit.write(transaction, holding.key, turn.effects, now)
            else:
                due = now + PATIENCE.delay(attempt)
                await mailbox.delay(transaction, letter.id, attempt, due, problem(error))
            self._kernel.point(points.FAILURE_OPEN)
        self._kernel.point(points.AFTER_FAILURE)
        if parking:
            holding.troubled.add(letter.kind)
        log.warning("turn_undone", attempt=attempt, parked=parking, code=error.code)
        self.after(turn)
        return "parked" if parking else "again"
