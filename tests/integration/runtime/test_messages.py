"""Messages: told, asked, refused, tried again, parked."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from foundry_ray.core.errors import (
    Busy,
    IdempotencyConflict,
    Internal,
    InvalidInput,
    NotFound,
    WrongState,
)
from foundry_ray.runtime import mailbox
from foundry_ray.runtime.activation import Activation
from foundry_ray.runtime.refs import Client
from tests.helpers import eventually
from tests.integration.runtime.kit import (
    ROOT,
    A,
    B,
    C,
    Crash,
    Defer,
    Do,
    DoFirst,
    PassOn,
    Refuse,
    Resume,
    World,
    a_dead_process,
    world,
)


async def test_what_is_told_is_done_in_order(toys: World) -> None:
    await toys.tell(A, Do(word="a"), Do(word="b"), Do(word="c"))

    await toys.quiet()

    assert await toys.words(A) == ["a", "b", "c"]
    assert await toys.pending(A) == []


async def test_what_an_entity_tells_another_arrives_in_order(toys: World) -> None:
    await toys.tell(A, PassOn(words=["a", "b", "c"], to=[C, B]), PassOn(words=["d"], to=[B]))

    await toys.quiet()

    assert await toys.words(B) == ["a", "b", "c", "d"]
    assert await toys.words(C) == ["a", "b", "c"]


async def test_control_messages_go_first(toys: World) -> None:
    async with toys.database.transaction() as transaction:
        for message in (Do(word="a"), Do(word="b"), DoFirst(word="stop")):
            await mailbox.put(transaction, A, message, sender="x", now=toys.clock.now())

    toys.host.ring(A)
    await toys.quiet()

    assert await toys.words(A) == ["stop", "a", "b"]


async def test_an_ask_is_answered_with_what_the_handler_returned(toys: World) -> None:
    assert await toys.ask(A, Do(word="a")) == {"count": 1}
    assert await toys.ask(A, Do(word="b")) == {"count": 2}


async def test_a_deferred_reply_comes_with_the_outcome(toys: World) -> None:
    asking = asyncio.create_task(toys.ask(A, Defer()))
    await eventually(lambda: toys.rows("SELECT 1 FROM rt_entity WHERE revision > 0"))
    assert not asking.done()

    await toys.tell(A, Resume())

    assert await asking == {"said": "at last"}


async def test_who_asks_the_same_again_gets_the_stored_answer(toys: World) -> None:
    first = await toys.ask(A, Do(word="a"), idempotency_key="k")
    again = await toys.ask(A, Do(word="a"), idempotency_key="k")

    assert first == again == {"count": 1}
    assert await toys.words(A) == ["a"]


async def test_two_who_ask_the_same_at_once_are_both_answered_at_once(toys: World) -> None:
    answers = await asyncio.wait_for(
        asyncio.gather(*(toys.ask(A, Do(word="a"), idempotency_key="k") for _ in range(4))), 1.5
    )

    assert answers == [{"count": 1}] * 4
    assert await toys.words(A) == ["a"]


async def test_an_idempotency_key_of_another_request_is_a_conflict(toys: World) -> None:
    await toys.ask(A, Do(word="a"), idempotency_key="k")

    with pytest.raises(IdempotencyConflict):
        await toys.ask(A, Do(word="b"), idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        await toys.ask(B, Do(word="a"), idempotency_key="k")

    assert await toys.ask(A, Do(word="c"), idempotency_key="k", scope="other") == {"count": 2}


async def test_a_refusal_leaves_nothing_behind(toys: World) -> None:
    await toys.ask(A, Do(word="a"))

    with pytest.raises(WrongState) as refusal:
        await toys.ask(A, Refuse(word="no"))

    assert (refusal.value.hint, refusal.value.context) == ("Later.", {"word": "no"})
    assert await toys.ask(A, Do(word="b")) == {"count": 2}, "the state was loaded again"
    await toys.quiet()
    assert await toys.words(A) == ["a", "b"]
    assert await toys.words(B) == []
    assert await toys.rows("SELECT 1 FROM rt_run") == []


async def test_a_refusal_is_an_answer_that_is_stored_too(toys: World) -> None:
    for _ in range(2):
        with pytest.raises(WrongState):
            await toys.ask(A, Refuse(word="no"), idempotency_key="k")


async def test_an_answer_that_does_not_come_in_time_can_be_looked_up(toys: World) -> None:
    answer = await toys.client.ask(A, Defer(), scope="s", patience=timedelta(seconds=0.05))
    assert not answer.answered
    assert answer.status == 202

    await toys.tell(A, Resume())

    found = await eventually(lambda: _answered(toys, answer.command_id))
    assert found == {"said": "at last"}
    with pytest.raises(NotFound):
        await toys.client.look("unknown")


async def _answered(toys: World, command_id: str) -> object:
    answer = await toys.client.look(command_id)
    return answer.answered and answer.body


async def test_a_full_mailbox_refuses_at_the_door(toys: World) -> None:
    client = Client(toys.database, _Deaf(), toys.clock, limit=2, actors=toys.kernel.actors)
    await client.tell(A, Do(word="a"))
    await client.tell(A, Do(word="b"))

    with pytest.raises(Busy):
        await client.tell(A, Do(word="c"))
    with pytest.raises(Busy):
        await client.ask(A, Do(word="c"), scope="s", idempotency_key="k")

    assert await toys.rows("SELECT 1 FROM rt_inbox_seen") == [], "it may be asked again"
    await toys.quiet()
    assert await toys.ask(A, Do(word="c"), scope="s", idempotency_key="k") == {"count": 3}


class _Deaf:
    """A waker that reaches nobody: only sweeps find the mail."""

    def ring(self, key: str) -> None:
        pass

    async def answered(self, key: str, command_id: str) -> None:
        raise AssertionError("nobody waits")

    async def hand(self, key: str, message: object) -> object:
        raise AssertionError("nothing is handed")

    def end(self, key: str) -> None:
        pass


# -- poison ------------------------------------------------------------------------


async def fail_until_parked(toys: World) -> list[str]:
    """Go on until every retry has happened; return what A wrote down after each attempt."""
    for _ in range(6):
        await toys.quiet()
        toys.fake.advance(20)
    await toys.quiet()
    return await toys.words(A)


async def test_a_failing_message_holds_back_only_its_own_sender(toys: World) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"), Do(word="after bad"), sender="x")
    await toys.tell(A, Do(word="y"), sender="y")

    await toys.quiet()
    assert await toys.words(A) == ["y"]

    assert await fail_until_parked(toys) == ["y", "after bad"]


async def test_a_message_is_tried_five_times_then_parked(toys: World) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"))

    await toys.quiet()
    [row] = await toys.pending(A)
    assert row["attempts"] == 1
    assert row["due_at"] > toys.clock.now()
    await fail_until_parked(toys)

    assert await toys.pending(A) == []
    [parked] = await toys.rows("SELECT * FROM rt_mailbox")
    assert parked["attempts"] == 5
    assert parked["parked_at"] is not None
    assert parked["error"]["code"] == "internal"


async def test_parking_reports_an_issue_and_tells_the_parent(toys: World) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"))
    await fail_until_parked(toys)

    [issue] = await toys.rows("SELECT * FROM rt_issue")
    assert issue["actor_key"] == ROOT
    assert (issue["entity"], issue["workflow"]) == (A, "runtime.toy_do")
    assert (issue["code"], issue["attempt"], issue["will_retry"]) == ("internal", 5, False)
    assert await toys.words(ROOT) == [f"{A} failed: internal"]


async def test_who_asked_for_what_is_parked_hears_of_it(toys: World) -> None:
    toys.outside.broken.add("bad")
    answer = await toys.client.ask(A, Do(word="bad"), scope="s", patience=timedelta(0))
    await fail_until_parked(toys)

    with pytest.raises(Internal):
        await toys.client.look(answer.command_id)


async def test_what_an_entity_does_not_take_is_refused_at_the_door(toys: World) -> None:
    client = Client(toys.database, toys.host, toys.clock, actors=toys.kernel.actors)

    with pytest.raises(InvalidInput, match="organization does not take"):
        await client.tell(ROOT, Do(word="a"))
    with pytest.raises(InvalidInput):
        await client.ask(ROOT, Do(word="a"), scope="s", idempotency_key="k")
    with pytest.raises(InvalidInput):
        await client.receive(ROOT, Do(word="a"), scope="s", external_id="1", sender="x")

    assert await toys.rows("SELECT 1 FROM rt_mailbox") == []
    assert await toys.rows("SELECT 1 FROM rt_inbox_seen") == []


async def test_an_entity_cannot_tell_another_what_that_does_not_take(toys: World) -> None:
    with pytest.raises(InvalidInput):
        await toys.ask(A, PassOn(words=["a"], to=[B, ROOT]))

    assert await toys.rows("SELECT 1 FROM rt_mailbox") == []


async def test_a_message_of_no_known_kind_is_parked_and_holds_nobody_up(toys: World) -> None:
    await toys.tell(A, Do(word="a"))
    await toys.execute("UPDATE rt_mailbox SET kind = 'runtime.unknown'")
    toys.host.end(A)
    await toys.tell(A, Do(word="b"), sender="y")
    words = await fail_until_parked(toys)

    assert "b" in words
    [parked] = await toys.rows("SELECT kind FROM rt_mailbox WHERE parked_at IS NOT NULL")
    assert parked["kind"] == "runtime.unknown"
    [issue] = await toys.rows("SELECT code, workflow, entity, resolved_at FROM rt_issue")
    assert issue == {
        "code": "invalid_input", "workflow": "runtime.unknown", "entity": A, "resolved_at": None,
    }  # fmt: skip


async def test_rows_that_the_database_refuses_park_the_message(toys: World) -> None:
    """A commit that fails for its content must not bring the entity down again and again."""
    await toys.ask(A, Do(word="a"))
    await toys.execute("UPDATE history_event SET id = '00000002'")
    toys.host.end(A)
    await toys.tell(A, Do(word="never"), sender="x")

    await fail_until_parked(toys)

    [parked] = await toys.rows("SELECT error FROM rt_mailbox WHERE parked_at IS NOT NULL")
    assert "UniqueViolation" in parked["error"]["message"]


async def test_a_long_queue_of_one_failing_sender_hides_no_other(toys: World) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"), sender="x")
    await toys.quiet()
    async with toys.database.transaction() as transaction:
        for n in range(150):
            await mailbox.put(transaction, A, Do(word=str(n)), sender="x", now=toys.clock.now())

    assert await toys.ask(A, Do(word="hello")) == {"count": 1}


async def test_a_root_that_cannot_take_issues_does_not_report_that_for_ever(toys: World) -> None:
    toys.outside.broken |= {"bad", "issues"}
    await toys.tell(A, Do(word="bad"))
    for _ in range(14):
        await toys.quiet()
        toys.fake.advance(20)

    assert await toys.pending(ROOT) == []
    parked = await toys.rows("SELECT kind FROM rt_mailbox WHERE target = %s", ROOT)
    assert [row["kind"] for row in parked] == ["runtime.issue_reported"]


async def test_a_message_whose_process_dies_each_time_is_parked(database_url: str) -> None:
    """Nobody counts the attempt then; so it is counted before it is made."""

    def die(name: str) -> None:
        if name == "turn_open" and deadly:
            raise Crash

    deadly = True
    async with world(database_url, point=die) as toys:
        await put(toys, "deadly", "after it")
        for _ in range(6):
            activation = Activation(toys.kernel, A)
            await activation.activate()
            with pytest.raises(Crash):
                await activation.once()
        [row, _] = await toys.pending(A)
        assert row["attempts"] == 5, "the first death raised only the suspicion"

        deadly = False
        await toys.quiet()

        assert await toys.words(A) == ["after it"]
        [parked] = await toys.rows("SELECT * FROM rt_mailbox WHERE target = %s", A)
        assert parked["parked_at"] is not None
        assert "process ended" in parked["error"]["message"]


async def put(toys: World, *words: str) -> None:
    """Put mail into A's mailbox without a doorbell."""
    async with toys.database.transaction() as transaction:
        for word in words:
            await mailbox.put(transaction, A, Do(word=word), sender="x", now=toys.clock.now())


async def test_a_message_that_never_had_its_turn_is_not_to_blame_for_deaths(toys: World) -> None:
    await put(toys, "innocent")
    for _ in range(9):
        activation = Activation(toys.kernel, A)
        await activation.activate()
        await toys.execute("UPDATE rt_entity SET host = %s WHERE key = %s", a_dead_process(), A)

    await toys.quiet()

    assert await toys.words(A) == ["innocent"]


async def test_an_attempt_of_a_suspect_counts_once(toys: World) -> None:
    toys.outside.broken.add("bad")
    await put(toys, "bad")
    for _ in range(2):
        activation = Activation(toys.kernel, A)
        await activation.activate()
    await activation.once()

    [row] = await toys.pending(A)
    assert row["attempts"] == 1
