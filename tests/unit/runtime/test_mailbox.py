"""What is done next: pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_ray.core.messages import Lane
from foundry_ray.runtime.mailbox import Letter, choose
from foundry_ray.testing.clock import START

NOW = START
LATER = NOW + timedelta(seconds=10)


def letter(id: int, sender: str = "x", **told: object) -> Letter:
    plain = Letter(
        id=id,
        target="org/1",
        sender=sender,
        lane=Lane.NORMAL,
        kind="k",
        body={},
        reply_to=None,
        timer=None,
        run_id=None,
        attempts=0,
        due_at=NOW,
    )
    return replace(plain, **told)  # type: ignore[arg-type]


def step(id: int, run_id: str, **told: object) -> Letter:
    return letter(id, "org/1", run_id=run_id, lane=Lane.STEP, **told)


def test_the_oldest_message_is_first() -> None:
    assert choose([letter(1), letter(2)], NOW, (), {}).message == letter(1)


def test_nothing_is_chosen_of_nothing() -> None:
    choice = choose([], NOW, (), {})

    assert (choice.message, choice.steps, choice.look_again) == (None, (), None)


def test_a_message_that_waits_holds_back_its_own_sender_only() -> None:
    waiting = letter(1, "x", due_at=LATER, attempts=1)
    rows = [waiting, letter(2, "x"), letter(3, "y"), letter(4, "x")]

    choice = choose(rows, NOW, (), {})

    assert choice.message == rows[2]
    assert choice.look_again == LATER
    assert choose([waiting, letter(2, "x")], NOW, (), {}).message is None


def test_when_its_time_comes_the_held_back_follow_in_order() -> None:
    rows = [letter(1, "x", due_at=LATER, attempts=1), letter(2, "x"), letter(3, "y")]

    assert choose(rows, LATER, (), {}).message == rows[0]


def test_a_timer_to_come_holds_back_nobody() -> None:
    rows = [letter(1, "x", due_at=LATER, timer="t"), letter(2, "x")]

    choice = choose(rows, NOW, (), {})

    assert choice.message == rows[1]
    assert choice.look_again == LATER


def test_control_messages_come_first_as_the_rows_do() -> None:
    rows = [letter(9, "y", lane=Lane.CONTROL), letter(1)]

    assert choose(rows, NOW, (), {}).message == rows[0]


def test_steps_begin_beside_messages() -> None:
    rows = [letter(1), step(2, "a"), step(3, "b")]

    choice = choose(rows, NOW, (), {})

    assert choice.message == rows[0]
    assert choice.steps == (rows[1], rows[2])


def test_a_run_that_is_worked_on_is_left_alone() -> None:
    assert choose([step(1, "a"), step(2, "b")], NOW, {"a"}, {}).steps == (step(2, "b"),)


def test_a_held_run_waits_for_its_deadline() -> None:
    choice = choose([step(1, "a"), step(2, "b")], NOW, (), {"a": LATER})

    assert choice.steps == (step(2, "b"),)
    assert choice.look_again == LATER
    assert choose([step(1, "a")], LATER, (), {"a": LATER}).steps == (step(1, "a"),)


def test_a_step_in_backoff_waits_and_holds_back_nobody() -> None:
    rows = [letter(1, "org/1"), step(2, "a", due_at=LATER)]

    choice = choose(rows, NOW, (), {})

    assert choice.message == rows[0]
    assert (choice.steps, choice.look_again) == ((), LATER)


rows_of_messages = st.lists(
    st.builds(
        lambda sender, wait, timer, lane: (sender, wait, timer, lane),
        st.sampled_from("xyz"),
        st.sampled_from([0, 0, 0, 5]),
        st.booleans(),
        st.sampled_from([Lane.CONTROL, Lane.NORMAL, Lane.NORMAL]),
    ),
    max_size=12,
)


@given(rows_of_messages)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_whatever_waits_order_among_one_senders_messages_holds(
    told: list[tuple[str, int, bool, Lane]],
) -> None:
    rows = [
        letter(
            n,
            sender,
            due_at=NOW + timedelta(seconds=wait),
            timer=f"t{n}" if timer and wait else None,
            lane=lane,
        )
        for n, (sender, wait, timer, lane) in enumerate(told)
    ]
    rows.sort(key=lambda row: (row.lane, row.id))

    choice = choose(rows, NOW, (), {})

    free = [r for r in rows if r.due_at <= NOW and not _held_back(r, rows)]
    assert choice.message == (free[0] if free else None)


def _held_back(row: Letter, rows: list[Letter]) -> bool:
    before = rows[: rows.index(row)]
    return any(b.sender == row.sender and b.due_at > NOW and b.timer is None for b in before)
