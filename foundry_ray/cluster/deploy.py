"""Puts Foundry's Serve applications on a running Ray: ``python -m foundry_ray.cluster.deploy``.

The node supervisor runs it after each start of Ray. What it starts stays when it ends; run again,
it brings the applications to the present code.
"""

from __future__ import annotations

import asyncio
import importlib
import sys

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from foundry_ray import bootstrap
from foundry_ray.actors.github_state.messages import RecoverDeliveries
from foundry_ray.cluster.directory import NAMESPACE
from foundry_ray.core import keys, logging, settings
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.settings import Settings
from foundry_ray.runtime import mailbox
from foundry_ray.store.engine import Database

log = logging.get_logger("cluster")

# Name, route prefix and import path, as in deployments/serve.yaml. By path, because the
# applications stand a floor above.
APPLICATIONS = (
    ("api", "/", "foundry_ray.serve.deployment:api"),
    ("streams", "/api/stream", "foundry_ray.serve.deployment:streams"),
    ("webhooks", "/webhooks", "foundry_ray.serve.deployment:webhooks"),
)


def deploy(loaded: Settings) -> None:
    """Start Serve and the three applications; return when they run."""
    serve.start(
        proxy_location="EveryNode",
        http_options=HTTPOptions(host=loaded.host, port=loaded.port),
    )
    targets = []
    for name, prefix, path in APPLICATIONS:
        module, _, attribute = path.partition(":")
        target = getattr(importlib.import_module(module), attribute)
        targets.append(serve.RunTarget(target=target, name=name, route_prefix=prefix))
    serve.run_many(targets, blocking=False)


async def recover_deliveries(loaded: Settings) -> None:
    """Let GitHub be asked for what it could not deliver while Foundry was away.

    The message waits in the mailbox; ``app``, which the replicas start, sees it.
    """
    database = Database(bootstrap.database_url(loaded), name="deploy", size=1)
    await database.open()
    try:
        async with database.transaction() as transaction:
            await mailbox.put(
                transaction,
                keys.APP_GITHUB,
                RecoverDeliveries(),
                sender="deploy",
                now=SystemClock().now(),
                timer="recover_deliveries",  # one at a time, however often we start
            )
    finally:
        await database.close()


def main() -> int:
    """Deploy, and return the exit code: 0 when everything runs."""
    logging.configure()
    try:
        loaded = settings.load()
        if loaded.github_configured:
            asyncio.run(recover_deliveries(loaded))
        ray.init(namespace=NAMESPACE, log_to_driver=False)
        deploy(loaded)
    except FoundryError as error:
        log.error("deploy_failed", code=error.code, message=error.message, hint=error.hint)  # noqa: TRY400
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
