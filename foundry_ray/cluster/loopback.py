"""Keeps Serve's own gRPC servers on the loopback address (local mode only).

Each Serve replica opens a gRPC server on all interfaces that unpickles what it gets; no option
of Ray 2.60 changes the address. The node supervisor names this module in
``RAY_preload_python_modules``, so every worker imports it before it knows what it will be, and
before ``ray.serve`` takes its own reference to the function replaced here. Importing it anywhere
else has no purpose. ``docs/adr/0010-loopback-only.md`` tells the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray._common import tls_utils

_bind: Callable[[Any, str], int] = tls_utils.add_port_to_grpc_server


def _bind_loopback(server: Any, address: str) -> int:
    host, _, port = address.rpartition(":")
    if host == "[::]":
        address = f"127.0.0.1:{port}"
    return int(_bind(server, address))


tls_utils.add_port_to_grpc_server = _bind_loopback
