"""The ``foundry`` command.

Each module in `COMMANDS` adds its verbs by a function ``register(app)``. Modules import heavy
things (Ray, SQL) inside the verb that needs them, so that ``foundry --help`` stays quick.
"""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from foundry_ray import __version__
from foundry_ray.cli.output import complain
from foundry_ray.core.errors import FoundryError

# One line per module; a new verb is a new module here.
COMMANDS = (
    "foundry_ray.cli.up",
    "foundry_ray.cli.status",
    "foundry_ray.cli.doctor",
    "foundry_ray.cli.database",
    "foundry_ray.cli.demo",
    "foundry_ray.cli.chaos",
    "foundry_ray.cli.tree",
    "foundry_ray.cli.tokens",
    "foundry_ray.cli.issues",
    "foundry_ray.cli.actors",
    "foundry_ray.cli.mailbox",
)


def make_app() -> typer.Typer:
    """Return the command with all of its verbs."""
    app = typer.Typer(
        name="foundry",
        help="Runs coding agents for a team on a Ray cluster.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True)
    def root(
        context: typer.Context,
        version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    ) -> None:
        if version:
            typer.echo(f"foundry {__version__}")
            raise typer.Exit
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit(2)

    for module in COMMANDS:
        import_module(module).register(app)
    return app


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 1 failed, 2 misused."""
    try:
        make_app()()
    except FoundryError as error:
        complain(error)
        sys.exit(1)
