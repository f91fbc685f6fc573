"""The seeded order of a chaos run, and what its report says."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

from foundry_ray.cli.chaos.plan import CELLS, MOMENTS, WANTED, Cell, Plan
from foundry_ray.cli.chaos.report import Finding, Kill, Report, lines


def order(seed: int, length: int) -> list[Cell]:
    plan = Plan(seed)
    found = []
    for _ in range(length):
        cell = plan.next()
        plan.hit(cell)
        found.append(cell)
    return found


def test_the_same_seed_gives_the_same_order_and_another_one_another() -> None:
    assert order(1, 100) == order(1, 100)
    assert order(1, 100) != order(2, 100)


def test_three_rounds_strike_every_cell_three_times_and_each_moment() -> None:
    plan = Plan(7)
    for _ in range(WANTED * (len(CELLS) + len(MOMENTS))):
        plan.hit(plan.next())

    assert [plan.struck[cell] for cell in CELLS] == [WANTED] * len(CELLS)
    for moment in MOMENTS:
        assert sum(n for cell, n in plan.struck.items() if cell.phase == moment) == WANTED


def test_a_missed_cell_comes_again_before_the_next_round() -> None:
    plan = Plan(3)
    first = plan.next()
    plan.missed(first)
    rest = [plan.next() for _ in range(len(CELLS) + len(MOMENTS))]

    assert rest[-1] == first


def test_the_kills_of_one_role_are_spread() -> None:
    cells = order(5, WANTED * (len(CELLS) + len(MOMENTS)))

    assert sum(one.role == other.role for one, other in pairwise(cells)) <= 3 * WANTED


def report(*findings: Finding, kills: int = 1) -> Report:
    kill = Kill(
        time=datetime(2026, 1, 1, tzinfo=UTC), at=1.5, role="PostgreSQL", phase="turn open", pid=7,
        start_ticks=9, what="postgres", key="org/1", seen={"point": "turn_open"},
    )  # fmt: skip
    made = Report(seed=4, minutes=1, tasks=8, command="foundry chaos --seed 4", data_dir="/there")
    made.kills, made.findings = [kill] * kills, list(findings)
    made.conclude()
    return made


def test_a_run_in_which_nothing_broke_is_good() -> None:
    good = report(Finding(name="prompts", looked_at={"prompts": 3}))

    assert good.ok
    assert "nothing was lost" in lines(good)[-1]


def test_what_broke_is_told_with_the_command_that_repeats_it() -> None:
    bad = report(Finding(name="prompts", looked_at={"prompts": 3}, broken=["task 2: lost"]))

    assert not bad.ok
    text = "\n".join(lines(bad))
    assert "FAIL  prompts: 3 prompts" in text
    assert "task 2: lost" in text
    assert "foundry chaos --seed 4" in text


def test_a_run_that_killed_nothing_or_checked_nothing_proves_nothing() -> None:
    assert not report(Finding(name="prompts"), kills=0).ok
    assert not report().ok
