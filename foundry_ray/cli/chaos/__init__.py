"""``foundry chaos``: kills by plan while a load runs, and checks that nothing was lost."""

from foundry_ray.cli.chaos.command import register

__all__ = ["register"]
