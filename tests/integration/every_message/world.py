"""Says one message to one entity of a real kernel, and reads what its turn committed.

The database keeps a witness: triggers write each changed row, as it was and as it is, beside
the transaction that changed it. So a case sees exactly what the one commit of a turn wrote,
whatever steps and later turns make of it at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlmodel import SQLModel

from foundry_ray import bootstrap
from foundry_ray.core.errors import Unavailable
from foundry_ray.core.messages import Message
from foundry_ray.core.secrets import Sealer
from foundry_ray.runtime.kernel import Kernel
from foundry_ray.runtime.local import LocalHost
from foundry_ray.runtime.refs import Client
from foundry_ray.runtime.tables import RtEntity, RtMailbox
from foundry_ray.store.engine import Database
from foundry_ray.testing.clock import FakeClock
from tests.helpers import eventually
from tests.integration.every_message.kit import Case, Change, name_of

WITNESS = """
CREATE TABLE witness (
    id bigint GENERATED ALWAYS AS IDENTITY, xid xid8 DEFAULT pg_current_xact_id(),
    name text, old jsonb, new jsonb
);
CREATE FUNCTION bear_witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO witness (name, old, new) VALUES (
        TG_TABLE_NAME,
        CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
        CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END
    );
    RETURN NULL;
END $$;
DO $$ DECLARE found text; BEGIN
    FOR found IN SELECT tablename FROM pg_tables
        WHERE schemaname = 'public' AND tablename NOT IN ('witness', 'alembic_version')
    LOOP
        EXECUTE format('CREATE TRIGGER witnessed AFTER INSERT OR UPDATE OR DELETE ON %I
            FOR EACH ROW EXECUTE FUNCTION bear_witness()', found);
    END LOOP;
END $$;
CREATE PROCEDURE forget_everything() LANGUAGE plpgsql AS $$ DECLARE found text; BEGIN
    FOR found IN SELECT tablename FROM pg_tables
        WHERE schemaname = 'public' AND tablename NOT IN ('witness', 'alembic_version')
    LOOP
        EXECUTE format('DELETE FROM %I', found);
    END LOOP;
    DELETE FROM witness;
END $$;
"""


def bring_witness(url: str) -> None:
    """Let the database write down every change from now on."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(WITNESS)


class Away:
    """An outside that cannot be reached: steps fail, and wait for their next attempt."""

    def __getattr__(self, name: str) -> Any:
        raise Unavailable("Nothing outside can be reached.", wanted=name)


class Alone(LocalHost):
    """Hosts one entity; what it tells others stays in their mailboxes."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def ring(self, key: str) -> None:
        """Wake or start the activation, if it is the one."""
        if key == self._key:
            super().ring(key)


@dataclass
class World:
    """One entity in a kernel on a witnessed database."""

    key: str
    database: Database
    host: Alone
    client: Client

    async def say(self, message: Message, way: str = "tell") -> list[Change]:
        """Say *message*; return what the transaction changed that consumed it."""
        mark = (await self._fetch("SELECT coalesce(max(id), 0) AS id FROM witness"))[0]["id"]
        if way == "hand":
            await self.host.hand(self.key, message)
            turns = (
                "SELECT xid FROM witness WHERE id > %s AND name = 'rt_entity'"
                " AND (new ->> 'revision')::int = (old ->> 'revision')::int + 1"
            )
            [found] = await self._fetch(turns, mark)
            return await self._changes(found["xid"])
        if way == "ask":
            answer = await self.client.ask(self.key, message, scope="case")
            assert answer.answered
        else:
            await self.client.tell(self.key, message)
        return await self._changes(
            await eventually(lambda: self._consumed(message, mark), every=0.005)
        )

    async def _consumed(self, message: Message, mark: int) -> Any:
        for undone in await self._fetch("SELECT error FROM rt_mailbox WHERE run_id IS NULL"):
            if undone["error"]:
                raise ValueError(f"{message.kind} was not done: {undone['error']}")
        rows = await self._fetch(
            "SELECT xid FROM witness WHERE id > %s AND name = 'rt_mailbox' AND new IS NULL"
            " AND old ->> 'target' = %s AND old ->> 'kind' = %s",
            mark,
            self.key,
            message.kind,
        )
        return rows[0]["xid"] if rows else None

    async def _changes(self, xid: Any) -> list[Change]:
        rows = await self._fetch(
            "SELECT name, old, new FROM witness WHERE xid = %s::xid8 ORDER BY id", str(xid)
        )
        return [Change(found["name"], found["old"], found["new"]) for found in rows]

    async def _fetch(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        async with self.database.transaction() as transaction:
            return [dict(found) for found in await transaction.fetch(sql, values)]


@asynccontextmanager
async def world(url: str, key: str, rows: tuple[SQLModel, ...]) -> AsyncIterator[World]:
    """Open the world of one entity with these rows and nothing else."""
    database = Database(url, name="case", size=3)
    await database.open()
    host, clock = Alone(key), FakeClock()
    try:
        async with database.transaction() as transaction:
            await transaction.execute("CALL forget_everything()")
            for given in rows:
                await transaction.put(given)
        host.kernel = Kernel(
            database=database,
            clock=clock,
            sealer=Sealer(b"k" * 32),
            waker=host,
            tools=dict.fromkeys(bootstrap.BY_KIND, Away()),
            actors=bootstrap.BY_KIND,
        )
        yield World(key, database, host, Client(database, host, clock, actors=bootstrap.BY_KIND))
    finally:
        await host.close()
        await database.close()


def consumption(changes: list[Change], case: Case) -> None:
    """Check what every turn commits: the fence, and the end of the message."""
    fence = [change for change in changes if change.table == name_of(RtEntity)]
    assert len(fence) == 1, fence
    assert fence[0].old and fence[0].new
    assert fence[0].new["key"] == case.entity
    assert fence[0].new["revision"] == fence[0].old["revision"] + 1
    consumed = [c for c in changes if c.table == name_of(RtMailbox) and c.new is None and c.old]
    spoken = [c.old for c in consumed if c.old and c.old["kind"] == case.message.kind]
    assert len(spoken) == (0 if case.way == "hand" else 1)
