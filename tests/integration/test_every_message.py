"""Every message a kind declares, sent once through the durable path, and the effect it commits.

Each case runs on a real PostgreSQL and the real in-process kernel: the message enters through
the client, the actor of its kind handles it, and the case reads what the one transaction
changed that consumed the message.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from foundry_ray.bootstrap import ACTORS
from foundry_ray.cli.tree import describe
from foundry_ray.core.ids import new_id
from foundry_ray.store.embedded import EmbeddedPostgres
from tests.conftest import TEMPLATE
from tests.integration.every_message import agents, roots, sandboxes, work
from tests.integration.every_message.kit import ENTITIES, Case, unheeded
from tests.integration.every_message.world import bring_witness, consumption, world

CASES: tuple[Case, ...] = (
    *roots.CASES,
    *work.CASES,
    *agents.CASES,
    *sandboxes.CASES,
    *(unheeded(kind) for kind in ENTITIES),
)


@pytest.fixture(scope="module")
def witnessed(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a migrated database that writes down each change."""
    name = f"test_{new_id()}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
        bring_witness(postgres.url(name))
        yield postgres.url(name)
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        connection.execute(drop.format(sql.Identifier(name)))


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_message_commits_what_it_asks_for(case: Case, witnessed: str) -> None:
    async with world(witnessed, case.entity, case.rows) as one:
        for earlier in case.before:
            await one.say(earlier)

        changes = await one.say(case.message, case.way)

    consumption(changes, case)
    for effect in case.effects:
        near = [change for change in changes if change.table == effect.table]
        assert any(effect.made_by(change) for change in near), f"no {effect} in {near}"
    if not case.effects:
        assert {change.table for change in changes} == {"rt_entity", "rt_mailbox"}


def test_each_declared_message_has_one_case_and_each_case_a_declared_message() -> None:
    declared = {(actor.actor_type, message) for actor in ACTORS for message in actor.messages()}
    shown = [(case.kind, type(case.message)) for case in CASES]

    assert set(shown) == declared
    assert len(shown) == len(declared)


def test_every_message_but_a_childs_failure_has_a_named_effect() -> None:
    silent = {case.message.kind for case in CASES if not case.effects}

    assert silent == {"runtime.child_failed"}


def test_the_tree_shows_each_kind_with_these_messages() -> None:
    tree = {kind["kind"]: [message["kind"] for message in kind["messages"]] for kind in describe()}

    assert list(tree) == [actor.actor_type for actor in ACTORS]
    for kind, messages in tree.items():
        assert sorted(messages) == sorted(c.message.kind for c in CASES if c.kind == kind)


def test_the_tables_of_the_tree_are_those_of_the_migrated_database(witnessed: str) -> None:
    shown = {table for kind in describe() for table in kind["tables"]}
    with psycopg.connect(witnessed) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        there = {name for (name,) in found}

    own = {name for name in there if not name.startswith("rt_")}
    assert shown == own - {"witness", "alembic_version"}
