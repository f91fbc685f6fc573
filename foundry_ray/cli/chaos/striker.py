"""Kills by plan: brings about the moment, proves it, sends SIGKILL, and watches the way back."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundry_ray.cli.chaos import moments, prompts, targets
from foundry_ray.cli.chaos.load import Load, Work
from foundry_ray.cli.chaos.outside import Outside
from foundry_ray.cli.chaos.plan import Cell, Plan
from foundry_ray.cli.chaos.report import Kill
from foundry_ray.cli.chaos.targets import Target
from foundry_ray.cli.services import ask
from foundry_ray.core import keys
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import Unavailable
from foundry_ray.runtime import points
from foundry_ray.runtime.failpoints import Snare

# Seconds that are waited for a part to be back before the next kill.
BACK_PATIENCE = {"Serve replica": 12.0, "PostgreSQL": 60.0}
OTHERS_PATIENCE = 4.0
LAST_TRIES = 5  # for the kill after which everything must be well in ten seconds
LEFT_WITHIN = 0.03  # seconds after a prompt left in which it is followed by the kill
_LOOK = 0.2

TURN_OPEN = (points.TURN_OPEN, points.BEFORE_COMMIT)
STEP_CLAIMED = (points.STEP_CLAIMED,)

_OPEN = """
SELECT state, round(extract(epoch FROM clock_timestamp() - xact_start) * 1000)::int AS ms
FROM pg_stat_activity WHERE application_name = left(%s, 63) AND xact_start IS NOT NULL
ORDER BY xact_start
"""
_CLAIMED = "SELECT step, attempt FROM rt_run WHERE entity_key = %s AND state = 'claimed'"
_HOST = "SELECT host, epoch FROM rt_entity WHERE key = %s"


class Striker:
    """Sends the kills of one run.

    Attributes:
        kills: What was killed, in order.
        began: What times of kills count from, by the monotonic clock.
    """

    def __init__(
        self,
        outside: Outside,
        load: Load,
        failpoints: Path,
        *,
        seed: int,
        began: float,
        tell: Callable[[str], None],
    ) -> None:
        self.kills: list[Kill] = []
        self.began = began
        self._outside = outside
        self._load = load
        self._failpoints = failpoints
        self.plan = Plan(seed)
        self._chance = random.Random(seed + 1)  # noqa: S311 - repeatable, not secret
        self._tell = tell
        self._clock = SystemClock()
        self._watching: set[asyncio.Task[None]] = set()

    async def run(self, until: float) -> None:
        """Kill one after the other until the monotonic clock says *until*; once more then."""
        while time.monotonic() < until:
            if kill := await self._next():
                await self._healed(kill, until)
        for _ in range(LAST_TRIES):
            if await self._next():
                return

    async def _next(self) -> Kill | None:
        """Strike the next cell; it has its turn again if its moment does not come."""
        cell = self.plan.next()
        began = time.monotonic()
        try:
            kill = await self._strike(cell)
            why = "its moment did not come"
        except Unavailable as trouble:  # what had to be looked at is not back yet
            kill, why = None, trouble.message
            await asyncio.sleep(1)
        if kill is None:
            self.plan.missed(cell)
            waited = time.monotonic() - began
            self._tell(
                f"{time.monotonic() - self.began:7.2f} s  no kill of {cell.role}, {cell.phase},"
                f" after {waited:.0f} s: {why}"
            )
        else:
            self.plan.hit(cell)
        return kill

    @staticmethod
    async def _healed(kill: Kill, until: float) -> None:
        patience = BACK_PATIENCE.get(kill.role, OTHERS_PATIENCE)
        patience = min(patience, until - time.monotonic())
        await moments.eventually(lambda: kill.back_after is not None, patience)

    async def end(self) -> None:
        """Stop watching what has not come back, because nobody needed it."""
        for watching in self._watching:
            watching.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    async def _strike(self, cell: Cell) -> Kill | None:
        match cell.phase:
            case "turn open":
                return await self._at_point(cell, TURN_OPEN, _OPEN)
            case "step claimed":
                return await self._at_point(cell, STEP_CLAIMED, _CLAIMED)
            case "streaming":
                return await self._streaming(cell)
            case "idle":
                return await self._idle(cell)
            case "prompt just left":
                return await self._prompt_left(cell)
            case "chunks outstanding":
                return await self._outstanding(cell)

    # -- the moments -------------------------------------------------------------------

    async def _at_point(self, cell: Cell, at: tuple[str, ...], proof: str) -> Kill | None:
        """Kill while a process waits at a named point, which the database confirms."""
        kinds = sorted({kind for kind, _ in keys.SHAPES})
        if cell.role == "sandbox-agent":
            claimed = at == STEP_CLAIMED
            kinds = [*(moments.STEPS_OF_A_TASK if claimed else moments.OF_A_TASK)]
        with Snare(self._failpoints, at, kinds) as snare:
            caught = await moments.eventually(snare.caught, moments.PATIENCE, every=0.004)
            if caught is None:
                return None
            shown = await asyncio.to_thread(self._outside.query, proof, caught.key)
            target = await asyncio.to_thread(self._find, cell, caught.key, caught.pid)
            if not shown or target is None or not caught.is_held:
                return None
            seen = {"point": caught.point, "at": caught.key, "waits": caught.pid, **shown[0]}
            return self._kill(cell, target, caught.key, seen)

    async def _streaming(self, cell: Cell) -> Kill | None:
        found = await moments.streaming(self._load, self._outside, self._chance)
        if found is None:
            return None
        work, seen = found
        target = await asyncio.to_thread(self._find_of, cell, work)
        if target is None or work.current is None:
            return None
        return self._kill(cell, target[0], target[1], seen)

    async def _idle(self, cell: Cell) -> Kill | None:
        """Kill while nothing is to be done: by the task, or, of what all share, by anybody."""
        if cell.role in ("Serve replica", "PostgreSQL"):
            async with moments.all_resting(self._load) as rest:
                if not rest or not await moments.nothing_to_do(self._outside):
                    return None
                target = await asyncio.to_thread(self._find, cell, "", 0)
                if target is None:
                    return None
                return self._kill(cell, target, "", {"mail": 0, "runs": 0, "agent_turns": 0})
        async with moments.resting(self._load, self._chance) as work:
            if work is None or not await moments.nothing_to_do(self._outside, moments.tree(work)):
                return None
            found = await asyncio.to_thread(self._find_of, cell, work)
            if found is None:
                return None
            return self._kill(cell, *found, {"mail": 0, "runs": 0, "agent_turns": 0})

    async def _prompt_left(self, cell: Cell) -> Kill | None:
        """Kill within milliseconds after a request with a prompt was sent, before its answer."""
        done: asyncio.Future[Kill | None] = asyncio.get_running_loop().create_future()
        delay = self._chance.uniform(0, LEFT_WITHIN)
        async with moments.resting(self._load, self._chance) as work:
            if work is None:
                return None
            found = await asyncio.to_thread(self._find_of, cell, work)
            if found is None:
                return None

            def strike(left_at: float) -> None:
                prompt = work.prompts[-1]
                ms = round((time.monotonic() - left_at) * 1000, 1)
                seen = {"prompt": prompt.script.marker, "ms_after_it_left": ms,
                        "answered": bool(prompt.message_id)}  # fmt: skip
                good = ms < 50 and not prompt.message_id
                done.set_result(self._kill(cell, *found, seen) if good else None)

            def left() -> None:
                asyncio.get_running_loop().call_later(delay, strike, time.monotonic())

            work.left = left
        try:
            return await asyncio.wait_for(done, moments.PATIENCE)
        except TimeoutError:
            return None
        finally:
            work.left = None

    async def _outstanding(self, cell: Cell) -> Kill | None:
        """Kill while the transcript is far behind what the agent says."""
        async with moments.resting(self._load, self._chance) as work:
            if work is None:
                return None
            work.chosen = prompts.flood
        found: list[tuple[Target, str]] = []

        def find() -> Target | None:
            if (one := self._find_of(cell, work)) is not None:
                found[:] = [one]
            return one[0] if one else None

        hit = await asyncio.to_thread(moments.flooded, self._outside, work, find)
        work.chosen = None
        return None if hit is None else self._note(cell, hit[0], found[0][1], hit[1])

    # -- who ---------------------------------------------------------------------------

    def _find(self, cell: Cell, key: str, pid: int) -> Target | None:
        """Return who is to die while the entity *key*, in process *pid*, is in its moment."""
        match cell.role:
            case "Serve replica":
                found = targets.replicas(self._outside)
                return self._chance.choice(found) if found else None
            case "PostgreSQL":
                return targets.postgres(self._outside)
            case "entity actor":
                return targets.of_pid(pid)
            case "sandbox-agent":
                work = moments.work_of(self._load, key)
                return self._sandbox_agent(work) if work else None

    def _find_of(self, cell: Cell, work: Work) -> tuple[Target, str] | None:
        """Return who is to die while a task is in its moment, and the key that it has."""
        if cell.role == "entity actor":
            tree = moments.tree(work)
            self._chance.shuffle(tree)
            for key in tree:
                if target := targets.actor(self._outside, key):
                    return target, key
            return None
        if cell.role == "sandbox-agent":
            target = self._sandbox_agent(work)
        else:
            target = self._find(cell, "", 0)
        return (target, work.session_key) if target else None

    def _sandbox_agent(self, work: Work) -> Target | None:
        if not work.sandbox:
            return None
        whole = self._chance.random() < 0.5
        return targets.sandbox_agent(self._outside, work.sandbox, whole=whole)

    # -- the kill ----------------------------------------------------------------------

    def _kill(self, cell: Cell, target: Target, key: str, seen: dict[str, Any]) -> Kill | None:
        if not target.kill():
            return None
        return self._note(cell, target, key, seen)

    def _note(self, cell: Cell, target: Target, key: str, seen: dict[str, Any]) -> Kill:
        work = moments.work_of(self._load, key)
        kill = Kill(
            time=self._clock.now(),
            at=round(time.monotonic() - self.began, 3),
            role=cell.role,
            phase=cell.phase,
            pid=target.first.pid,
            start_ticks=target.first.start_ticks,
            processes=len(target.records),
            what=target.what,
            key=key,
            sandbox=work.sandbox if work and cell.role == "sandbox-agent" else "",
            seen=seen,
        )
        self.kills.append(kill)
        self._tell(kill.line())
        watching = asyncio.create_task(self._watch(kill, time.monotonic()))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        return kill

    async def _watch(self, kill: Kill, since: float) -> None:
        """Wait until the part is there again, as another process."""
        while True:
            await asyncio.sleep(_LOOK)
            try:
                back = await asyncio.to_thread(self._is_back, kill)
            except Unavailable:
                continue
            if back:
                kill.back_after = round(time.monotonic() - since, 2)
                return

    def _is_back(self, kill: Kill) -> bool:
        match kill.role:
            case "PostgreSQL":
                return bool(self._outside.query("SELECT 1 AS one"))
            case "Serve replica":
                same = [one for one in targets.replicas(self._outside) if one.what == kill.what]
                return len(same) >= 1 + kill.what.endswith(":Api") and self._edge_answers()
            case "entity actor":
                rows = self._outside.query(_HOST, kill.key)
                target = targets.of_host(rows[0]["host"] if rows else None)
                return target is not None and target.first.pid != kill.pid
            case "sandbox-agent":
                target = targets.sandbox_agent(self._outside, kill.sandbox, whole=False)
                return target is not None and target.first.pid != kill.pid

    def _edge_answers(self) -> bool:
        return ask(f"{self._outside.settings.public_url}/healthz") == 200
