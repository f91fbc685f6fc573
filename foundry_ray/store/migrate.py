"""Brings a database to the schema of this release, one process at a time.

Migrations live in ``foundry_ray/migrations``, a floor above; Alembic loads them from
their folder, so this module knows their place and nothing of their content.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

from foundry_ray.core.errors import Unavailable

SCRIPTS = Path(__file__).parent.parent / "migrations"

# Names the lock among a database's advisory locks: "foundry" in ASCII, as a number.
LOCK_KEY = int.from_bytes(b"foundry", "big")
# Another process may be migrating; that takes as long as its longest statement.
WAIT_FOR_LOCK = "120s"
# A migration that waits for a table blocks everybody who comes after it: give up early.
WAIT_FOR_TABLE = "5s"


def upgrade(url: str) -> None:
    """Apply every migration that *url*'s database has not seen; safe to call at every start.

    Raises:
        Unavailable: The database does not answer, another process holds the migration
            lock, or a table was in use for too long. Nothing was changed by the failed
            migration; try again.
    """
    with _connected(url) as connection, _migration_lock(connection):
        command.upgrade(config(connection), "head")


def check(url: str) -> list[str]:
    """Return how the database differs from the tables in code; empty when they agree.

    Raises:
        Unavailable: The database does not answer.
    """
    from foundry_ray.migrations.tables import metadata

    with _connected(url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [repr(difference) for difference in compare_metadata(context, metadata)]


def pending(url: str) -> list[str]:
    """Return the revisions that *url*'s database has not seen, oldest first.

    Raises:
        Unavailable: The database does not answer.
    """
    scripts = ScriptDirectory.from_config(config())
    with _connected(url) as connection:
        seen = MigrationContext.configure(connection).get_current_heads()
    known = [s.revision for s in scripts.walk_revisions()]
    done = {s.revision for head in seen for s in scripts.iterate_revisions(head, "base")}
    return [revision for revision in reversed(known) if revision not in done]


def config(connection: sa.Connection | None = None) -> Config:
    """Return Alembic's configuration, made here so that no file has to be found."""
    made = Config()
    made.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    made.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    if connection is not None:
        made.attributes["connection"] = connection
    return made


@contextmanager
def _connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        poolclass=sa.NullPool,
        connect_args={"connect_timeout": 10, "application_name": "foundry-migrate"},
    )
    try:
        with engine.connect() as connection:
            yield connection
    except sa.exc.OperationalError as trouble:
        raise Unavailable(
            "The database could not be migrated or read now.",
            hint="See whether PostgreSQL runs and whether a long transaction holds a table.",
            reason=type(trouble.orig).__name__,
        ) from trouble
    finally:
        engine.dispose()


@contextmanager
def _migration_lock(connection: sa.Connection) -> Iterator[None]:
    """Hold the lock on this session, then leave the table timeout for the migrations."""
    connection.execute(sa.text(f"SET lock_timeout = '{WAIT_FOR_LOCK}'"))
    connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
    connection.execute(sa.text(f"SET lock_timeout = '{WAIT_FOR_TABLE}'"))
    connection.commit()
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
        connection.commit()
