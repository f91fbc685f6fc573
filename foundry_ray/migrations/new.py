"""Writes the next migration from what the tables in code have that the last one lacks.

``make migration m="task: remember the base branch"`` runs it. The difference is taken
against a PostgreSQL of its own, made for this and deleted afterwards.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

from foundry_ray.store import migrate
from foundry_ray.store.embedded import EmbeddedPostgres


def write(message: str) -> Path | None:
    """Write the next numbered migration; None when tables and migrations agree already."""
    scripts = ScriptDirectory.from_config(migrate.config())
    number = len(list(scripts.walk_revisions())) + 1
    with tempfile.TemporaryDirectory(prefix="foundry-migration-") as folder:
        server = EmbeddedPostgres(Path(folder), settings={"fsync": "off"})
        try:
            url = server.start()
            migrate.upgrade(url)
            if not migrate.check(url):
                return None
            engine = sa.create_engine(
                make_url(url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool
            )
            with engine.connect() as connection:
                made = command.revision(
                    migrate.config(connection),
                    message=message,
                    autogenerate=True,
                    rev_id=f"{number:04d}",
                )
            engine.dispose()
        finally:
            server.destroy()
    if made is None or isinstance(made, list):
        raise TypeError("one message makes one migration")
    _tidy(made.path)
    return Path(made.path)


def _tidy(path: str) -> None:
    """Put the generated text into the project's own form."""
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--quiet", "--fix-only", path], check=True)
    subprocess.run([*ruff, "format", "--quiet", path], check=True)


def main() -> None:
    """Take the message from the command line and print what was written."""
    if len(sys.argv) != 2 or not sys.argv[1].strip():
        sys.exit('Say what changes: make migration m="task: remember the base branch"')
    path = write(sys.argv[1])
    print("Tables and migrations agree: nothing written." if path is None else f"Wrote {path}")


if __name__ == "__main__":
    main()
