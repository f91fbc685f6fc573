"""Reading a running agent turn; it changes nothing in the sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from pydantic import SecretStr

from foundry_ray.actors.task_session.messages import AppendRecords, Record
from foundry_ray.core.errors import AgentExited, SandboxGone, SandboxStartFailed
from foundry_ray.core.messages import Value
from foundry_ray.core.retry import RetryPolicy
from foundry_ray.integrations.sandbox_agent.base import SandboxAgent
from foundry_ray.providers.base import Endpoint, SandboxProvider
from foundry_ray.runtime.workflow import StepContext, step

# One step reads for this long; then its place is committed and it goes on.
SLICE = timedelta(seconds=45)
BATCH = 500  # records handed over at once


@dataclass(frozen=True)
class ReaderTools:
    """What the step works with."""

    providers: Mapping[str, SandboxProvider]
    connect: Callable[[Endpoint, SecretStr, str], SandboxAgent]


class FollowInput(Value):
    """Which journal, from where, for whom."""

    session_key: str
    sandbox_key: str
    server_id: str
    from_seq: int


class Followed(Value):
    """How far it came: the turn ended, the agent is gone, or there is more to come."""

    ended: bool = False
    lost: bool = False
    next_seq: int


@step(
    "follow-journal",
    timeout=timedelta(seconds=90),
    retry=RetryPolicy(max_attempts=4, first_delay=timedelta(seconds=0.2)),
)
async def follow_journal(tools: ReaderTools, input: FollowInput, context: StepContext) -> Followed:
    """Hand the journal to the session until the turn ends or the slice is over."""
    place = input.from_seq
    try:
        name, sandbox_id = input.sandbox_key.split("/")[3:5]
        provider = tools.providers[name]
        facts = await provider.get(sandbox_id)
        endpoint = await provider.preview_endpoint(sandbox_id)
        token = await context.secret(f"{input.sandbox_key}#token")
        async with (
            asyncio.timeout(SLICE.total_seconds()),
            tools.connect(endpoint, token, facts.home) as agent,
            aclosing(agent.follow(input.server_id, place)) as batches,
        ):
            async for batch in batches:
                while batch:
                    records = [Record.model_validate(r.model_dump()) for r in batch[:BATCH]]
                    given = AppendRecords(records=records)
                    answer = await context.hand(input.session_key, given)
                    place = answer["next"]
                    if answer["ended"]:
                        return Followed(ended=True, next_seq=place)
                    if place < batch[0].seq:
                        return Followed(next_seq=place)  # a gap: read again from the cursor
                    batch = [record for record in batch if record.seq >= place]
    except TimeoutError:
        return Followed(next_seq=place)  # the slice is over, the turn is not
    except (AgentExited, SandboxStartFailed, SandboxGone):
        return Followed(lost=True, next_seq=place)
    return Followed(next_seq=place)
