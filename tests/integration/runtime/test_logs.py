"""What the log tells of a request: every turn and step that came of it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from foundry_ray.core.errors import InvalidInput, Unavailable
from foundry_ray.core.logging import bound
from tests.integration.runtime.kit import A, B, Begin, Do, PassOn, Remind, World

Events = list[Any]


@pytest.fixture
def events() -> Iterator[Events]:
    """Everything that is logged, with what is bound."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as caught:
        yield caught


def named(events: Events, name: str, **fields: Any) -> Events:
    return [e for e in events if e["event"] == name and fields.items() <= e.items()]


async def test_a_turn_names_entity_epoch_message_and_the_request_it_came_from(
    toys: World, events: Events
) -> None:
    with bound(request_id="r1"):
        answer = await toys.client.ask(A, PassOn(words=["a"], to=[B]), scope="s")
    await toys.quiet()

    [first] = named(events, "turn_taken", actor_key=A)
    assert (first["epoch"], first["message_kind"], first["request_id"], first["log_level"]) == (
        1, "runtime.toy_pass_on", "r1", "info",
    )  # fmt: skip
    assert first["command_id"] == answer.command_id
    assert isinstance(first["message_id"], int)
    [passed_on] = named(events, "turn_taken", actor_key=B)
    assert (passed_on["message_kind"], passed_on["request_id"], passed_on["log_level"]) == (
        "runtime.toy_told", "r1", "debug",
    )  # fmt: skip
    assert "command_id" not in passed_on


async def test_a_step_names_its_run_and_attempt_and_the_request_of_its_run(
    toys: World, events: Events
) -> None:
    toys.outside.troubles["two"] = [Unavailable("Away."), InvalidInput("No.")]
    with bound(request_id="r1"):
        await toys.tell(A, Begin())
    await toys.quiet()
    toys.host.end(A)  # whoever goes on knows it from the rows
    toys.fake.advance(10)
    await toys.quiet()

    [taken] = named(events, "step_taken")
    assert (taken["actor_key"], taken["epoch"], taken["workflow"], taken["step"]) == (
        A, 1, "toy.chain", "toy-one",
    )  # fmt: skip
    assert (taken["run_id"], taken["attempt"], taken["request_id"]) == ("run", 1, "r1")
    failed = named(events, "step_undone", step="toy-two", request_id="r1")
    assert [(e["epoch"], e["attempt"], e["again"]) for e in failed] == [(1, 1, True), (2, 2, False)]
    reported = named(events, "turn_taken", message_kind="runtime.issue_reported", request_id="r1")
    assert len(reported) == 2


async def test_whoever_rang_first_has_no_part_in_what_others_ask_for(
    toys: World, events: Events
) -> None:
    with bound(request_id="first"):
        await toys.ask(A, Do(word="a"))  # its ring makes the activation
    await toys.ask(A, Do(word="b"))
    with bound(request_id="third"):
        await toys.ask(A, Remind(name="t", after=60, word="c"))
    toys.fake.advance(61)
    await toys.quiet()

    turns = named(events, "turn_taken", actor_key=A)
    assert [e.get("request_id") for e in turns] == ["first", None, "third", "third"]
    assert [e.get("request_id") for e in named(events, "activated")] == [None]


async def test_a_failed_turn_names_its_message_and_a_prompt_is_never_logged(
    toys: World, events: Events
) -> None:
    toys.outside.broken.add("hunter2")
    with bound(request_id="r1"):
        await toys.tell(A, Do(word="hunter2"))
    await toys.quiet()

    [undone] = named(events, "turn_undone", request_id="r1", actor_key=A, attempt=1)
    assert (undone["message_kind"], undone["code"]) == ("runtime.toy_do", "internal")
    fields = [{k: v for k, v in e.items() if k != "exc_info"} for e in events]
    assert "hunter2" not in str(fields)
