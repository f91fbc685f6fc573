"""The providers that this instance offers, by name."""

from __future__ import annotations

from collections.abc import Iterable

from foundry_ray.core.errors import InvalidInput
from foundry_ray.providers.base import SandboxProvider


class ProviderRegistry:
    """Finds a provider by its name; the first one given is the default."""

    def __init__(self, providers: Iterable[SandboxProvider]) -> None:
        self._by_name = {provider.name: provider for provider in providers}
        if not self._by_name:
            raise ValueError("an instance needs at least one sandbox provider")

    @property
    def default(self) -> str:
        """The name of the provider that is taken when nobody chose one."""
        return next(iter(self._by_name))

    @property
    def names(self) -> list[str]:
        """The names on offer, the default first."""
        return list(self._by_name)

    def get(self, name: str) -> SandboxProvider:
        """Return the provider called *name*.

        Raises:
            InvalidInput: This instance has none of that name.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise InvalidInput(
                f"There is no sandbox provider {name!r}.", hint=f"Choose of {self.names}."
            ) from None
