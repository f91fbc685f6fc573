"""``foundry demo``: the main job end to end, each step seen through another channel."""

from foundry_ray.cli.demo.command import register

__all__ = ["register"]
