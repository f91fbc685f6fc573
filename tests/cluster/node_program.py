"""A node supervisor whose Serve application is the small one below; run as a program.

Arguments: the data directory. Everything but the deployed application is the real thing.
"""

import os
import sys
from pathlib import Path


def deploy() -> None:
    import ray
    from fastapi import FastAPI
    from ray import serve
    from ray.serve.config import HTTPOptions

    ray.init(namespace="foundry", log_to_driver=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(os.environ["FOUNDRY_PORT"])))
    web = FastAPI()

    @web.get("/readyz")
    @web.get("/healthz")
    @web.get("/pid")
    def pid() -> dict[str, int]:
        return {"pid": os.getpid()}

    @serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0})
    @serve.ingress(web)
    class Small:
        pass

    serve.run(Small.bind(), name="small", route_prefix="/")


def main() -> None:
    if sys.argv[1] == "deploy":
        deploy()
        return
    from foundry_ray.cli.node import Node
    from foundry_ray.cli.places import Places, node_lock
    from foundry_ray.core import settings as settings_module

    settings = settings_module.load(Path(sys.argv[1]))
    with node_lock(Places(settings.data_dir)) as ours:
        assert ours
        Node(
            settings,
            dict(os.environ),
            lambda line: print(line, flush=True),
            deploy=(str(Path(__file__).resolve()), "deploy"),
        ).run(lambda _: print("READY", flush=True))


if __name__ == "__main__":
    main()
