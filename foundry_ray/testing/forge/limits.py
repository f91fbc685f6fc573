"""The primary rate limit: so many requests in an hour for each caller."""

from __future__ import annotations

from dataclasses import dataclass

from foundry_ray.testing.forge.auth import AsApp, AsInstallation, AsUser, Principal
from foundry_ray.testing.forge.store import Store

WINDOW = 3600  # seconds
# GitHub gives 5,000 to a person and up to 15,000 to an installation. Tests ask often.
DEFAULT_LIMIT = 15_000


@dataclass
class _Window:
    resets_at: int
    used: int = 0


class RateLimits:
    """Counts requests; the counts are forgotten at a restart, the limit is not."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._windows: dict[str, _Window] = {}

    @property
    def limit(self) -> int:
        """How many requests a caller has in an hour."""
        return int(self.store.setting("rate_limit") or DEFAULT_LIMIT)

    def set_limit(self, limit: int) -> None:
        """Change the limit for everybody and begin to count anew."""
        self.store.set_setting("rate_limit", str(limit))
        self._windows.clear()

    def count(self, principal: Principal | None, cost: int = 1) -> tuple[bool, dict[str, str]]:
        """Count a request and return whether it may pass, with the headers that tell so."""
        now = int(self.store.clock.now().timestamp())
        who = _name(principal)
        window = self._windows.get(who)
        if window is None or window.resets_at <= now:
            window = self._windows[who] = _Window(now + WINDOW)
        limit = self.limit
        passes = window.used + cost <= limit
        if passes:
            window.used += cost
        return passes, {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(max(0, limit - window.used)),
            "X-RateLimit-Reset": str(window.resets_at),
            "X-RateLimit-Used": str(window.used),
            "X-RateLimit-Resource": "core",
        }


def _name(principal: Principal | None) -> str:
    match principal:
        case AsApp(app):
            return f"app/{app.id}"
        case AsInstallation(_, installation):
            return f"installation/{installation.id}"
        case AsUser(_, user):
            return f"user/{user.id}"
        case _:
            return "nobody"
