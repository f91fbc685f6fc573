"""One Ray for the tests of the cluster, on loopback, with a token, in a short folder."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg import sql

from foundry_ray.cli.ray_node import PRELOADED
from foundry_ray.core import settings
from foundry_ray.core.ids import new_id
from foundry_ray.store.embedded import EmbeddedPostgres
from tests.conftest import TEMPLATE

# Ray reads its environment once, when it is imported: so this stands before any test imports it.
_TOKEN = Path(tempfile.mkdtemp(prefix="fry-", dir="/tmp")) / "token"
atexit.register(shutil.rmtree, _TOKEN.parent, ignore_errors=True)
_TOKEN.write_text(secrets.token_hex(32))
_TOKEN.chmod(0o600)
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": str(_TOKEN),
    "RAY_preload_python_modules": PRELOADED,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 only, whatever its name says
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Cluster(NamedTuple):
    """A running Ray whose workers find a database of their own."""

    database_url: str


@pytest.fixture(scope="module")
def cluster(postgres: EmbeddedPostgres) -> Iterator[Cluster]:
    """Ray without dashboard; entities are passivated after a few thousandths of the usual time."""
    import ray

    name = f"cluster_{new_id()}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(TEMPLATE)
            )
        )
    url = postgres.url(name)
    folder = _TOKEN.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOUNDRY_DATA_DIR", str(folder / "data"))
        patch.setenv("FOUNDRY_DATABASE_URL", url)
        patch.setenv("FOUNDRY_IDLE_AFTER", os.environ.get("FOUNDRY_IDLE_AFTER", "0.004"))
        ray.init(
            namespace="foundry",
            include_dashboard=False,
            log_to_driver=False,
            num_cpus=2,
            object_store_memory=80 * 1024 * 1024,
            _temp_dir=str(folder / "ray"),
            _node_ip_address="127.0.0.1",
        )
    try:
        yield Cluster(url)
    finally:
        ray.shutdown()
        run_dir = settings.load(folder / "data", {}).run_dir
        shutil.rmtree(run_dir)
