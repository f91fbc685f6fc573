"""What the store makes of odd text and of a server that ends transactions."""

from __future__ import annotations

import json

import pytest
from psycopg.types.json import Jsonb

from foundry_ray.store.engine import Database, StoreUnavailable, dump_json, storable
from tests.helpers import eventually
from tests.integration.runtime.kit import A, Do, World


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("plain", "plain"),
        ("nul \0.", "nul \ufffd."),
        ("half a pair \ud83d.", "half a pair \ufffd."),
        ("a whole one 😀", "a whole one 😀"),
        (r"only said: \u0000", r"only said: \u0000"),
        ("a backslash before it \\\0", "a backslash before it \\\ufffd"),
    ],
)
async def test_what_cannot_be_stored_is_replaced(toys: World, given: str, kept: str) -> None:
    assert storable(given) == kept
    assert json.loads(dump_json({given: given})) == {kept: kept}
    [row] = await toys.rows("SELECT %s::jsonb AS value", Jsonb([given]))
    assert row["value"] == [kept]


async def test_a_message_with_a_nul_is_done_like_any_other(toys: World) -> None:
    await toys.ask(A, Do(word="an agent printed \0"))

    assert await toys.words(A) == ["an agent printed \ufffd"]


async def test_a_server_that_ends_an_idle_transaction_is_only_away(toys: World) -> None:
    """A stopped holder loses its locks; when it goes on, its turn counts as not done."""

    async def ended() -> bool:
        return not await toys.rows(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
            " AND state LIKE 'idle in transaction%%'"
        )

    with pytest.raises(StoreUnavailable):
        async with toys.database.transaction() as transaction:
            await transaction.execute("SET idle_in_transaction_session_timeout = '50ms'")
            await eventually(ended)
            await transaction.execute("SELECT 1")


async def test_a_server_that_ends_a_long_transaction_is_only_away(database_url: str) -> None:
    database = Database(database_url, size=1)
    await database.open()
    try:
        async with database.transaction() as transaction:
            await transaction.execute("SET transaction_timeout = '50ms'")
        with pytest.raises(StoreUnavailable):
            async with database.transaction() as transaction:
                await transaction.execute("SELECT pg_sleep(5)")
    finally:
        await database.close()
