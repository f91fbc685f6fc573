"""One PostgreSQL for the whole run, and a fresh database for each test that asks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from foundry_ray.core.ids import new_id
from foundry_ray.store import migrate
from foundry_ray.store.embedded import EmbeddedPostgres

TEMPLATE = "foundry_template"


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A running embedded PostgreSQL with a migrated template database."""
    folder = Path(tempfile.mkdtemp(prefix="foundry-test-"))
    # Searchable, so that root's server account reaches it and nothing is left elsewhere.
    folder.chmod(0o711)
    # Nothing here has to survive a power cut; everything else is as in production.
    server = EmbeddedPostgres(folder, settings={"fsync": "off", "full_page_writes": "off"})
    try:
        server.start()
        _execute(server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        migrate.upgrade(server.url(TEMPLATE))
        yield server
    finally:
        server.destroy()
        shutil.rmtree(folder)


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database of this test's own, migrated and empty."""
    name = f"test_{new_id()}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    _execute(postgres, create.format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
    yield postgres.url(name)
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
    _execute(postgres, drop.format(sql.Identifier(name)))


def _execute(server: EmbeddedPostgres, statement: sql.Composed) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(statement)
