"""Names of what clients can watch (see docs/reference/api.md)."""

from __future__ import annotations

from foundry_ray.core import keys


def organization(key: str) -> str:
    """Return the topic of the organization that owns *key*."""
    return f"organization:{keys.organization_id(key)}"


def repository(key: str) -> str:
    """Return the topic of the repository at or above *key*."""
    return f"repository:{keys.organization_id(key)}/{keys.repository_id(key)}"


def task(key: str) -> str:
    """Return the topic of the task at or above *key*."""
    parts = key.split("/")
    return f"task:{parts[1]}/{parts[5]}"


def session(key: str) -> str:
    """Return the topic of the session at or above *key*."""
    parts = key.split("/")
    return f"session:{parts[1]}/{parts[5]}/{parts[7]}"
