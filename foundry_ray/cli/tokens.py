"""``foundry token``: API tokens for programs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import typer

from foundry_ray.cli.output import DataDir, Json, say, say_json
from foundry_ray.core import settings as settings_module


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    group = typer.Typer(help="API tokens.", no_args_is_help=True)

    @group.command()
    def create(
        login: Annotated[str, typer.Argument(help="GitHub login of a person who has signed in.")],
        name: Annotated[str, typer.Option(help="What the token is for.")] = "cli",
        days: Annotated[int | None, typer.Option(min=1, max=3650, help="Life in days.")] = None,
        data_dir: DataDir = None,
        json_: Json = False,
    ) -> None:
        """Make an API token that acts with a person's rights; it is shown only once."""
        from foundry_ray.actors.app_shell.messages import CreateToken
        from foundry_ray.cli.mail import ask, with_database
        from foundry_ray.core import keys
        from foundry_ray.core.clock import SystemClock
        from foundry_ray.core.errors import NotFound
        from foundry_ray.core.ids import new_id
        from foundry_ray.core.secrets import fingerprint, random_token
        from foundry_ray.store.engine import Database

        token, token_id = random_token("fdy_"), new_id()
        expires_at = SystemClock().now() + timedelta(days=days) if days else None

        async def work(database: Database) -> Any:
            async with database.transaction() as transaction:
                user = await transaction.one(
                    "SELECT id FROM user_github_data WHERE lower(login) = lower(%s)", (login,)
                )
            if user is None:
                raise NotFound(
                    f"Nobody called {login} has signed in.", hint="Sign in with a browser first."
                )
            command = CreateToken(
                id=token_id,
                user_id=user["id"],
                name=name,
                token_hash=fingerprint(token),
                expires_at=expires_at,
            )
            return await ask(database, keys.APP, command)

        with_database(settings_module.load(data_dir), work)
        if json_:
            say_json({"id": token_id, "token": token, "expires_at": expires_at})
        else:
            say(token)

    app.add_typer(group, name="token")
