"""`foundry chaos`, short: real kills in a real instance, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from foundry_ray.cli.instance import Instance, free_port
from tests.durability.bench import CHECKOUT, seed
from tests.durability.conftest import Evidence

MINUTES = 1.5


async def test_a_short_run_kills_and_loses_nothing(evidence: Evidence) -> None:
    folder = Path(tempfile.mkdtemp(prefix="foundry-chaos-"))
    folder.chmod(0o711)  # PostgreSQL of a root user runs as another one
    data_dir = folder / "data"
    words = ["--minutes", str(MINUTES), "--seed", str(seed()), "--data-dir", str(data_dir)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "foundry_ray.cli", "chaos", *words, "--json",
        cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        said, complaints = await process.communicate()
        assert said, complaints.decode()
        report = json.loads(said)
    finally:
        Instance(data_dir, free_port()).remove()
        folder.rmdir()

    for kill in report["kills"]:
        evidence.add(**kill)
    for finding in report["findings"]:
        evidence.add(**finding)
    broken = [one for finding in report["findings"] for one in finding["broken"]]
    assert (process.returncode, broken) == (0, []), complaints.decode()
    roles = Counter(kill["role"] for kill in report["kills"])
    assert len(report["kills"]) >= 4
    assert len(roles) >= 3
    # Each finding has looked at something: an empty check proves nothing.
    assert all(finding["looked_at"] for finding in report["findings"])
    assert next(f for f in report["findings"] if "witness" in f["name"])["looked_at"]["prompts"] > 8
