"""Webhooks: verified, made durable, and nothing else (no actor is on this path)."""

from foundry_ray.serve.webhooks.github import router

__all__ = ["router"]
