"""``foundry mailbox``: parked messages, listed, retried and dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from foundry_ray.core.errors import Dropped, Internal, InvalidInput, NotFound, WrongState
from foundry_ray.runtime import mailbox
from tests.integration.cli.conftest import Operator
from tests.integration.runtime.kit import ROOT, A, B, Begin, Do, Remind, World


async def park(toys: World) -> None:
    """Go on until every attempt of what fails has happened."""
    for _ in range(6):
        await toys.quiet()
        toys.fake.advance(20)
    await toys.quiet()


async def only_id(toys: World) -> str:
    [row] = await toys.rows("SELECT id FROM rt_mailbox")
    return str(row["id"])


async def audited(toys: World) -> list[tuple[str, str, dict[str, Any]]]:
    rows = await toys.rows("SELECT * FROM rt_audit ORDER BY id")
    assert {row["actor_key"] for row in rows} <= {ROOT}
    return [(row["what"], row["by"]["login"], row["data"]) for row in rows]


async def open_issues(toys: World) -> int:
    [row] = await toys.rows("SELECT count(*) AS open FROM rt_issue WHERE resolved_at IS NULL")
    return int(row["open"])


async def test_a_parked_message_is_listed_retried_and_applied_once(
    toys: World, foundry: Operator
) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"), Do(word="later"), sender="x")
    await park(toys)
    assert await toys.words(A) == ["later"]

    [item] = (await foundry.json("mailbox", "ls", A, "--parked"))["items"]
    assert (item["target"], item["kind"], item["sender"]) == (A, "runtime.toy_do", "x")
    assert (item["state"], item["attempts"], item["error"]["code"]) == ("parked", 5, "internal")
    assert "body" not in item
    listed = await foundry("mailbox", "ls")
    assert f"{item['id']}" in listed
    assert "internal: RuntimeError in runtime.toy_do." in listed

    toys.outside.broken.clear()
    said = await foundry("mailbox", "retry", str(item["id"]))
    assert said.splitlines()[0] == f"due again: message {item['id']}, runtime.toy_do from x to {A}"
    assert "out of order" in said
    [row] = await toys.pending(A)
    assert row["attempts"] == 0
    about = {"id": item["id"], "target": A, "kind": "runtime.toy_do", "sender": "x"}
    assert await audited(toys) == [("message_retried", "operator", about)]
    await toys.quiet()

    assert await toys.words(A) == ["later", "bad"]
    assert await foundry("mailbox", "ls") == "nothing waits\n"
    with pytest.raises(NotFound):
        await foundry("mailbox", "retry", str(item["id"]))


async def test_a_retried_message_that_fails_again_is_parked_after_fresh_attempts(
    toys: World, foundry: Operator
) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"))
    await park(toys)

    await foundry("mailbox", "retry", "--all")
    await toys.quiet()
    [item] = (await foundry.json("mailbox", "ls"))["items"]
    assert (item["state"], item["attempts"]) == ("delayed", 1)
    await park(toys)

    [item] = (await foundry.json("mailbox", "ls"))["items"]
    assert (item["state"], item["attempts"]) == ("parked", 5)


async def test_all_parked_messages_are_retried_at_once_and_nothing_else(
    toys: World, foundry: Operator
) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"))
    await toys.tell(B, Do(word="bad"))
    await toys.tell(A, Remind(name="tea", after=1e6, word="tea"), sender="y")
    await park(toys)
    toys.outside.broken.clear()

    said = await foundry("mailbox", "retry", "--all")

    assert said.count("due again: message") == 2
    await toys.quiet()
    assert (await toys.words(A), await toys.words(B)) == (["bad"], ["bad"])
    [timer] = (await foundry.json("mailbox", "ls"))["items"]
    assert (timer["state"], timer["timer"]) == ("timer", "tea")
    assert await foundry("mailbox", "retry", "--all") == "nothing is parked\n"


async def test_the_answer_of_a_retried_command_is_that_of_the_new_attempt(
    toys: World, foundry: Operator
) -> None:
    toys.outside.broken.add("bad")
    answer = await toys.client.ask(A, Do(word="bad"), scope="s", patience=timedelta(0))
    await park(toys)
    with pytest.raises(Internal):
        await toys.client.look(answer.command_id)

    toys.outside.broken.clear()
    await foundry("mailbox", "retry", "--all")
    assert not (await toys.client.look(answer.command_id)).answered
    await toys.quiet()

    assert (await toys.client.look(answer.command_id)).body == {"count": 1}


async def test_a_dropped_command_is_answered_with_an_error_and_never_done(
    toys: World, foundry: Operator
) -> None:
    toys.outside.broken.add("bad")
    answer = await toys.client.ask(A, Do(word="bad"), scope="s", patience=timedelta(0))
    await park(toys)
    toys.outside.broken.clear()
    parked = await only_id(toys)

    with pytest.raises(InvalidInput) as refused:
        await foundry("mailbox", "drop", parked)
    assert refused.value.hint == f"foundry mailbox drop {parked} --yes"
    assert await only_id(toys) == parked
    said = await foundry("mailbox", "drop", parked, "--yes")

    assert f"dropped message {parked}, runtime.toy_do from client/s to {A}, after 5" in said
    [(what, who, about)] = await audited(toys)
    assert (what, who) == ("message_dropped", "operator")
    assert about["target"] == A
    assert (about["id"], about["attempts"], about["code"]) == (int(parked), 5, "internal")
    with pytest.raises(Dropped) as dropped:
        await toys.client.look(answer.command_id)
    assert dropped.value.context == {"target": A, "message_kind": "runtime.toy_do"}
    await toys.quiet()
    assert await toys.words(A) == []
    assert await toys.rows("SELECT 1 FROM rt_mailbox") == []


async def test_a_command_without_an_answer_that_is_dropped_gets_one(
    toys: World, foundry: Operator
) -> None:
    """Nobody waits for ever, also when a row was parked by other means than a failed turn."""
    answer = await toys.client.ask(A, Do(word="a"), scope="s", patience=timedelta(0))
    await toys.quiet()
    await toys.execute(
        "INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, reply_to, attempts,"
        " due_at, created_at, parked_at) VALUES (%s, 'org/1', 'x', 2, 'runtime.toy_do', '{}', %s,"
        " 0, now(), now(), now())",
        A,
        answer.command_id,
    )
    await toys.execute("UPDATE rt_inbox_seen SET reply = NULL, replied_at = NULL")

    await foundry("mailbox", "drop", await only_id(toys), "--yes")

    with pytest.raises(Dropped):
        await toys.client.look(answer.command_id)


async def test_dropping_the_last_of_its_kind_solves_the_entitys_issue(
    toys: World, foundry: Operator
) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"), sender="x")
    await toys.tell(A, Do(word="bad"), sender="y")
    await park(toys)
    [first, second] = await toys.rows("SELECT id FROM rt_mailbox ORDER BY id")

    await foundry("mailbox", "drop", str(first["id"]), "--yes")
    await toys.quiet()
    assert await open_issues(toys) == 1
    await foundry("mailbox", "drop", str(second["id"]), "--yes")
    await toys.quiet()

    assert await open_issues(toys) == 0


@pytest.mark.parametrize("restart", [False, True])
async def test_a_retried_message_that_succeeds_solves_its_issue_when_it_is_the_last(
    toys: World, foundry: Operator, restart: bool
) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"), sender="x")
    await toys.tell(A, Do(word="bad"), sender="y")
    await park(toys)
    if restart:
        toys.host.end(A)
    toys.outside.broken.clear()
    await toys.tell(A, Do(word="good"), sender="z")
    await toys.quiet()
    [first, second] = await toys.rows("SELECT id FROM rt_mailbox ORDER BY id")

    await foundry("mailbox", "retry", str(first["id"]))
    await toys.quiet()
    assert await open_issues(toys) == 1  # the other one is parked still
    await foundry("mailbox", "retry", str(second["id"]))
    await toys.quiet()

    assert await open_issues(toys) == 0


async def test_a_retried_message_that_fails_again_keeps_its_issue_open(
    toys: World, foundry: Operator
) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"), sender="x")
    await park(toys)
    await foundry("mailbox", "retry", "--all")
    await toys.quiet()

    await toys.tell(A, Do(word="good"), sender="y")  # while the other waits for its next attempt
    await toys.quiet()

    assert await open_issues(toys) == 1
    toys.outside.broken.clear()
    await park(toys)
    assert await open_issues(toys) == 0


async def test_only_parked_messages_are_retried_and_dropped(toys: World, foundry: Operator) -> None:
    await toys.tell(A, Remind(name="tea", after=1e6, word="tea"))
    await toys.quiet()
    timer = await only_id(toys)

    for verb in (("retry", timer), ("drop", timer), ("drop", timer, "--yes")):
        with pytest.raises(WrongState, match="is not parked"):
            await foundry("mailbox", *verb)

    assert [row["id"] for row in await toys.pending(A)] == [int(timer)]
    with pytest.raises(NotFound):
        await foundry("mailbox", "drop", "999", "--yes")


async def test_a_step_of_a_live_run_is_not_dropped(toys: World, foundry: Operator) -> None:
    toys.outside.troubles["one"] = [TimeoutError(), TimeoutError()]
    await toys.tell(A, Begin())
    await toys.quiet()
    [step] = await toys.pending(A)
    # Not even if somebody parked its row, which Foundry never does.
    await toys.execute("UPDATE rt_mailbox SET parked_at = now()")

    with pytest.raises(WrongState, match="is the step toy-one of a run"):
        await foundry("mailbox", "drop", str(step["id"]), "--yes")

    [item] = (await foundry.json("mailbox", "ls"))["items"]
    assert (item["id"], item["step"]) == (step["id"], "toy-one")


async def test_of_two_operators_one_finds_nothing_to_do(toys: World) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"))
    await park(toys)
    letter = int(await only_id(toys))

    async def decide(verb: Callable[..., Awaitable[Any]]) -> bool:
        async with toys.database.transaction() as transaction:
            return bool(await verb(transaction, letter, toys.clock.now()))

    verbs = (mailbox.retry, mailbox.drop, mailbox.retry, mailbox.drop)
    assert sum(await asyncio.gather(*map(decide, verbs))) == 1
