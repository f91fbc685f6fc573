"""The files that put agents behind the shim."""

from __future__ import annotations

import pytest

from foundry_ray.core.errors import InvalidInput
from foundry_ray.integrations.sandbox_agent.install import launcher_files

SLOTS = ".local/share/sandbox-agent/bin"


def test_an_own_agent_takes_the_mock_slot_and_needs_no_program() -> None:
    files = launcher_files("/usr/bin/python3", {"scripted": ["/opt/my agent", "--fast"]})
    launcher, mode = files[f"{SLOTS}/agent_processes/mock-acp"]

    assert set(files) == {".foundry/shim.py", f"{SLOTS}/agent_processes/mock-acp"}
    assert mode == 0o755
    assert launcher.decode().splitlines() == [
        "#!/bin/sh",
        'exec /usr/bin/python3 -I -S -B "$HOME/.foundry/shim.py" '
        "--journal \"$HOME/.foundry/journal\" --keep-meta -- '/opt/my agent' --fast",
    ]


def test_a_known_agent_gets_a_program_as_well_and_no_foundry_marks() -> None:
    files = launcher_files("python3", {"claude": ["claude-agent-acp"]})
    launcher = files[f"{SLOTS}/agent_processes/claude-acp"][0].decode()

    assert "--keep-meta" not in launcher
    assert "export IS_SANDBOX=1\n" in launcher
    assert files[f"{SLOTS}/claude"] == (b'#!/bin/sh\nexec claude-agent-acp "$@"\n', 0o755)


def test_an_agent_without_a_slot_is_refused() -> None:
    with pytest.raises(InvalidInput):
        launcher_files("python3", {"nobody": ["agent"]})
