"""How the local Ray is started, and how others reach it.

``ray start --head --block`` in a session of its own, everything on 127.0.0.1, token
authentication on. docs/adr/0010-loopback-only.md tells what each option closes and what was
measured. Never ``ray stop``: it ends processes by name, other people's too.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from foundry_ray.cli.ports import choose_free
from foundry_ray.cli.processes import end, members, send, title, wait_gone
from foundry_ray.core.processes import ProcessRecord
from foundry_ray.core.settings import Settings

NAMESPACE = "foundry"
HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 128 * 1024 * 1024  # entities pass ids, so little ever goes there
PRELOADED = "foundry_ray.cluster.loopback,foundry_ray.cluster.leaving"
VITAL = ("gcs_server", "raylet")

# An operator's own settings for another Ray must not reach ours.
_FOREIGN = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_NAMESPACE",
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_TMPDIR",
)


class RayPlan(NamedTuple):
    """One start of the local Ray: a new plan for each, since ports may have been taken.

    Attributes:
        argv: The command.
        environment: The whole environment of the command, and so of every worker.
        client: What a driver or Ray's own CLI needs in its environment to reach it.
        temp_dir: Where Ray keeps sockets and logs.
        ports: What each of its fixed ports is for, by number.
        dashboard: Address of Ray's dashboard.
    """

    argv: list[str]
    environment: dict[str, str]
    client: dict[str, str]
    temp_dir: Path
    ports: dict[int, str]
    dashboard: str

    @property
    def started(self) -> bool:
        """Whether ``ray start`` has written down the address, its last act."""
        return (self.temp_dir / "ray_current_cluster").exists()


def plan(settings: Settings, environment: Mapping[str, str]) -> RayPlan:
    """Choose ports, make the token if there is none, and return how to start Ray.

    Args:
        environment: What Foundry's own processes get; Ray's variables are added.

    Raises:
        Unavailable: No free ports.
    """
    purposes = {
        "port": "Ray GCS",
        "dashboard-port": "Ray dashboard",
        "dashboard-agent-listen-port": "Ray agent (http)",
        "dashboard-agent-grpc-port": "Ray agent (grpc)",
        "runtime-env-agent-port": "Ray runtime environments",
        "metrics-export-port": "Ray metrics",
        "node-manager-port": "Ray node manager",
        "object-manager-port": "Ray object manager",
        "ray-client-server-port": "Ray client server",
    }
    *chosen, dashboard_metrics = choose_free(len(purposes) + 1, HOST)
    ports = dict(zip(purposes, chosen, strict=True))
    dashboard = f"http://{HOST}:{ports['dashboard-port']}"
    temp_dir = _fresh(settings.run_dir / "ray")
    client = {
        "RAY_ADDRESS": f"{HOST}:{ports['port']}",
        "RAY_API_SERVER_ADDRESS": dashboard,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_token(settings.data_dir)),
        # Despite its name: 0 makes Ray speak on 127.0.0.1 only, on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    own = {name: value for name, value in environment.items() if name not in _FOREIGN}
    server = {name: value for name, value in client.items() if name not in _FOREIGN} | {
        "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
        "RAY_preload_python_modules": PRELOADED,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    argv = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--node-ip-address={HOST}",
        *(f"--{option}={port}" for option, port in ports.items()),
        "--min-worker-port=0",  # with 0 the kernel chooses, and two nodes never collide
        "--max-worker-port=0",
        "--include-dashboard=true",
        f"--dashboard-host={HOST}",
        "--include-log-monitor=false",
        "--no-monitor",  # the autoscaler's; there is nothing to scale on one machine
        "--disable-usage-stats",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--num-cpus={os.cpu_count() or 1}",
        f"--temp-dir={temp_dir}",
        "--log-style=record",
        "--log-color=false",
    ]
    named = {port: purposes[option] for option, port in ports.items()}
    named[dashboard_metrics] = "Ray dashboard metrics"
    return RayPlan(argv, own | server, client, temp_dir, named, dashboard)


def missing(leader: ProcessRecord, instance_id: str) -> list[str]:
    """Return which vital processes of a started Ray are gone.

    ``ray start --block`` itself stays when its raylet ends in good order, so it is no witness.
    """
    there = {title(record.pid) for record in members(leader, instance_id)}
    return [name for name in VITAL if name not in there]


def stop(leader: ProcessRecord, instance_id: str) -> list[ProcessRecord]:
    """End this Ray within a few seconds and return what would not end.

    The raylet first: it ends its workers at once. ``ray start`` would drain for 30 s; nothing
    here needs that, because a turn is committed or it never was.
    """
    session = members(leader, instance_id)
    raylets = [record for record in session if title(record.pid) == "raylet"]
    for raylet in raylets:
        send(raylet, signal.SIGTERM)
    wait_gone(raylets, 1.5)
    return end(members(leader, instance_id), grace=0, first=signal.SIGKILL)


def _fresh(path: Path) -> Path:
    """Return an empty place for Ray's files, keeping those of the start before for their logs."""
    before = path.with_name(f"{path.name}-before")
    if path.exists():
        shutil.rmtree(before, ignore_errors=True)
        path.rename(before)
    path.mkdir(mode=0o700)
    return path


def _token(data_dir: Path) -> Path:
    """Return the file with the cluster's token, made once."""
    path = data_dir / "ray.token"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(descriptor, "w") as out:
        out.write(secrets.token_hex(32))
    return path
