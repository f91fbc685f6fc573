"""The agents that Foundry can run."""

from __future__ import annotations

from foundry_ray.core.errors import InvalidInput

AGENTS = ("scripted", "claude", "codex", "opencode")


def check_agent(name: str) -> None:
    """Return if there is an agent of this name.

    Raises:
        InvalidInput: There is none; context ``agents`` lists those that there are.
    """
    if name not in AGENTS:
        raise InvalidInput(f"No agent is called {name!r}.", agents=list(AGENTS))
