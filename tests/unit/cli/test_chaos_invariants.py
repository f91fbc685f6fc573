"""Each invariant of a chaos run holds for what is whole, and fails for what is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from foundry_ray.cli.chaos import invariants
from foundry_ray.cli.chaos.history import History
from foundry_ray.cli.chaos.invariants import Said, TaskFacts
from foundry_ray.cli.chaos.report import Finding

SAID = Said(marker="m1", message_id="p1", ended=True, error=None, agent_killed=False)
KILLED = replace(SAID, error="agent_exited", agent_killed=True)
NEXT = replace(SAID, marker="m2", message_id="p2")
PROMPT = {"method": "session/prompt", "params": {}}
CHUNK = {"method": "session/update", "params": {"update": 1}}


def record(seq: int, direction: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"seq": seq, "direction": direction, "payload": payload, "message_id": "p1"}


def event(index: int, seq: int, sender: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "id": f"s-{seq}", "sender": sender, "payload": payload}


ENDED = {"method": "_foundry/turn_ended", "params": {"message_id": "p1"}}
WHOLE = TaskFacts(
    name="task 1",
    session="s",
    session_key="org/1/session",
    said=[SAID],
    messages=[{"id": "p1", "text": "say m1\nstream 2 0", "state": "done"}],
    witness=["p1"],
    journal=[
        record(1, "note", {}),
        record(2, "in", PROMPT),
        record(3, "out", CHUNK),
        record(4, "end", {"stop_reason": "end_turn"}),
    ],
    transcript=[
        event(1, 2, "client", PROMPT),
        event(2, 3, "agent", CHUNK),
        event(3, 4, "agent", ENDED),
    ],
    told=3,
    pulls=[7],
    heads={"work tree": "abc", "forge": "abc", "pull request": "abc"},
)


def of(check: Callable[[list[TaskFacts]], Finding], **changed: Any) -> list[str]:
    return check([replace(WHOLE, **changed)]).broken


@pytest.mark.parametrize(
    "check",
    [
        invariants.prompts_once,
        invariants.prompts_end,
        invariants.transcripts_complete,
        invariants.one_pull_request,
    ],
)
def test_what_is_whole_breaks_nothing(check: Callable[[list[TaskFacts]], Finding]) -> None:
    found = check([WHOLE])

    assert not found.broken
    assert any(found.looked_at.values())


def test_a_prompt_that_the_agent_never_got_is_lost() -> None:
    assert of(invariants.prompts_once, witness=[]) == ["task 1: the agent got m1 0 times"]


def test_a_prompt_that_the_agent_got_twice_is_doubled() -> None:
    assert of(invariants.prompts_once, witness=["p1", "p1"])


def test_a_prompt_that_is_there_under_two_ids_is_doubled() -> None:
    messages = [*WHOLE.messages, {"id": "p9", "text": "say m1", "state": "done"}]

    broken = of(invariants.prompts_once, messages=messages, witness=["p1", "p9"])

    assert "task 1: m1 is there 2 times" in broken
    assert "task 1: the agent got m1 2 times" in broken


def test_a_prompt_that_nobody_sent_is_seen() -> None:
    messages = [*WHOLE.messages, {"id": "p9", "text": "say other", "state": "done"}]

    assert of(invariants.prompts_once, messages=messages) == ["task 1: nobody sent other"]
    assert of(invariants.prompts_once, witness=["p1", "p8"])


def test_only_a_killed_agent_may_miss_a_prompt_that_it_was_given() -> None:
    assert not of(invariants.prompts_once, said=[KILLED], witness=[])
    unharmed = replace(KILLED, agent_killed=False)
    assert of(invariants.prompts_once, said=[unharmed], witness=[])


def test_a_prompt_that_does_not_end_is_seen() -> None:
    assert of(invariants.prompts_end, said=[replace(SAID, ended=False)])
    running = [{"id": "p1", "text": "say m1", "state": "delivered"}]
    assert of(invariants.prompts_end, messages=running)


def test_an_end_by_agent_exited_needs_a_killed_agent_and_a_prompt_that_goes_on() -> None:
    both = [
        {"id": "p1", "text": "say m1", "state": "failed"},
        {"id": "p2", "text": "say m2", "state": "done"},
    ]
    assert not of(invariants.prompts_end, said=[KILLED, NEXT], messages=both)
    assert of(invariants.prompts_end, said=[KILLED], messages=both)
    unharmed = replace(KILLED, agent_killed=False)
    assert of(invariants.prompts_end, said=[unharmed, NEXT], messages=both)
    other = replace(KILLED, error="unavailable")
    assert of(invariants.prompts_end, said=[other, NEXT], messages=both)


def test_a_missing_a_doubled_and_a_changed_event_are_seen() -> None:
    first, second, third = WHOLE.transcript
    check = invariants.transcripts_complete
    assert of(check, transcript=[first, third], told=2)
    assert of(check, transcript=[first, second, second, third], told=4)
    assert of(check, transcript=[first, {**second, "payload": {}}, third])
    assert of(check, transcript=[first, {**second, "sender": "client"}, third])
    assert of(check, transcript=[first, second, {**third, "payload": CHUNK}])
    assert of(check, transcript=[first, {**second, "index": 5}, third])


def test_a_journal_with_a_gap_is_seen() -> None:
    assert of(invariants.transcripts_complete, journal=WHOLE.journal[1:])


def test_a_stream_that_leaves_something_out_is_seen() -> None:
    assert of(invariants.transcripts_complete, told=2)
    assert of(invariants.transcripts_complete, stream_problems=["index 3 came after 1"])


def test_two_pull_requests_none_and_one_without_the_last_commit_are_seen() -> None:
    check = invariants.one_pull_request
    assert of(check, pulls=[7, 8])
    assert of(check, pulls=[])
    assert of(check, published=False)
    assert of(check, heads={"work tree": "abc", "forge": "old", "pull request": "old"})


def history() -> History:
    made = History()
    for word in ("m1", "m2"):
        made.invoke("ada", WHOLE.session_key, word).acknowledge({})
    return made


def messages(*markers: str) -> list[dict[str, Any]]:
    return [{"id": f"p{n}", "text": f"say {one}"} for n, one in enumerate(markers)]


@pytest.mark.parametrize("final", [["m1"], ["m2", "m1"], ["m1", "m2", "m2"], []])
def test_an_acknowledged_command_without_its_one_effect_in_order_is_seen(final: list[str]) -> None:
    whole = replace(WHOLE, messages=messages("m1", "m2"))
    assert not invariants.commands_once([whole], history()).broken

    broken = replace(WHOLE, messages=messages(*final))
    assert invariants.commands_once([broken], history()).broken


def test_what_says_running_needs_one_live_activation_that_can_move_it() -> None:
    running = [("session", "running", ["sync", "sandbox"])]

    assert not invariants.nothing_pretends(running, {"sandbox"}, 10).broken
    assert invariants.nothing_pretends(running, {"task"}, 10).broken


def test_anything_left_is_half_done() -> None:
    assert not invariants.nothing_half_done({"mail": [], "runs": []}).broken
    assert invariants.nothing_half_done({"mail": [], "runs": [{"step": "x"}]}).broken


def test_a_client_that_waited_in_vain_needed_help() -> None:
    assert not invariants.ended_without_help([], 3).broken
    assert invariants.ended_without_help(["task 1: push failed"], 3).broken
