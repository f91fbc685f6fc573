"""What a run looks at from outside: rows, the agents' journals, their own witness.

Nothing here asks Foundry how it feels: the database and the files that only an agent and its
shim write say what happened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from foundry_ray.cli.places import Places
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.settings import Settings

CONNECT_PATIENCE = 3  # seconds


class Outside:
    """One instance's database and sandboxes.

    Args:
        settings: Of the instance.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.places = Places(settings.data_dir)

    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        """Return a connection to the database.

        Raises:
            Unavailable: It does not answer.
        """
        try:
            url = self.places.database_url.read_text().strip()
            return psycopg.connect(
                url, row_factory=dict_row, autocommit=True, connect_timeout=CONNECT_PATIENCE
            )
        except (OSError, psycopg.OperationalError) as trouble:
            raise Unavailable("PostgreSQL does not answer.", reason=str(trouble)) from trouble

    def query(self, statement: str, *given: Any) -> list[dict[str, Any]]:
        """Ask the database; errors as `connect`."""
        with self.connect() as connection:
            try:
                return connection.execute(statement.encode(), given).fetchall()
            except psycopg.OperationalError as trouble:
                raise Unavailable("PostgreSQL went away.", reason=str(trouble)) from trouble

    def home(self, sandbox: str) -> Path:
        """Return the home of a sandbox."""
        return self.places.sandboxes / sandbox / "home"

    def witness(self, sandbox: str) -> list[str]:
        """Return the message ids that the agent itself wrote down when it got them."""
        path = self.home(sandbox) / ".foundry" / "witness.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().rpartition(b"\n")[0].splitlines()
        return [str(json.loads(line)["message_id"]) for line in lines]

    def head(self, sandbox: str) -> str:
        """Return the commit that the work tree of a sandbox is at; empty without one."""
        git = self.home(sandbox) / "work" / ".git"
        return _resolve(git, (git / "HEAD").read_text().strip()) if git.is_dir() else ""

    def pushed(self, branch: str) -> str:
        """Return the commit of a branch in the forge's own git directory; empty without one."""
        git = self.settings.data_dir / "forge" / "repositories" / "acme" / "demo.git"
        return _resolve(git, f"ref: refs/heads/{branch}")


def read_journal(home: Path, server: str) -> list[dict[str, Any]]:
    """Return the whole records of a journal in their order."""
    records = []
    for path in _segments(home, server):
        content = path.read_bytes()
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            records.append(json.loads(line))
    return records


def count_journal(home: Path, server: str) -> int:
    """Return how many records a journal holds now, without reading all of them."""
    paths = _segments(home, server)
    if not paths:
        return 0
    return int(paths[-1].stem) - 1 + paths[-1].read_bytes().count(b"\n")


def _segments(home: Path, server: str) -> list[Path]:
    return sorted((home / ".foundry" / "journal" / server).glob("*.jsonl"))


def _resolve(git: Path, word: str) -> str:
    """Return the commit that the content of ``HEAD`` means."""
    if not word.startswith("ref: "):
        return word
    name = word.removeprefix("ref: ")
    if (git / name).is_file():
        return (git / name).read_text().strip()
    packed = git / "packed-refs"
    for line in packed.read_text().splitlines() if packed.is_file() else ():
        commit, _, named = line.partition(" ")
        if named == name:
            return commit
    return ""
