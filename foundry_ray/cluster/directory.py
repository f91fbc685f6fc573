"""Finds, starts and rings the Ray actors of entities; this is the kernel's waker.

Creating and looking up actors blocks, for seconds when Ray is busy, so one thread does it and
every submission. All that it knows stands in that thread; others only put jobs into its queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, PendingCallsLimitExceeded

from foundry_ray.cluster.door import Answer, Door
from foundry_ray.core import keys
from foundry_ray.core.errors import FoundryError, Unavailable
from foundry_ray.core.logging import get_logger
from foundry_ray.core.messages import Message
from foundry_ray.runtime.crowding import Crowd
from foundry_ray.runtime.refs import raise_stored

log = get_logger("cluster")

NAMESPACE = "foundry"
# Starts under way per process. A start is mostly work for the processor: more only make each
# other slow, and everything else with them.
STARTS_AT_ONCE = max(2, os.cpu_count() or 1)
# Seconds after which a start, or a ring that is not answered, means a process that is blocked.
START_PATIENCE = 60.0
RING_PATIENCE = 10.0  # the same for one that has answered before: it needs no start
HAND_PATIENCE = 2.0  # seconds after which whoever was handed something is asked for a sign of life
LOOK_AGAIN = 0.1  # seconds, while others start or must leave first
LONGEST_BACKOFF = 30.0
RINGS_OF_A_FAILURE = 3
PENDING_CALLS = 1000  # per handle
REMEMBERED = 2000  # keys, before those that do nothing at the moment are forgotten
# Seconds before a lost ring is given again; then the supervisor's sweep finds what is due.
RING_AGAIN = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
DOOR_PATIENCE = 5.0  # seconds after which whoever asks hears that the node is full

# What an actor answers to ring, start and answered.
DONE, ENDED, FAILED = "done", "ended", "failed"


@dataclass
class _Job:
    """Something to do with the actor of a key: a method to call, or its end."""

    key: str
    method: str
    arguments: tuple[Any, ...] = ()
    attempt: int = 0
    loop: asyncio.AbstractEventLoop | None = None
    future: asyncio.Future[Any] | None = None
    handle: Any = None
    waits_since: float = 0.0

    def deliver(self, answer: Any, error: FoundryError | None = None) -> None:
        """Give the answer to whoever waits in an event loop."""
        if self.loop is None or self.future is None:
            return
        try:
            self.loop.call_soon_threadsafe(_settle, self.future, answer, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("answer_unheard", key=self.key)


@dataclass
class _Outcome:
    """What came of a call."""

    job: _Job
    answer: Any
    error: BaseException | None


@dataclass
class _Known:
    """What the thread knows of one key.

    Attributes:
        starting: When this process began to start it; 0 when it does not.
        ringing: When the oldest ring was given that is not answered; 0 when there is none.
        answered: It has answered this process.
        again: It was rung while it started.
        failures: Starts that failed one after the other.
        not_before: When the next start may be tried.
    """

    handle: Any = None
    starting: float = 0.0
    ringing: float = 0.0
    answered: bool = False
    again: bool = False
    failures: int = 0
    not_before: float = 0.0


def _settle(future: asyncio.Future[Any], answer: Any, error: FoundryError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)


@dataclass
class Directory:
    """The waker of one process of a Ray cluster (runtime.ports.Waker).

    Args:
        classes: Ray actor class by kind of entity.
        door: Limits what lives on a node; without one nothing does.
        namespace: Ray namespace in which names are unique.
    """

    classes: Mapping[str, Any]
    door: Door | None = None
    namespace: str = NAMESPACE
    _queue: queue.SimpleQueue[_Job | _Outcome | None] = field(default_factory=queue.SimpleQueue)
    _rung: set[str] = field(default_factory=set)
    _known: dict[str, _Known] = field(default_factory=dict)
    _later: list[tuple[float, int, _Job]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    # While nothing may start: why, who lives, and who waits, the first first.
    _closed: Answer | None = None
    _live: set[str] = field(default_factory=set)
    _waiting: dict[str, list[_Job]] = field(default_factory=dict)
    _thread: threading.Thread | None = None

    def open(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="directory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let the thread end; what is queued is forgotten, as any ring may be."""
        self._queue.put(None)

    # -- doors, for any thread or loop ---------------------------------------------------

    def ring(self, key: str) -> None:
        """Say that mail has come; never waits (S25)."""
        if key not in self._rung:  # a ring that is queued already will do for both
            self._rung.add(key)
            self._queue.put(_Job(key, "ring"))

    async def answered(self, key: str, command_id: str) -> None:
        """Ring, and return when the entity has written the reply of *command_id*.

        Raises:
            Unavailable: The activation ended, or the answer takes long; ask again.
        """
        if await self._call(key, "answered", command_id) != DONE:
            raise Unavailable(key=key)

    async def hand(self, key: str, message: Message) -> Any:
        """Give *message* directly to the activation of *key* and return its answer.

        Raises:
            Unavailable: The activation ended meanwhile; hand it over again.
            FoundryError: The entity refused it.
        """
        body = message.model_dump(mode="json")
        call = asyncio.create_task(self._call(key, "hand", message.kind, body))
        try:
            while not (await asyncio.wait({call}, timeout=HAND_PATIENCE))[0]:
                self.ring(key)  # a turn may wait for the database; a stopped process is ended
            answer = await call
        finally:
            call.cancel()
        if isinstance(answer, str):
            raise Unavailable(key=key)
        if answer["error"] is not None:
            raise_stored(answer["error"])
        return answer["answer"]

    async def health(self, key: str) -> dict[str, Any]:
        """Return what the actor of *key* says of itself; it is started if it is not there.

        Raises:
            Unavailable: It ended meanwhile.
        """
        answer = await self._call(key, "health")
        assert isinstance(answer, dict)
        return answer

    def drain(self, key: str) -> None:
        """Let an activation finish its turn and end, if there is one."""
        self._queue.put(_Job(key, "drain"))

    def end(self, key: str) -> None:
        """End an activation that does not move; the next ring starts a new one.

        One that this process is just starting is spared: it has its own patience.
        """
        self._queue.put(_Job(key, "end"))

    def make_room(self, key: str) -> None:
        """Let an activation finish its turn and end, unless it works on a step."""
        self._queue.put(_Job(key, "make_room"))

    async def crowd(self) -> Crowd | None:
        """Return who lives, and how many more may; None without a door."""
        if self.door is None:
            return None
        answer = await self._call("", "crowd")
        assert isinstance(answer, Crowd)
        return answer

    async def _call(self, key: str, method: str, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._queue.put(_Job(key, method, arguments, loop=loop, future=future))
        return await future

    # -- the thread ----------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                self._do(heapq.heappop(self._later)[2])
            wait = max(0.0, self._later[0][0] - now) if self._later else None
            try:
                item = self._queue.get(timeout=wait)
            except queue.Empty:
                continue
            if item is None:
                if self.door is not None:
                    self.door.close()
                return
            if isinstance(item, _Outcome):
                self._heard(item)
            else:
                self._do(item)

    def _do(self, job: _Job) -> None:
        if job.future is not None and job.future.cancelled():
            return
        if job.method in ("crowd", "knock"):
            self._look_around(job)
            return
        self._forget_idle()
        known = self._known.setdefault(job.key, _Known())
        now = time.monotonic()
        try:
            if job.method == "end":
                if not known.starting or now - known.starting > START_PATIENCE:
                    self._end(known, job.key)
                return
            if job.method in ("drain", "make_room"):
                with contextlib.suppress(ValueError):  # nobody has this name
                    handle = ray.get_actor(job.key, namespace=self.namespace)
                    getattr(handle, job.method).remote()
                return
            since = known.starting or known.ringing
            awake = known.answered and not known.starting
            if since and now - since > (RING_PATIENCE if awake else START_PATIENCE):
                log.warning("actor_stuck", key=job.key)
                self._end(known, job.key)
                known = self._known[job.key] = _Known()
            if known.handle is None and known.not_before > now:
                self._put_off(job, known.not_before)
                return
            if known.handle is None and (answer := self._find(known, job)) is not Answer.ENTER:
                self._wait(job, answer, now)
                return
            if job.method == "ring" and known.starting:
                self._rung.discard(job.key)
                known.again = True  # what is starting may have looked into its mailbox already
                return
            self._submit(known, job)
        except PendingCallsLimitExceeded:
            # So many rings wait there that another one would tell nothing new.
            job.deliver(None, Unavailable(key=job.key))
        except Exception as trouble:  # Ray itself is away; or a name was freed between two looks
            log.warning("actor_not_found", key=job.key, reason=repr(trouble)[:200])
            self._rung.discard(job.key)
            known.handle = None
            job.deliver(None, Unavailable(key=job.key))
            self._failed(known, job.key)

    def _find(self, known: _Known, job: _Job) -> Answer:
        """Get the actor, or start it; say if it must wait: for others to start, or to leave."""
        key = job.key
        root = keys.root_of(key) == key
        for_step = job.method == "hand"
        if self._closed and key not in self._live and not root and not for_step:
            return self._closed
        try:
            known.handle = ray.get_actor(key, namespace=self.namespace)
            return Answer.ENTER
        except ValueError:
            pass  # nobody has this name
        now = time.monotonic()
        begun = [one.starting for one in self._known.values() if one.starting]
        if sum(now - start < START_PATIENCE for start in begun) >= STARTS_AT_ONCE:
            return Answer.SOON
        if self.door is None or root:
            self._start(known, key)
            return Answer.ENTER
        with self.door.ask(self._names, for_step=for_step) as answer:
            if answer is Answer.ENTER:
                self._start(known, key)
        return answer

    def _names(self) -> set[str]:
        """Return the keys that have an actor, also one that only starts."""
        named = ray.util.list_named_actors(all_namespaces=True)
        return {one["name"] for one in named if one["namespace"] == self.namespace}

    def _wait(self, job: _Job, answer: Answer, now: float) -> None:
        """Let a job wait for a place, or say that there is none.

        On a full node only supervisors keep rings; their sweep rings whom the others forget.
        """
        job.waits_since = job.waits_since or now
        if answer is Answer.FULL and self.door is not None:
            if job.future is None and not self.door.orderly:
                self._rung.discard(job.key)
                return
            if job.future is not None and now - job.waits_since > DOOR_PATIENCE:
                job.deliver(None, Unavailable(key=job.key, hint="Too much lives at the moment."))
                return
        if self._closed is None:
            self._closed = answer
            self._put_off(_Job("", "knock"), now + LOOK_AGAIN)
        self._waiting.setdefault(job.key, []).append(job)

    def _look_around(self, job: _Job) -> None:
        """Say who lives; or let those go on who wait, in their order."""
        try:
            live = self._names()
            if job.method == "crowd":
                assert self.door is not None
                room = self.door.room(live)
                job.deliver(Crowd(frozenset(live), room, self.door.step_waits()))
                return
        except Exception as trouble:  # Ray itself is away: look later
            log.warning("crowd_unknown", reason=repr(trouble)[:200])
            job.deliver(None, Unavailable())
            if job.method == "knock":
                self._put_off(job, time.monotonic() + LOOK_AGAIN)
            return
        self._live, self._closed = live, None
        waiting, self._waiting = self._waiting, {}
        for jobs in waiting.values():
            for one in jobs:
                self._do(one)

    def _start(self, known: _Known, key: str) -> None:
        known.handle = (
            self.classes[keys.kind_of(key)]
            .options(
                name=key,
                namespace=self.namespace,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                # Dead means that the name is free; only what has work comes back. But there
                # must always be one `app`.
                max_restarts=-1 if key == keys.APP else 0,
                max_task_retries=0,
                max_pending_calls=PENDING_CALLS,
                enable_task_events=False,
            )
            .remote(key)
        )
        known.starting = time.monotonic()
        self._submit(known, _Job(key, "live"))
        self._submit(known, _Job(key, "start"))

    def _forget_idle(self) -> None:
        if len(self._known) > REMEMBERED:
            self._known = {k: v for k, v in self._known.items() if v.starting or v.failures}

    def _submit(self, known: _Known, job: _Job) -> None:
        if job.method == "ring":
            self._rung.discard(job.key)
            known.ringing = known.ringing or time.monotonic()
        job.handle = known.handle
        ref = getattr(known.handle, job.method).remote(*job.arguments)

        def heard(done: Any) -> None:
            error = done.exception()
            self._queue.put(_Outcome(job, None if error else done.result(), error))

        ref.future().add_done_callback(heard)

    def _heard(self, outcome: _Outcome) -> None:
        job, error = outcome.job, outcome.error
        known = self._known.setdefault(job.key, _Known())
        lost = error is not None or outcome.answer in (ENDED, FAILED)
        if known.handle is job.handle:
            known.answered = not lost
            known.handle = None if lost else known.handle
        if error is not None and not isinstance(error, ActorDiedError):
            log.warning("call_failed", key=job.key, method=job.method, error=repr(error)[:500])
        if job.method == "ring":
            known.ringing = 0.0
        if job.method == "start":
            self._started(known, job, failed=lost)
        elif job.method == "ring" and lost:
            self._ring_again(job)
        elif lost:
            job.deliver(None, Unavailable(key=job.key))
        else:
            job.deliver(outcome.answer)
        if known.handle is None and not known.failures and not known.starting:
            self._known.pop(job.key, None)

    def _started(self, known: _Known, job: _Job, *, failed: bool) -> None:
        known.starting = 0.0
        if failed:
            self._failed(known, job.key)
        else:
            known.failures = 0
            if known.again:
                self.ring(job.key)
        known.again = False

    def _failed(self, known: _Known, key: str) -> None:
        """Let the next start wait, longer each time: a broken class must not storm."""
        known.failures += 1
        pause = min(LONGEST_BACKOFF, 0.25 * 2**known.failures)
        known.not_before = time.monotonic() + pause
        if known.failures <= RINGS_OF_A_FAILURE:
            self.ring(key)  # afterwards the supervisor's sweep rings

    def _ring_again(self, job: _Job) -> None:
        if job.attempt < len(RING_AGAIN):
            again = _Job(job.key, "ring", attempt=job.attempt + 1)
            self._put_off(again, time.monotonic() + RING_AGAIN[job.attempt])

    def _put_off(self, job: _Job, at: float) -> None:
        heapq.heappush(self._later, (at, next(self._numbers), job))

    def _end(self, known: _Known, key: str) -> None:
        self._known.pop(key, None)
        handle = known.handle
        if handle is None:
            try:
                handle = ray.get_actor(key, namespace=self.namespace)
            except ValueError:
                return
        ray.kill(handle, no_restart=True)
