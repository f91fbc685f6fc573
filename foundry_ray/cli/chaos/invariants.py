"""What must hold after a run, whatever died; pure, so that each can be shown to fail.

Every function returns a `Finding`: how much it looked at, and what contradicts it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foundry_ray.cli.chaos.history import History
from foundry_ray.cli.chaos.prompts import marker_of
from foundry_ray.cli.chaos.report import Finding

AGENT_EXITED = "agent_exited"


@dataclass(frozen=True)
class Said:
    """One prompt, as its client knows it.

    Attributes:
        message_id: Empty if the client never heard of it.
        ended: Whether the client saw the agent turn's end.
        error: The code of the error with which it ended.
        agent_killed: A kill took the sandbox-agent, and so the agent, while it was under way.
    """

    marker: str
    message_id: str
    ended: bool
    error: str | None
    agent_killed: bool


@dataclass(frozen=True)
class TaskFacts:
    """One task, from every side.

    Attributes:
        name: For people.
        messages: Rows of the session's messages in their order: ``id``, ``text``, ``state``.
        witness: Message ids that the agent itself wrote down.
        journal: Every record of the shim.
        transcript: Every event, by the API.
        told: Index of the last event that the client's stream told.
        stream_problems: What the stream told twice or left out.
        published: Its client saw the pull request.
        pulls: Numbers of the branch's pull requests on the forge.
        heads: Commits of the work tree, of the branch at the forge, and of the pull request.
    """

    name: str
    session: str
    session_key: str
    said: Sequence[Said]
    messages: Sequence[Mapping[str, Any]]
    witness: Sequence[str]
    journal: Sequence[Mapping[str, Any]]
    transcript: Sequence[Mapping[str, Any]]
    told: int = 0
    stream_problems: Sequence[str] = ()
    published: bool = True
    pulls: Sequence[int] = ()
    heads: Mapping[str, str] = field(default_factory=dict)


def prompts_once(tasks: Iterable[TaskFacts]) -> Finding:
    """No prompt is lost or doubled: the agent's own witness decides."""
    found = Finding(name="no prompt is lost or doubled (the agent's witness)")
    looked: Counter[str] = Counter()
    for task in tasks:
        witnessed = Counter(task.witness)
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for message in task.messages:
            rows.setdefault(marker_of(message["text"]), []).append(message)
        for one in task.said:
            looked["prompts"] += 1
            mine = rows.pop(one.marker, [])
            times = sum(witnessed.pop(message["id"], 0) for message in mine)
            looked["witnessed"] += times
            if len(mine) != 1:
                found.broken.append(f"{task.name}: {one.marker} is there {len(mine)} times")
            # An agent that was killed may have been given a prompt that it did not get to read.
            least = 0 if one.error == AGENT_EXITED and one.agent_killed else 1
            if not least <= times <= 1:
                found.broken.append(f"{task.name}: the agent got {one.marker} {times} times")
        found.broken += [f"{task.name}: nobody sent {marker}" for marker in rows]
        found.broken += [
            f"{task.name}: the agent got {one}, which nobody sent" for one in witnessed
        ]
    found.looked_at = dict(looked)
    return found


def prompts_end(tasks: Iterable[TaskFacts]) -> Finding:
    """Each prompt ends done; or with `agent_exited`, if its agent was killed; then all goes on."""
    found = Finding(name="every prompt ends: done, or agent_exited where the agent was killed")
    looked: Counter[str] = Counter({"done": 0, AGENT_EXITED: 0, "went on afterwards": 0})
    for task in tasks:
        states = {message["id"]: message["state"] for message in task.messages}
        for place, one in enumerate(task.said):
            state = states.get(one.message_id, "unknown")
            if not one.ended or state not in ("done", "failed"):
                found.broken.append(f"{task.name}: {one.marker} has not ended, it is {state}")
            elif one.error is None:
                looked["done"] += 1
                if state != "done":
                    found.broken.append(f"{task.name}: {one.marker} ended, and is {state}")
            elif one.error != AGENT_EXITED or not one.agent_killed:
                why = "its agent was not killed" if one.error == AGENT_EXITED else "unexpected"
                found.broken.append(f"{task.name}: {one.marker} ended with {one.error}: {why}")
            else:
                looked[AGENT_EXITED] += 1
                later = any(other.ended and other.error is None for other in task.said[place + 1 :])
                looked["went on afterwards"] += later
                if not later:
                    found.broken.append(f"{task.name}: nothing went on after {one.marker}")
    found.looked_at = dict(looked)
    return found


def transcripts_complete(tasks: Iterable[TaskFacts]) -> Finding:
    """Transcripts are what the journals say, index by index; streams told all of it, once."""
    found = Finding(name="transcripts are complete, index by index against the journals")
    looked: Counter[str] = Counter()
    for task in tasks:
        told = [record for record in task.journal if record["direction"] != "note"]
        looked["transcripts"] += 1
        looked["events"] += len(task.transcript)
        found.broken += [f"{task.name}: {said}" for said in _differences(task, told)]
        found.broken += [f"{task.name}, stream: {said}" for said in task.stream_problems]
        if task.published and task.told != len(task.transcript):
            more = f"the stream told {task.told} of {len(task.transcript)} events"
            found.broken.append(f"{task.name}: {more}")
    found.looked_at = dict(looked)
    return found


def _differences(task: TaskFacts, told: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    numbers = [record["seq"] for record in task.journal]
    if numbers != list(range(1, len(numbers) + 1)):
        yield "the journal itself has gaps"
    if len(told) != len(task.transcript):
        yield f"{len(task.transcript)} events for {len(told)} records of the journal"
    for place, (record, event) in enumerate(zip(told, task.transcript, strict=False), 1):
        if event["index"] != place or event["id"] != f"{task.session}-{record['seq']}":
            yield f"event {event['index']} ({event['id']}) stands for record {record['seq']}"
            return
        if not _same(record, event):
            yield f"event {place} is not what record {record['seq']} says"
            return


def _same(record: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    if record["direction"] == "end":
        params = event["payload"].get("params") or {}
        named = ("_foundry/turn_ended", record["message_id"])
        return (event["payload"].get("method"), params.get("message_id")) == named
    sender = "client" if record["direction"] == "in" else "agent"
    return (event["payload"], event["sender"]) == (record["payload"], sender)


def one_pull_request(tasks: Iterable[TaskFacts]) -> Finding:
    """Each task has one pull request, with everything that its work tree has."""
    found = Finding(name="one pull request per task, with every commit")
    numbers: Counter[int] = Counter()
    count = 0
    for task in tasks:
        count += 1
        numbers.update(task.pulls)
        if not task.published:
            found.broken.append(f"{task.name}: its client did not see it published")
        if len(task.pulls) != 1:
            found.broken.append(f"{task.name}: {len(task.pulls)} pull requests")
        if len(set(task.heads.values())) != 1 or "" in task.heads.values():
            found.broken.append(f"{task.name}: {dict(task.heads)}")
    found.looked_at = {"tasks": count, "pull requests": sum(numbers.values())}
    return found


def commands_once(tasks: Iterable[TaskFacts], history: History) -> Finding:
    """Each acknowledged command took effect once and in order (the clients' history)."""
    final = {
        task.session_key: [marker_of(message["text"]) for message in task.messages]
        for task in tasks
    }
    return Finding(
        name="acknowledged commands took effect once, in order (the clients' history)",
        looked_at={
            "commands": len(history.operations),
            "acknowledged": len(history.acknowledged),
        },
        broken=history.contradictions(final),
    )


def nothing_half_done(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Finding:
    """No mail, no parked message, no run, no running session is left."""
    return Finding(
        name="nothing is left half-done",
        looked_at={f"{name} left": len(found) for name, found in rows.items()},
        broken=[f"{name}: {dict(row)}" for name, found in rows.items() for row in found],
    )


def nothing_pretends(
    running: Sequence[tuple[str, str, Sequence[str]]], live: Container[str], seconds: float
) -> Finding:
    """Nothing says that it runs while no activation that could move it lives.

    Args:
        running: What says so: its key, what it says, and the entities of which one must live.
        live: The keys of entities that a living process holds.
        seconds: Since the last kill.
    """
    return Finding(
        name="nothing says running without a live activation",
        looked_at={"seconds after the last kill": round(seconds), "that say running": len(running)},
        broken=[
            f"{key} says {word}, and nobody works on it"
            for key, word, movers in running
            if not any(mover in live for mover in movers)
        ],
    )


def ended_without_help(troubles: Sequence[str], tasks: int) -> Finding:
    """No client waited in vain or was refused."""
    return Finding(
        name="everything ended without help",
        looked_at={"tasks": tasks, "troubles": len(troubles)},
        broken=[*troubles],
    )
