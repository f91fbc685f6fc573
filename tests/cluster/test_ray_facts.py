"""What the design takes for granted about Ray, and no document promises."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster

RELEASE = """
import os

RELEASE = {}

class Released:
    def __init__(self, born):
        self.born = born

    def tell(self):
        return RELEASE, self.born, os.getpid()
"""


def test_a_restarted_actor_runs_the_code_that_is_there_then_with_its_old_arguments(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    module = tmp_path / "foundry_release_fact.py"
    module.write_text(RELEASE.format(1))
    monkeypatch.syspath_prepend(tmp_path)
    from foundry_release_fact import Released  # type: ignore[import-not-found]

    actor = (
        ray.remote(Released)
        .options(max_restarts=1, max_task_retries=-1, num_cpus=0,
                 runtime_env={"env_vars": {"PYTHONPATH": str(tmp_path)}})
        .remote("first")
    )  # fmt: skip
    release, born, pid = ray.get(actor.tell.remote(), timeout=60)
    assert (release, born) == (1, "first")

    module.write_text(RELEASE.format(22))
    os.kill(pid, signal.SIGKILL)

    release, born, again = ray.get(actor.tell.remote(), timeout=60)
    assert (release, born) == (22, "first")
    assert again != pid
