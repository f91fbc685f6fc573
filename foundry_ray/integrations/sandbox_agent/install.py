"""What a sandbox's home needs, so that every agent runs behind the shim."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from foundry_ray.core.errors import InvalidInput, SetupFailed
from foundry_ray.integrations.sandbox_agent import shim
from foundry_ray.integrations.sandbox_agent.base import AGENT_SLOTS, SandboxAgent

SHIM = ".foundry/shim.py"
JOURNALS = ".foundry/journal"

_SLOTS = ".local/share/sandbox-agent/bin"
_PROGRAM, _PRIVATE = 0o755, 0o644
# Agents that take Foundry's message id, as no agent but our own does anything with it.
_KEEP_META = {"scripted"}
# As root, Claude Code works only where it is told that it is in a sandbox, in just this way.
_EXPORTS = {"claude": "export IS_SANDBOX=1\n"}


def launcher_files(
    python: str, agents: Mapping[str, Sequence[str]]
) -> dict[str, tuple[bytes, int]]:
    """Return the files that put *agents* behind the shim: content and mode by path in the home.

    Args:
        python: A Python 3.9 or newer inside the sandbox.
        agents: Argument vector by agent name (a key of ``AGENT_SLOTS``): a program that
            speaks ACP on its standard input and output.

    Raises:
        InvalidInput: There is no slot for one of the names.
    """
    files = {SHIM: (Path(shim.__file__).read_bytes(), _PRIVATE)}
    for agent, argv in agents.items():
        if agent not in AGENT_SLOTS:
            raise InvalidInput(f"There is no agent {agent!r}.", hint=f"One of {[*AGENT_SLOTS]}.")
        slot, command = AGENT_SLOTS[agent], shlex.join(argv)
        keep = " --keep-meta" if agent in _KEEP_META else ""
        launcher = (
            f"#!/bin/sh\n{_EXPORTS.get(agent, '')}"
            f'exec {shlex.quote(python)} -I -S -B "$HOME/{SHIM}" '
            f'--journal "$HOME/{JOURNALS}"{keep} -- {command}\n'
        )
        files[f"{_SLOTS}/agent_processes/{slot}-acp"] = (launcher.encode(), _PROGRAM)
        if slot != "mock":
            # sandbox-agent looks for the agent's own program before it uses the launcher.
            program = f'#!/bin/sh\nexec {command} "$@"\n'
            files[f"{_SLOTS}/{slot}"] = (program.encode(), _PROGRAM)
    return files


async def install(sandbox: SandboxAgent, home: str, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Put *files* into the home of a sandbox that is reached through its sandbox-agent only.

    Raises:
        SetupFailed: They could not be made executable.
    """
    by_mode: dict[int, list[str]] = {}
    for path, (content, mode) in files.items():
        await sandbox.write_file(f"{home}/{path}", content)
        by_mode.setdefault(mode, []).append(f"{home}/{path}")
    for mode, paths in by_mode.items():
        told = await sandbox.run(["chmod", f"{mode:o}", *paths], cwd=home)
        if told.exit_code != 0:
            raise SetupFailed("Foundry's files could not be installed.", stderr=told.stderr)
