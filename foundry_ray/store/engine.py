"""PostgreSQL connections and the one way to open a transaction.

psycopg speaks to the server; SQLModel classes only describe tables. Rows are
written whole, so a writer never needs an identity map or a lazy load.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, TypeVar, cast

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb, set_json_dumps
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import SQLModel

from foundry_ray.core import disk
from foundry_ray.core.errors import Unavailable

Row = TypeVar("Row", bound=SQLModel)

# A stopped holder must not keep a row lock, and no statement of a turn is long.
GUARDS = {
    "idle_in_transaction_session_timeout": "10s",
    "transaction_timeout": "60s",
    "statement_timeout": "30s",
    "lock_timeout": "10s",
}
KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "connect_timeout": 5,
}


class StoreUnavailable(Unavailable):
    """PostgreSQL does not answer at the moment."""

    code = "store_unavailable"


class CommitConflict(StoreUnavailable):
    """The transaction met another one and was undone; repeat it from loaded state."""

    code = "store_conflict"


class CommitUnknown(StoreUnavailable):
    """COMMIT was sent and no answer came; look before doing it again."""

    code = "commit_unknown"


AWAY = "Try again in a moment; `foundry status` shows what is away."

WAIT = 10.0  # seconds for a connection
# Seconds in which the pool tries again, in ever longer intervals, and nobody else may: left at its
# five minutes, who had met a server that was away stayed without it for minutes after it was back.
# When they are over, who still wants a connection begins anew.
TRIES = 8.0

_CONFLICTS = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.QueryCanceled,
)
_OUTAGES = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    # The server ended us: stopped in the middle of a transaction, or too slow.
    errors.IdleInTransactionSessionTimeout,
    errors.TransactionTimeout,
    PoolTimeout,
    OSError,
)


# PostgreSQL stores neither NUL nor half a surrogate pair; agents print both.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_NUL_IN_JSON = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_REPLACEMENT = "\ufffd"


def storable(text: str) -> str:
    """Return *text* with U+FFFD in place of what PostgreSQL cannot store."""
    return text if text.isascii() and "\0" not in text else _UNSTORABLE.sub(_REPLACEMENT, text)


def dump_json(value: Any) -> bytes:
    """Return JSON that PostgreSQL can store."""
    text = json.dumps(value, ensure_ascii=False)
    if "\\u0000" in text:
        text = _NUL_IN_JSON.sub(rf"\1{_REPLACEMENT}", text)
    return storable(text).encode()


class Shape:
    """The SQL that writes and reads whole rows of one table."""

    def __init__(self, row_type: type[SQLModel]) -> None:
        table = cast(Table, row_type.__table__)  # type: ignore[attr-defined]
        columns = [c for c in table.columns if c.identity is None]
        self.names = [c.name for c in columns]
        self.json = frozenset(c.name for c in columns if isinstance(c.type, JSONB))
        keys = self.keys = [c.name for c in table.primary_key.columns]
        slots = ", ".join(f"%({name})s" for name in self.names)
        self.insert = f"INSERT INTO {table.name} ({', '.join(self.names)}) VALUES ({slots})"
        changes = ", ".join(f"{n} = excluded.{n}" for n in self.names if n not in keys)
        conflict = f"DO UPDATE SET {changes}" if changes else "DO NOTHING"
        self.put = f"{self.insert} ON CONFLICT ({', '.join(keys)}) {conflict}"
        where = " AND ".join(f"{k} = %({k})s" for k in keys)
        self.delete = f"DELETE FROM {table.name} WHERE {where}"
        self.select = f"SELECT {', '.join(c.name for c in table.columns)} FROM {table.name}"

    def values(self, row: SQLModel) -> dict[str, Any]:
        """Return the row's values as psycopg takes them."""
        return {name: self._value(name, getattr(row, name)) for name in self.names}

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, str) and name not in self.json:
            return storable(value)
        return Jsonb(value) if name in self.json and value is not None else value


@cache
def shape(row_type: type[SQLModel]) -> Shape:
    """Return the SQL of a table, built once per process."""
    return Shape(row_type)


class Transaction:
    """One open transaction."""

    def __init__(self, connection: AsyncConnection[DictRow]) -> None:
        self._connection = connection

    async def execute(self, sql: str, values: Any = None) -> int:
        """Run a statement; return how many rows it touched."""
        cursor = await self._connection.execute(sql, values)
        return cursor.rowcount

    async def fetch(self, sql: str, values: Any = None) -> list[DictRow]:
        """Run a query; return all its rows."""
        cursor = await self._connection.execute(sql, values)
        return await cursor.fetchall()

    async def one(self, sql: str, values: Any = None) -> DictRow | None:
        """Run a query; return its first row, or None."""
        cursor = await self._connection.execute(sql, values)
        return await cursor.fetchone()

    async def rows(self, row_type: type[Row], where: str = "", values: Any = None) -> list[Row]:
        """Return the rows of a table that satisfy *where* (what stands after the table's name)."""
        found = await self.fetch(f"{shape(row_type).select} {where}", values)
        return [row_type(**row) for row in found]

    async def owned(self, row_type: type[Row], actor_key: str, order: str = "") -> list[Row]:
        """Return the rows of a table that one entity owns."""
        return await self.rows(row_type, f"WHERE actor_key = %s {order}", (actor_key,))

    async def put(self, row: SQLModel) -> None:
        """Insert the row, or replace the one with its primary key."""
        await self.execute(shape(type(row)).put, shape(type(row)).values(row))

    async def insert(self, rows: Sequence[SQLModel]) -> None:
        """Insert rows of one table in one round trip."""
        if not rows:
            return
        form = shape(type(rows[0]))
        async with self._connection.cursor() as cursor:
            await cursor.executemany(form.insert, [form.values(row) for row in rows])

    async def delete(self, row: SQLModel) -> None:
        """Delete the row with this primary key, if it is there."""
        form = shape(type(row))
        await self.drop(type(row), {name: getattr(row, name) for name in form.keys})

    async def drop(self, row_type: type[SQLModel], key: dict[str, Any]) -> None:
        """Delete the row with this primary key, if it is there."""
        await self.execute(shape(row_type).delete, key)


async def _configure(connection: AsyncConnection[DictRow]) -> None:
    set_json_dumps(dump_json, connection)


class Database:
    """Connections to one database.

    Args:
        url: libpq connection string or URL.
        name: Shown by the server as ``application_name``.
        size: Connections at most; none is opened before it is needed.
        guards: Server settings in place of some of ``GUARDS``.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "foundry",
        size: int = 2,
        guards: Mapping[str, str] | None = None,
    ) -> None:
        settings = {**GUARDS, **(guards or {})}
        options = " ".join(f"-c {key}={value}" for key, value in settings.items())
        self.url = url
        self._pool = AsyncConnectionPool(
            url,
            connection_class=AsyncConnection[DictRow],
            kwargs={
                "row_factory": dict_row,
                "application_name": name,
                "options": options,
                **KEEPALIVE,
            },
            min_size=0,
            max_size=size,
            max_idle=60,
            timeout=WAIT,
            reconnect_timeout=TRIES,
            configure=_configure,
            open=False,
        )

    async def open(self) -> None:
        """Start the pool; opens no connection yet."""
        await self._pool.open()

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close(timeout=2)

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Transaction]:
        """Open a transaction that commits at the end of the block, or leaves nothing.

        Args:
            snapshot: Read everything as of one instant (REPEATABLE READ).

        Raises:
            CommitConflict: Undone by another transaction; repeat from loaded state.
            CommitUnknown: The connection broke while committing; look, then decide.
            StoreUnavailable: PostgreSQL does not answer; try again later.
        """
        committing = False
        try:
            async with self._pool.connection() as connection:
                transaction = Transaction(connection)
                if snapshot:
                    await transaction.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                yield transaction
                committing = True
        except _CONFLICTS as trouble:
            raise CommitConflict(reason=type(trouble).__name__) from trouble
        except errors.DiskFull as trouble:
            full = "The disk of the database is full."
            raise StoreUnavailable(full, hint=disk.NEXT_STEP, reason="DiskFull") from trouble
        except _OUTAGES as trouble:
            kind = CommitUnknown if committing else StoreUnavailable
            raise kind(hint=AWAY, reason=type(trouble).__name__) from trouble
