"""``foundry db``: the database's schema."""

from __future__ import annotations

import typer

from foundry_ray.cli.output import DataDir, say
from foundry_ray.core import settings as settings_module
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.settings import Settings


def database_url(settings: Settings) -> str:
    """Return the URL of the database, of the running embedded one if no other was set.

    Raises:
        Unavailable: The embedded server was never made or does not run.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    from foundry_ray.store.embedded import EmbeddedPostgres

    server = EmbeddedPostgres(settings.data_dir)
    if server.record is None:
        raise Unavailable(
            "the embedded PostgreSQL does not run",
            hint=f"foundry up --data-dir {settings.data_dir}",
        )
    return server.url()


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    group = typer.Typer(help="Look after the database.", no_args_is_help=True)

    @group.command()
    def upgrade(data_dir: DataDir = None) -> None:
        """Bring the database to the schema of this release; changes nothing if it is there."""
        from foundry_ray.store import migrate

        url = database_url(settings_module.load(data_dir))
        waiting = migrate.pending(url)
        migrate.upgrade(url)
        done = ", ".join(waiting)
        say(f"applied: {done}" if done else "the database is up to date")

    app.add_typer(group, name="db")
