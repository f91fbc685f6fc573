"""Ends actors through Ray, as an operator would: ``python -m tests.durability.ray_hand``.

Reads lines of JSON ``{"verb": "kill" | "drain", "key": ...}``, answers each with a line.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import ray

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds


class RayHand:
    """The caller's side: a driver of its own on a Ray, which ends actors by name."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.durability.ray_hand"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._hear() == "ready"

    def order(self, verb: str, key: str) -> None:
        """Have an actor killed or drained."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"verb": verb, "key": key}).encode() + b"\n")
        self._process.stdin.flush()
        assert self._hear() == "done"

    def _hear(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        assert ready, "the driver does not answer"
        return self._process.stdout.readline().decode().strip()

    def close(self) -> None:
        """Let it end."""
        self._process.communicate(timeout=PATIENCE)


def main() -> None:
    """Obey until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray also prints
    ray.init(namespace="foundry", log_to_driver=False)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        actor = ray.get_actor(order["key"], namespace="foundry")
        match order["verb"]:
            case "kill":
                ray.kill(actor)
            case "drain":
                actor.drain.remote()  # it leaves, perhaps without an answer
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
