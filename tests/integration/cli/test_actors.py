"""``foundry actors``: one entity shown, and woken."""

from __future__ import annotations

import os

import pytest

from foundry_ray.core.errors import NotFound, Unavailable
from tests.helpers import eventually
from tests.integration.cli.conftest import Operator
from tests.integration.cli.test_mailbox import park
from tests.integration.runtime.kit import ROOT, A, B, Begin, Do, Remind, World


async def test_a_live_actor_shows_where_it_lives_and_how_its_run_fares(
    toys: World, foundry: Operator
) -> None:
    toys.outside.troubles["one"] = [Unavailable("No answer.")]
    await toys.tell(A, Begin())
    await toys.quiet()

    # Another process: to its own one an activation recorded here would be over.
    code, out, err = await foundry.process("actors", "show", A)

    assert (code, err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines()[1:9])
    assert out.splitlines()[0] == A
    assert facts["kind"] == "repository"
    assert facts["state"] == "live"
    assert facts["lives"].startswith(f"pid {os.getpid()} on ")
    assert facts["epoch"] == "1"
    assert facts["parent"] == ROOT
    assert facts["mailbox"] == "0 due, 1 to be tried again, 0 timers, 0 parked"
    assert "toy-one  pending, again in" in out
    assert "unavailable: No answer." in out


async def test_an_idle_actor_shows_what_lies_in_its_mailbox(toys: World, foundry: Operator) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="a"), Do(word="bad"), sender="x")
    await toys.tell(A, Remind(name="tea", after=1e6, word="tea"), sender="y")
    await park(toys)
    toys.host.drain(A)
    await eventually(lambda: A not in toys.host.live())

    shown = await foundry.json("actors", "show", A)

    assert (shown["key"], shown["kind"], shown["parent"]) == (A, "repository", ROOT)
    assert (shown["state"], shown["pid"], shown["node"]) == ("idle", None, None)
    assert (shown["pending"], shown["delayed"], shown["timers"]) == (0, 0, 1)
    assert (shown["parked"], shown["oldest_seconds"], shown["runs"]) == (1, None, [])
    assert shown["activated_at"].startswith("20")
    assert shown["revision"] > 0


async def test_a_parked_run_shows_its_step_and_error(toys: World, foundry: Operator) -> None:
    toys.outside.troubles["two"] = [Unavailable("No answer.")] * 3
    await toys.tell(A, Begin())
    await park(toys)

    [run] = (await foundry.json("actors", "show", A))["runs"]

    assert (run["id"], run["workflow"], run["step"]) == ("run", "toy.chain", "toy-two")
    assert (run["state"], run["attempt"], run["deadline"]) == ("parked", 3, None)
    assert (run["error"]["code"], run["due_at"]) == ("unavailable", None)


async def test_an_actor_that_never_lived_shows_its_mail(toys: World, foundry: Operator) -> None:
    await toys.execute(
        "INSERT INTO rt_mailbox (target, root, sender, lane, kind, body, attempts, due_at,"
        " created_at) VALUES (%s, 'org/1', 'x', 2, 'runtime.toy_do', '{\"word\": \"a\"}', 0,"
        " now() - interval '1 minute', now())",
        B,
    )

    shown = await foundry.json("actors", "show", B)

    assert (shown["state"], shown["kind"], shown["epoch"]) == ("never", "repository", 0)
    assert shown["pending"] == 1
    assert 60 <= shown["oldest_seconds"] < 120
    assert (await foundry("actors", "show", B)).splitlines()[4] == "  activated  never"


async def test_a_key_that_nobody_knows_is_an_error(toys: World, foundry: Operator) -> None:
    for verb in ("show", "wake"):
        for key in (B, "nonsense"):
            with pytest.raises(NotFound, match=f"There is no actor '{key}'"):
                await foundry("actors", verb, key)

    code, out, err = await foundry.process("actors", "show", B)

    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"error: There is no actor '{B}'.",
        "  next: foundry actors ls --all",
    ]


async def test_a_woken_actor_tries_at_once_what_failed(toys: World, foundry: Operator) -> None:
    toys.outside.broken.add("bad")
    toys.outside.troubles["one"] = [Unavailable("No answer.")]
    await toys.tell(A, Do(word="bad"), sender="x")
    await toys.tell(A, Remind(name="tea", after=1e6, word="tea"), sender="y")
    await toys.tell(A, Begin(), sender="z")
    await toys.quiet()
    delayed = [row for row in await toys.pending(A) if row["timer"] is None]
    assert all(row["due_at"] > toys.clock.now() for row in delayed)
    toys.outside.broken.clear()

    said = await foundry("actors", "wake", A)

    assert said.splitlines() == [
        f"due now: 2 of {A} that waited for another attempt",
        "  1 timers keep their time",
    ]
    await toys.quiet()  # the clock stood still
    assert sorted(await toys.words(A)) == sorted(
        ["again toy-one 1", "bad", "one", "one two", "one two three"]
    )
    assert await toys.epoch(A) == 1


async def test_waking_says_when_there_is_nothing_to_do(toys: World, foundry: Operator) -> None:
    toys.outside.broken.add("bad")
    await toys.tell(A, Do(word="bad"))
    await park(toys)

    said = await foundry("actors", "wake", A)

    assert said.splitlines() == [
        f"nothing to do: nothing of {A} waits for another attempt",
        f"  1 parked: foundry mailbox ls {A} --parked",
    ]
