"""``foundry issues``: runtime issues, listed and cleared (S30)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from foundry_ray.cli.output import DataDir, Json, say, say_json, table
from foundry_ray.core import settings as settings_module


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    group = typer.Typer(help="Runtime issues.", no_args_is_help=True)

    @group.command("ls")
    def ls(
        resolved: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
        data_dir: DataDir = None,
        json_: Json = False,
    ) -> None:
        """List what is wrong now, with whom it affects and what to do."""
        from foundry_ray.cli.mail import with_database

        issues = with_database(settings_module.load(data_dir), lambda d: _issues(d, resolved))
        if json_:
            say_json({"items": issues})
        elif not issues:
            say("no runtime issues")
        else:
            head = ("id", "where", "code", "count", "affected", "last seen", "state", "message")
            table([_row(issue) for issue in issues], head)

    @group.command()
    def clear(
        issue_id: Annotated[str | None, typer.Argument(help="One issue; else all.")] = None,
        data_dir: DataDir = None,
    ) -> None:
        """Forget one issue, or all, after investigation; the audit log says that it was done."""
        from foundry_ray.actors.app_shell.messages import ClearAppIssues
        from foundry_ray.actors.organization.messages import ClearIssues
        from foundry_ray.cli.mail import ask, with_database
        from foundry_ray.core import keys
        from foundry_ray.core.errors import NotFound
        from foundry_ray.core.messages import Message
        from foundry_ray.runtime.audit import OPERATOR
        from foundry_ray.store.engine import Database

        async def work(database: Database) -> int:
            found = [i for i in await _issues(database, True) if issue_id in (None, i["id"])]
            if issue_id is not None and not found:
                raise NotFound("There is no such runtime issue.", hint="foundry issues ls --all")
            cleared = 0
            for root in sorted({issue["root"] for issue in found}):
                command: Message = (
                    ClearAppIssues(by=OPERATOR, issue_id=issue_id)
                    if root == keys.APP
                    else ClearIssues(by=OPERATOR, issue_id=issue_id)
                )
                cleared += (await ask(database, root, command))["cleared"]
            return cleared

        count = with_database(settings_module.load(data_dir), work)
        say(f"cleared {count} runtime issue{'' if count == 1 else 's'}")

    app.add_typer(group, name="issues")


async def _issues(database: Any, resolved: bool) -> list[dict[str, Any]]:
    async with database.transaction() as transaction:
        rows = await transaction.fetch(
            "SELECT actor_key AS root, id, code, message, hint, entity, workflow, step, count,"
            " affected, will_retry, first_seen_at, last_seen_at, resolved_at FROM rt_issue"
            " WHERE %s OR resolved_at IS NULL ORDER BY last_seen_at DESC",
            (resolved,),
        )
    return [dict(row) for row in rows]


def _row(issue: dict[str, Any]) -> list[str]:
    state = "resolved" if issue["resolved_at"] else "retrying" if issue["will_retry"] else "open"
    seen = f"{issue['last_seen_at']:%Y-%m-%d %H:%M:%S}"
    return [
        issue["id"], issue["root"], issue["code"], str(issue["count"]),
        str(len(issue["affected"])), seen, state, issue["message"],
    ]  # fmt: skip
