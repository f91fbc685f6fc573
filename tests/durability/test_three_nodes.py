"""Actors, nodes and whole clusters die on a Ray of three nodes; nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from foundry_ray.core import keys
from foundry_ray.core.messages import ChildFailed
from foundry_ray.runtime import host
from foundry_ray.store.embedded import EmbeddedPostgres
from tests.durability.bench import seed
from tests.durability.conftest import Evidence
from tests.durability.history import History
from tests.durability.ray_world import RayWorld, Witness, rays, witnessed_database
from tests.helpers import eventually
from tests.integration.every_message.kit import ENTITIES, failure

WAYS = ("kill -9", "ray.kill", "exit_actor", "SIGSTOP")
PATIENCE = 120.0  # seconds, on a machine that has much else to do
HISTORIES = [keys.history(keys.repository(500, number)) for number in range(1, 5)]


@pytest.fixture(scope="module")
def database(postgres: EmbeddedPostgres) -> str:
    return witnessed_database(postgres)


@pytest.fixture(scope="module")
def witness(database: str) -> Witness:
    return Witness(database)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with rays() as made:
        yield made


@pytest.fixture(scope="module")
def blue(folder: Path, database: str, witness: Witness) -> Iterator[RayWorld]:
    """A Ray of three nodes."""
    place = folder / "b"
    place.mkdir()
    made = RayWorld(place, database, nodes=3)
    try:
        yield made.ready()
    finally:
        made.destroy()


def check(histories: list[History], witness: Witness) -> dict[str, int]:
    """Compare what clients did and were told with what was committed."""
    operations = [operation for one in histories for operation in one.operations]
    whole = History(sorted(operations, key=lambda operation: operation.invoked))
    whole.check({target: witness.words(target) for target in HISTORIES})
    return {"commands": len(whole.operations), "acknowledged": len(whole.acknowledged)}


async def grows(history_of: RayWorld, by: int) -> None:
    """Wait until so many more commands have been acknowledged."""
    wanted = len(history_of.history.acknowledged) + by
    await eventually(lambda: len(history_of.history.acknowledged) >= wanted, PATIENCE, every=0.1)


# -- actors --------------------------------------------------------------------------------


async def strike(blue: RayWorld, key: str, way: str, pid: int) -> None:
    """End the process of an actor, or stop it."""
    match way:
        case "kill -9":
            os.kill(pid, signal.SIGKILL)
        case "SIGSTOP":
            os.kill(pid, signal.SIGSTOP)
        case "ray.kill":
            await blue.do("kill", key=key)
        case "exit_actor":
            await blue.do("exit", key=key)
            await eventually(lambda: not Path(f"/proc/{pid}").exists(), PATIENCE)


async def test_an_actor_of_every_kind_comes_back_by_name_and_does_its_mail_once(
    blue: RayWorld, witness: Witness, evidence: Evidence
) -> None:
    keys_of_kinds = list(ENTITIES.values())

    async def tell(marker: str) -> None:
        for key in keys_of_kinds:
            told = ChildFailed(
                child=key, failure=failure(key).model_copy(update={"message": f"{marker} {key}"})
            )
            await blue.do("tell", key=key, kind=told.kind, body=told.model_dump(mode="json"))

    def done(marker: str, key: str) -> bool:
        return bool(witness.consumed(f"{marker} {key}"))

    async def all_done(marker: str) -> None:
        for key in keys_of_kinds:
            await eventually(partial(done, marker, key), PATIENCE, every=0.1)

    await tell("before")
    await all_done("before")
    nodes = Counter(blue.raylet_of(witness.pid(key)) for key in keys_of_kinds)
    evidence.add(actors_per_raylet=sorted(nodes.values()))
    for way in WAYS:
        before = {key: witness.entity(key) for key in keys_of_kinds}
        began = time.monotonic()
        await asyncio.gather(
            *(strike(blue, key, way, before[key]["host"]["pid"]) for key in keys_of_kinds)
        )
        await tell(way)
        for kind, key in ENTITIES.items():
            await eventually(partial(done, way, key), PATIENCE, every=0.1)
            seconds = round(time.monotonic() - began, 2)
            [commit] = witness.consumed(f"{way} {key}")
            assert commit["epoch"] > before[key]["epoch"]
            assert commit["host"] != before[key]["host"]
            await eventually(partial(host.proven_gone, before[key]["host"]), PATIENCE)
            assert key in await blue.do("names")
            evidence.add(
                kind=kind,
                way=way,
                pid=before[key]["host"]["pid"],
                new_pid=commit["host"]["pid"],
                epochs=[before[key]["epoch"], commit["epoch"]],
                mail_done_after=seconds,
            )


# -- nodes -----------------------------------------------------------------------------------


async def test_a_node_dies_with_its_actors_under_load(
    blue: RayWorld, witness: Witness, evidence: Evidence
) -> None:
    chosen = random.Random(seed())
    await blue.do("write", clients=[f"blue{number}" for number in range(6)], targets=HISTORIES)
    await grows(blue, 50)
    for way in ("kill -9", "ray.kill", "exit_actor"):
        key = chosen.choice(HISTORIES)
        pid = await eventually(partial(witness.pid, key), PATIENCE)
        await strike(blue, key, way, pid)
        await grows(blue, 20)

    _head, *others = blue.where["raylets"]
    homes = Counter(blue.raylet_of(witness.pid(key)) for key in [*ENTITIES.values(), *HISTORIES])
    raylet = max(others, key=lambda pid: homes[pid])
    lost = [key for key in HISTORIES if blue.raylet_of(witness.pid(key)) == raylet]
    before = {key: witness.entity(key) for key in lost}
    began = time.monotonic()
    os.kill(raylet, signal.SIGKILL)
    await eventually(
        lambda: all(witness.entity(key)["epoch"] > before[key]["epoch"] for key in lost), PATIENCE
    )
    seconds = round(time.monotonic() - began, 2)
    await grows(blue, 50)
    evidence.add(
        killed_raylet=raylet, actors_on_it=homes[raylet], histories_on_it=len(lost),
        all_back_after=seconds, **check([blue.history], witness),
        **witness.check_one_at_a_time(),
    )  # fmt: skip
    assert homes[raylet], "no actor lived on the node that died"


# -- strangers ------------------------------------------------------------------------------


async def test_ray_hears_nobody_without_the_token(blue: RayWorld, evidence: Evidence) -> None:
    knock = f"import ray; ray.init({blue.where['address']!r}, log_to_driver=False); print('let in')"
    stranger = subprocess.Popen(
        [sys.executable, "-c", knock],
        env={**blue.environment, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await eventually(lambda: stranger.poll() is not None, PATIENCE, every=0.1)
    finally:
        stranger.kill()
        said, why = stranger.communicate()
    assert stranger.returncode != 0
    assert "let in" not in said
    assert "auth" in why.lower(), why
    evidence.add(status=stranger.returncode, last_words=why.splitlines()[-1][:200])


# -- two clusters -----------------------------------------------------------------------------


async def named_in_both(one: RayWorld, other: RayWorld, key: str) -> bool:
    return key in await one.do("names") and key in await other.do("names")


async def test_of_two_rays_on_one_database_one_commits_and_a_stopped_one_is_replaced(
    folder: Path, blue: RayWorld, database: str, witness: Witness, evidence: Evidence
) -> None:
    place = folder / "g"
    place.mkdir()
    green = RayWorld(place, database, nodes=1)
    try:
        green.ready()
        await green.do("write", clients=["green1", "green2"], targets=HISTORIES)
        await eventually(lambda: named_in_both(blue, green, keys.APP), PATIENCE, every=0.2)
        await grows(green, 6)
        commits = witness.commits()
        by_green = [one for one in commits if green.hosts(one["pid"])]
        assert by_green == [], "the Ray without the lease committed"
        evidence.add(
            same_name_in_both=keys.APP, lease=witness.lease(), committed=len(commits),
            committed_by_green=len(by_green), acknowledged_in_green=len(green.history.acknowledged),
        )  # fmt: skip

        # Whoever keeps blue's lease is stopped, and who would notice. Its activations are not.
        stopped = [witness.pid(keys.APP), blue.pid]
        began = time.monotonic()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: green.hosts(witness.pid(keys.APP)), PATIENCE, every=0.1)
        taken = round(time.monotonic() - began, 2)
        zombies = {key: witness.entity(key) for key in HISTORIES if blue.hosts(witness.pid(key))}
        await eventually(
            lambda: all(green.hosts(witness.pid(key)) for key in HISTORIES), PATIENCE, every=0.1
        )
        await grows(green, 6)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        await grows(blue, 5)  # its clients are answered, by green's commits
        for where in (blue, green):
            await where.do("enough")
        evidence.add(
            lease_taken_after=taken, lease=witness.lease(),
            zombies={key: row["epoch"] for key, row in zombies.items()},
            **check([blue.history, green.history], witness), **witness.check_one_at_a_time(),
        )  # fmt: skip
    finally:
        green.destroy()


# -- GCS ------------------------------------------------------------------------------------


async def test_gcs_dies_and_ray_is_restarted_whole(
    folder: Path, blue: RayWorld, database: str, witness: Witness, evidence: Evidence
) -> None:
    await eventually(lambda: blue.hosts(witness.pid(keys.APP)), PATIENCE, every=0.1)
    await blue.do("write", clients=["late1", "late2"], targets=HISTORIES)
    await grows(blue, 20)
    before = {key: witness.entity(key) for key in ENTITIES.values()}
    os.kill(blue.where["gcs"], signal.SIGKILL)
    known = len(blue.history.acknowledged)
    await grows(blue, 10)  # who lives goes on without it
    evidence.add(
        killed_gcs=blue.where["gcs"], acknowledged_without_it=len(blue.history.acknowledged) - known
    )

    killed = blue.kill_all()  # as the node supervisor does
    began = time.monotonic()
    again = RayWorld(blue.folder, database, nodes=3)
    try:
        again.ready()
        await eventually(
            lambda: witness.entity(keys.APP)["epoch"] > before[keys.APP]["epoch"], PATIENCE
        )
        seconds = round(time.monotonic() - began, 2)
        await again.do("write", clients=["again1", "again2"], targets=HISTORIES)
        await grows(again, 20)
        await again.do("enough")
        await eventually(lambda: not witness.waiting(), PATIENCE, every=0.2)
        evidence.add(
            killed=dict(killed), app_back_after=seconds, **check([again.history], witness),
            **witness.check_one_at_a_time(),
        )  # fmt: skip
    finally:
        again.destroy()
