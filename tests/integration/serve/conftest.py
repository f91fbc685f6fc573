"""One Foundry for all tests of this folder: each makes tasks of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio
import structlog
from psycopg import sql

from foundry_ray.cli.ports import choose_free
from foundry_ray.core.ids import new_id
from foundry_ray.store.embedded import EmbeddedPostgres
from foundry_ray.testing.forge.process import start_forge
from tests.conftest import TEMPLATE
from tests.helpers import eventually
from tests.integration.serve.world import Acme, Person, World


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def world(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """Foundry and forge, which know each other; ada is signed in and acme is synced."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ],
    )
    name = f"test_{new_id()}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
    [port] = choose_free(1)
    forge = await start_forge(
        tmp_path_factory.mktemp("serve"), webhook_url=f"http://127.0.0.1:{port}/webhooks/github"
    )
    found = await World.start(forge, port, postgres.url(name))
    yield found
    await found.close()
    await forge.stop()
    structlog.configure(**before)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def ada(world: World) -> Person:
    """An owner of acme."""
    return await world.person("ada")


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def ben(world: World) -> Person:
    """A member of acme."""
    return await world.person("ben")


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def eve(world: World) -> Person:
    """Somebody who has nothing to do with acme."""
    return await world.person("eve")


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def acme(world: World, ada: Person) -> Acme:
    """The organization, once it is synced."""
    app = await ada.get("/api/app")
    [organization] = [one for one in app["organizations"] if one["login"] == "acme"]

    async def synced() -> Any:
        seen = await ada.get(f"/api/organizations/{organization['id']}")
        return seen["github"]["sync_status"] == "synced" and seen["repositories"]

    [repository] = await eventually(synced, timeout=20)
    return Acme(world, ada, organization["id"], repository["id"])
