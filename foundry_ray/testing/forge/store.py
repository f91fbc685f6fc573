"""The forge's memory: one small SQLite database beside the bare repositories."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from foundry_ray.core.clock import Clock

T = TypeVar("T")

_TABLES = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (
  id INTEGER PRIMARY KEY AUTOINCREMENT, login TEXT NOT NULL UNIQUE COLLATE NOCASE,
  kind TEXT NOT NULL, name TEXT, email TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS members (
  org_id INTEGER NOT NULL, user_id INTEGER NOT NULL, role TEXT NOT NULL,
  PRIMARY KEY (org_id, user_id));
CREATE TABLE IF NOT EXISTS collaborators (
  repository_id INTEGER NOT NULL, user_id INTEGER NOT NULL, permission TEXT NOT NULL,
  PRIMARY KEY (repository_id, user_id));
CREATE TABLE IF NOT EXISTS repositories (
  id INTEGER PRIMARY KEY AUTOINCREMENT, owner_id INTEGER NOT NULL,
  name TEXT NOT NULL COLLATE NOCASE, description TEXT, private INTEGER NOT NULL,
  archived INTEGER NOT NULL DEFAULT 0, default_branch TEXT NOT NULL, fork_of INTEGER,
  git_dir TEXT NOT NULL UNIQUE, next_number INTEGER NOT NULL DEFAULT 1,
  created_at TEXT NOT NULL, updated_at TEXT NOT NULL, pushed_at TEXT NOT NULL,
  UNIQUE (owner_id, name));
CREATE TABLE IF NOT EXISTS refs (
  repository_id INTEGER NOT NULL, name TEXT NOT NULL, sha TEXT NOT NULL,
  PRIMARY KEY (repository_id, name));
CREATE TABLE IF NOT EXISTS intents (
  id INTEGER PRIMARY KEY AUTOINCREMENT, repository_id INTEGER NOT NULL,
  actor_id INTEGER NOT NULL, pull_id INTEGER, merge_sha TEXT, at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pulls (
  id INTEGER PRIMARY KEY AUTOINCREMENT, repository_id INTEGER NOT NULL,
  head_repository_id INTEGER NOT NULL, number INTEGER NOT NULL, title TEXT NOT NULL, body TEXT,
  state TEXT NOT NULL, draft INTEGER NOT NULL, user_id INTEGER NOT NULL,
  head_ref TEXT NOT NULL, head_sha TEXT NOT NULL, base_ref TEXT NOT NULL, base_sha TEXT NOT NULL,
  merge_commit_sha TEXT, merged_by INTEGER, merged_at TEXT, closed_at TEXT,
  created_at TEXT NOT NULL, updated_at TEXT NOT NULL, UNIQUE (repository_id, number));
CREATE UNIQUE INDEX IF NOT EXISTS one_open_pull ON pulls
  (repository_id, head_repository_id, head_ref, base_ref) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS apps (
  id INTEGER PRIMARY KEY AUTOINCREMENT, slug TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
  owner_id INTEGER NOT NULL, bot_id INTEGER NOT NULL, client_id TEXT NOT NULL UNIQUE,
  client_secret TEXT NOT NULL, public_key TEXT NOT NULL, permissions TEXT NOT NULL,
  events TEXT NOT NULL, hook_id INTEGER NOT NULL, webhook_url TEXT NOT NULL,
  webhook_secret TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS installations (
  id INTEGER PRIMARY KEY AUTOINCREMENT, app_id INTEGER NOT NULL, account_id INTEGER NOT NULL,
  selection TEXT NOT NULL, permissions TEXT NOT NULL, events TEXT NOT NULL,
  suspended_at TEXT, suspended_by INTEGER, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
  UNIQUE (app_id, account_id));
CREATE TABLE IF NOT EXISTS installation_repositories (
  installation_id INTEGER NOT NULL, repository_id INTEGER NOT NULL,
  PRIMARY KEY (installation_id, repository_id));
CREATE TABLE IF NOT EXISTS tokens (
  digest TEXT PRIMARY KEY, kind TEXT NOT NULL, user_id INTEGER, app_id INTEGER,
  installation_id INTEGER, scopes TEXT NOT NULL, permissions TEXT NOT NULL,
  repository_ids TEXT, expires_at TEXT);
CREATE TABLE IF NOT EXISTS codes (
  digest TEXT PRIMARY KEY, app_id INTEGER NOT NULL, user_id INTEGER NOT NULL,
  redirect_uri TEXT NOT NULL, scopes TEXT NOT NULL, challenge TEXT NOT NULL,
  expires_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (
  id INTEGER PRIMARY KEY AUTOINCREMENT, guid TEXT NOT NULL, app_id INTEGER NOT NULL,
  event TEXT NOT NULL, action TEXT, installation_id INTEGER, repository_id INTEGER,
  redelivery INTEGER NOT NULL, payload TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0,
  delivered_at TEXT NOT NULL, duration REAL NOT NULL DEFAULT 0, status TEXT NOT NULL DEFAULT '',
  status_code INTEGER NOT NULL DEFAULT 0, url TEXT NOT NULL DEFAULT '',
  request_headers TEXT NOT NULL DEFAULT '{}', response_headers TEXT NOT NULL DEFAULT '{}',
  response_payload TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS deliveries_waiting ON deliveries (id) WHERE done = 0;
"""

# As large as GitHub's are: ids of pull requests and deliveries do not fit 32 bits.
_FIRST_IDS = {
    "accounts": 210_000_000,
    "apps": 1_300_000,
    "installations": 70_000_000,
    "repositories": 1_060_000_000,
    "pulls": 2_600_000_000,
    "deliveries": 190_000_000_000,
}


def instant(moment: datetime) -> str:
    """Return *moment* (UTC) as GitHub writes it, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """Rows in and out; used from one thread, and nothing awaits inside a transaction.

    Write-ahead logging: what was committed survives the death of the process.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.clock = clock
        # The tables hold the App's secrets: nobody else may read them.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        with self.transaction():
            for statement in _TABLES.split(";"):
                self._db.execute(statement)
            for table, first in _FIRST_IDS.items():
                self._db.execute(
                    "INSERT INTO sqlite_sequence (name, seq) SELECT ?, ? WHERE NOT EXISTS"
                    " (SELECT 1 FROM sqlite_sequence WHERE name = ?)",
                    (table, first, table),
                )

    def close(self) -> None:
        """Close the database; what is committed stays."""
        self._db.close()

    def now(self) -> str:
        """Return the present instant as GitHub writes it."""
        return instant(self.clock.now())

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything done inside, or nothing; one inside another joins it."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def run(self, sql: str, *values: Any) -> int:
        """Execute one statement and return the id of the row it inserted."""
        return self._db.execute(sql, values).lastrowid or 0

    def one(self, kind: type[T], sql: str, *values: Any) -> T | None:
        """Return the first row as a *kind*, or none."""
        row = self._db.execute(sql, values).fetchone()
        return None if row is None else kind(**dict(row))

    def all(self, kind: type[T], sql: str, *values: Any) -> list[T]:
        """Return every row as a *kind*."""
        return [kind(**dict(row)) for row in self._db.execute(sql, values)]

    def value(self, sql: str, *values: Any) -> Any:
        """Return the first column of the first row, or none."""
        row = self._db.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def pairs(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return every row as a tuple."""
        return [tuple(row) for row in self._db.execute(sql, values)]

    def insert(self, table: str, **columns: Any) -> int:
        """Insert one row and return its id."""
        names = ", ".join(columns)
        marks = ", ".join("?" * len(columns))
        return self.run(f"INSERT INTO {table} ({names}) VALUES ({marks})", *columns.values())

    def update(self, table: str, row_id: int, **columns: Any) -> None:
        """Set *columns* of the row with this id."""
        changes = ", ".join(f"{name} = ?" for name in columns)
        self.run(f"UPDATE {table} SET {changes} WHERE id = ?", *columns.values(), row_id)

    def setting(self, key: str) -> str | None:
        """Return a remembered setting of the forge itself."""
        found: str | None = self.value("SELECT value FROM settings WHERE key = ?", key)
        return found

    def set_setting(self, key: str, value: str) -> None:
        """Remember a setting of the forge itself."""
        self.run("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", key, value)
