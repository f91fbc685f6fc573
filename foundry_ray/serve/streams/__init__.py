"""Live updates by server-sent events: a snapshot per topic, then every change, none twice."""

from foundry_ray.serve.streams.hub import Hub
from foundry_ray.serve.streams.route import router

__all__ = ["Hub", "router"]
