"""No secret of a run stands in clear in the database, the logs, an argv or a git config."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql

from foundry_ray import bootstrap
from foundry_ray.store.embedded import EmbeddedPostgres
from tests.e2e.conftest import Acme, Foundry

# sandbox-agent takes its own bearer only as an argument; `foundry doctor` says so.
BEARER = "#token"


def _secrets(foundry: Foundry) -> dict[str, str]:
    """Return every secret that this run has, by what it is."""
    settings = foundry.settings
    own = bootstrap.sealer(settings)
    found = {"secret key": settings.secret_key.get_secret_value()}
    for name in ("github_client_secret", "github_webhook_secret"):
        found[name] = getattr(settings, name).get_secret_value()
    assert settings.github_app_key_file is not None
    key = settings.github_app_key_file.read_text().splitlines()
    found["GitHub App key"] = key[len(key) // 2]
    url = EmbeddedPostgres(foundry.data_dir).url()
    found["database password"] = str(psycopg.conninfo.conninfo_to_dict(url)["password"])
    found["Ray token"] = (foundry.data_dir / "ray.token").read_text().strip()
    with psycopg.connect(url) as connection:
        for secret_id, sealed in connection.execute("SELECT id, sealed FROM rt_secret"):
            found[secret_id] = own.open(sealed, secret_id).get_secret_value()
    return found


def _dump(foundry: Foundry) -> Iterator[tuple[str, str]]:
    with psycopg.connect(EmbeddedPostgres(foundry.data_dir).url()) as connection:
        names = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        for (name,) in names:
            statement = sql.SQL("SELECT row::text FROM {} AS row").format(sql.Identifier(name))
            for (text,) in connection.execute(statement):
                yield f"table {name}", text


def _files(*roots: Path) -> Iterator[tuple[str, str]]:
    for root in roots:
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_text("utf-8", errors="replace")


def _arguments() -> Iterator[tuple[str, str]]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                yield f"argv of {process.name}", (process / "cmdline").read_text(errors="replace")
            except OSError:
                continue  # it ended meanwhile


async def test_no_secret_stands_in_clear_where_it_must_not(foundry: Foundry, acme: Acme) -> None:
    token = json.loads(foundry.cli("token", "create", "ada", "--json"))["token"]
    task = await acme.create("write a.txt hello\ncommit Say hello")
    ready = await acme.settled(task["id"])
    await acme.call("POST", f"/tasks/{task['id']}/push")
    await acme.settled(task["id"])
    home = foundry.data_dir / "sandboxes" / ready["sandboxes"][0]["id"] / "home"
    secrets = await asyncio.to_thread(_secrets, foundry)
    secrets["API token"] = token
    cookie = acme.browser.http.cookies.get("foundry_session")
    assert cookie
    secrets["session cookie"] = cookie
    assert {name.rpartition("#")[2] for name in secrets} >= {"token", "github-token"}
    assert any(name.startswith("credential/") for name in secrets)

    places = [
        *await asyncio.to_thread(lambda: list(_dump(foundry))),
        *_files(foundry.data_dir / "logs", foundry.settings.run_dir, home / "work" / ".git"),
        *_arguments(),
    ]

    assert len(places) > 100
    for what, secret in secrets.items():
        for where, text in places:
            if what.endswith(BEARER) and where.startswith("argv"):
                continue
            assert secret not in text, f"{what} stands in {where}"
