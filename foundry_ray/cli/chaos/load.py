"""The load: tasks of the scripted agent, one after the other, several at a time."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from foundry_ray.cli.chaos import prompts
from foundry_ray.cli.chaos.client import Follower, Patient
from foundry_ray.cli.chaos.history import History
from foundry_ray.cli.chaos.prompts import Script
from foundry_ray.cli.demo.evidence import NotSeen
from foundry_ray.core import keys
from foundry_ray.core.errors import FoundryError, NotFound
from foundry_ray.core.ids import new_id

PATIENCE = 180.0  # seconds for anything to end by itself, whatever dies meanwhile
PROMPTS = (9, 14)  # of one task, fewest and most
PAUSE = (0.3, 2.5)  # seconds between two prompts


@dataclass
class Prompt:
    """One prompt on its way; times are of the monotonic clock.

    Attributes:
        message_id: As the API acknowledged it; empty until then.
        ended: How the agent turn ended, as the transcript tells; None while it runs.
    """

    script: Script
    sent_at: float
    message_id: str = ""
    ended: dict[str, Any] | None = None
    ended_at: float | None = None

    @property
    def error(self) -> str | None:
        """Return the code of the error with which the agent turn ended, if one did."""
        return None if self.ended is None else (self.ended.get("error") or {}).get("code")


@dataclass
class Work:
    """One task of the load, as its client knows it.

    Attributes:
        resting: Between two prompts, with nothing asked for.
        over: Its client has nothing more to do with it.
        chosen: What to say next instead of what chance says.
        left: Called when the next prompt has left.
    """

    number: int
    place: str
    key: str
    id: str
    session: str
    branch: str
    follower: Follower
    prompts: list[Prompt] = field(default_factory=list)
    resting: bool = False
    free: asyncio.Event = field(default_factory=asyncio.Event)
    chosen: Callable[[int, int], Script] | None = None
    left: Callable[[], None] | None = None
    published: bool = False
    archived: bool = False
    over: bool = False

    @property
    def session_key(self) -> str:
        """The key of its session."""
        return keys.session(self.key, self.session)

    @property
    def sandbox(self) -> str:
        """The id of its sandbox; empty before it has one."""
        found = self.follower.task.get("sandboxes") or []
        return str(found[0]["id"]) if found else ""

    @property
    def current(self) -> Prompt | None:
        """The prompt whose agent turn runs."""
        last = self.prompts[-1] if self.prompts else None
        return last if last is not None and last.ended is None else None


class Load:
    """Keeps *width* tasks going until `finish`; each ends as a pull request.

    Attributes:
        works: Every task that was begun.
        history: Every prompt, when it was sent and when it was acknowledged.
        troubles: What a client waited for in vain, or was refused.
        may_begin: Whether a new task may begin now.

    Args:
        patient: The client of the person who works.
        organization: Id.
        repository: Id.
        seed: What the choices begin with.
        tell: Says a line to whoever watches.
    """

    def __init__(
        self,
        patient: Patient,
        organization: str,
        repository: str,
        *,
        seed: int,
        width: int,
        tell: Callable[[str], None],
    ) -> None:
        self.works: list[Work] = []
        self.history = History()
        self.troubles: list[str] = []
        self.over = asyncio.Event()
        self.may_begin = asyncio.Event()
        self.may_begin.set()
        self._numbers = itertools.count(1)
        self._patient = patient
        self._organization = organization
        self._repository = repository
        self._seed = seed
        self._width = width
        self._tell = tell

    async def run(self) -> None:
        """Work until `finish` was called and every task has ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._width):
                group.create_task(self._worker())

    def finish(self) -> None:
        """Let no task begin; what is under way goes on to its end."""
        self.over.set()

    async def _worker(self) -> None:
        while not self.over.is_set():
            await self.may_begin.wait()
            number = next(self._numbers)
            chance = random.Random(f"{self._seed}/{number}")  # noqa: S311 - repeatable, not secret
            try:
                work = await self._begin(number)
            except FoundryError as trouble:
                self.troubles.append(f"task {number} could not begin: {trouble.message}")
                self._tell(self.troubles[-1])
                return
            try:
                await self._do(work, chance)
            except FoundryError as trouble:
                self.troubles.append(f"task {number} ({work.id}): {trouble.message}")
                self._tell(self.troubles[-1])
            finally:
                work.resting, work.over = False, True
                await work.follower.end()

    async def _begin(self, number: int) -> Work:
        """Create a task; its first prompt goes with it."""
        script = prompts.first(number)
        place = f"/api/organizations/{self._organization}"
        body = {
            "repository_id": self._repository,
            "title": f"Chaos {number}",
            "prompt": script.text,
            "agent": "scripted",
        }
        sent_at = time.monotonic()
        task = await self._patient.command("POST", f"{place}/tasks", body, key=new_id())
        session, name = task["active_session_id"], f"{self._organization}/{task['id']}"
        work = Work(
            number=number,
            place=f"{place}/tasks/{task['id']}",
            key=keys.task(keys.repository(self._organization, self._repository), task["id"]),
            id=task["id"],
            session=session,
            branch=task["branch"],
            follower=Follower(
                self._patient,
                (f"task:{name}", f"session:{name}/{session}"),
                f"{place}/tasks/{task['id']}/sessions/{session}/events",
            ),
        )
        work.free.set()
        work.prompts.append(Prompt(script, sent_at))
        self.works.append(work)
        return work

    async def _do(self, work: Work, chance: random.Random) -> None:
        """Talk to the agent, push, publish, archive."""
        await self._ready(work)
        await self._ended(work, work.prompts[0])
        wanted = chance.randint(*PROMPTS)
        while len(work.prompts) < wanted and not self.over.is_set():
            await self._rest(work, chance.uniform(*PAUSE))
            number = len(work.prompts)
            choose, work.chosen = work.chosen, None
            script = (
                choose(work.number, number) if choose else prompts.some(work.number, number, chance)
            )
            said = [await self._say(work, script)]
            if chance.random() < 0.2:  # one more while the agent works: it has to wait
                queued = prompts.some(work.number, number + 1, chance)
                said.append(await self._say(work, queued))
            for prompt in said:
                await self._ended(work, prompt)
        while work.prompts[-1].error is not None:  # after such an end the next prompt goes on
            script = prompts.write(work.number, len(work.prompts))
            await self._ended(work, await self._say(work, script))
        await self._publish(work)

    async def _ready(self, work: Work) -> None:
        def ready() -> bool:
            provisioning = work.follower.task.get("provisioning") or {}
            if error := provisioning.get("error"):
                raise NotSeen(f"{provisioning['phase']} failed: {error['code']} {error['message']}")
            return provisioning.get("phase") == "ready"

        await work.follower.until(ready, "a ready sandbox", PATIENCE)

    async def _rest(self, work: Work, seconds: float) -> None:
        """Pause; longer if somebody wants the task to rest."""
        work.resting = True
        await asyncio.sleep(seconds)
        await work.free.wait()
        work.resting = False

    async def _say(self, work: Work, script: Script) -> Prompt:
        prompt = Prompt(script, time.monotonic())
        work.prompts.append(prompt)
        operation = self.history.invoke(work.id, work.session_key, script.marker)
        left, work.left = work.left, None
        answer = await self._patient.command(
            "POST",
            f"{work.place}/sessions/{work.session}/messages",
            {"text": script.text},
            key=new_id(),
            left=left,
        )
        operation.acknowledge(answer)
        prompt.message_id = answer["message_id"]
        return prompt

    async def _ended(self, work: Work, prompt: Prompt) -> None:
        """Wait for the end of an agent turn; allow what the agent asks for meanwhile."""
        known = {other.message_id for other in work.prompts if other is not prompt}
        answered: set[str] = set()

        def news() -> Any:
            for message_id, end in work.follower.ended.items():
                if message_id == prompt.message_id or not (
                    prompt.message_id or message_id in known
                ):
                    return message_id, end
            session = work.follower.session
            if session.get("status") == "error" and session["error"]["code"] != "agent_exited":
                trouble = session["error"]
                raise NotSeen(f"{prompt.script.marker}: {trouble['code']} {trouble['message']}")
            return next(
                (one for name, one in work.follower.asked.items() if name not in answered), None
            )

        while True:
            what = f"the end of the agent turn of {prompt.script.marker}"
            found = await work.follower.until(news, what, PATIENCE)
            if isinstance(found, tuple):
                prompt.message_id, prompt.ended = found
                prompt.ended_at = time.monotonic()
                return
            answered.add(found["id"])
            await self._allow(work, found)

    async def _allow(self, work: Work, asked: dict[str, Any]) -> None:
        path = f"{work.place}/sessions/{work.session}/permissions/{asked['id']}"
        body = {"option_id": asked["options"][0]["optionId"]}
        try:
            await self._patient.command("POST", path, body, key=new_id())
        except NotFound:
            pass  # the agent died meanwhile: nobody asks any more

    async def _publish(self, work: Work) -> None:
        await self._patient.command("POST", f"{work.place}/push", key=new_id())
        await self._operation(work, "push")
        await self._patient.command("PUT", f"{work.place}/pull-request", {}, key=new_id())
        await self._operation(work, "pull_request")
        work.published = True
        await self._patient.command("POST", f"{work.place}/archive", key=new_id())
        await work.follower.until(
            lambda: work.follower.task.get("status") == "archived", "the archived task", PATIENCE
        )
        work.archived = True

    @staticmethod
    async def _operation(work: Work, name: str) -> None:
        def done() -> bool:
            operation = (work.follower.task.get("operations") or {}).get(name) or {}
            if operation.get("state") == "failed":
                error = operation.get("error") or {}
                raise NotSeen(f"{name} failed: {error.get('code')} {error.get('message')}")
            return operation.get("state") == "done"

        await work.follower.until(done, f"the end of {name}", PATIENCE)
