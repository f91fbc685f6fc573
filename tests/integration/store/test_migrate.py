"""Migrations against a real database."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from foundry_ray.core.errors import Unavailable
from foundry_ray.store import migrate


def test_migrations_and_tables_agree(database_url: str) -> None:
    assert migrate.check(database_url) == []
    assert migrate.pending(database_url) == []


def test_a_difference_is_named(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE stray (id int)")

    assert any("stray" in difference for difference in migrate.check(database_url))


def test_many_upgrades_at_once_take_turns(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    program = "import sys; from foundry_ray.store import migrate; migrate.upgrade(sys.stdin.read())"
    upgrades = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for upgrade in upgrades:
        upgrade.communicate(database_url, timeout=60)

    assert [upgrade.returncode for upgrade in upgrades] == [0, 0, 0]
    assert migrate.check(database_url) == []


def test_a_busy_database_is_unavailable_not_a_crash(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "WAIT_FOR_LOCK", "100ms")
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (migrate.LOCK_KEY,))

        with pytest.raises(Unavailable) as caught:
            migrate.upgrade(database_url)

    assert caught.value.retryable
    migrate.upgrade(database_url)
