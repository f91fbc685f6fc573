"""What the routes of a process work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from foundry_ray.bootstrap import Adapters
from foundry_ray.core.clock import Clock
from foundry_ray.core.settings import Settings
from foundry_ray.runtime.refs import Client
from foundry_ray.store.engine import Database

Check = Callable[[], Awaitable[str]]


@dataclass
class Services:
    """Everything that routes need; made and closed by whoever hosts them.

    Attributes:
        checks: Further checks of readiness by name; each says ``ok`` or what is wrong.
        migrated: The schema was seen to be this release's; it never goes back.
    """

    settings: Settings
    database: Database
    client: Client
    outside: Adapters
    clock: Clock
    checks: dict[str, Check] = field(default_factory=dict)
    migrated: bool = False

    def install_url(self, organization_id: str) -> str:
        """Return where the App is installed on an account; empty without an App."""
        github = self.outside.github
        return github.install_url(int(organization_id)) if github is not None else ""


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the application that serves a request."""
    services = connection.app.state.services
    assert isinstance(services, Services)
    return services
