"""How much room is left where Foundry writes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from foundry_ray.core import disk
from foundry_ray.core.settings import Settings
from foundry_ray.store.embedded import EmbeddedPostgres


class Disk(BaseModel):
    """A file system that Foundry writes to.

    Attributes:
        path: What of ours lies there.
        hint: What to do, if little is left.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    free_mib: int
    hint: str = ""


def look(settings: Settings) -> list[Disk]:
    """Return the disks of the data directory and, if it is another one, of the database."""
    paths = [settings.data_dir]
    if settings.database_url is None:
        cluster = EmbeddedPostgres(settings.data_dir).cluster
        if cluster is not None and cluster.exists():
            paths.append(cluster)
    found: dict[int, Disk] = {}
    for path in paths:
        free = disk.free_mib(path)
        hint = disk.NEXT_STEP if free < disk.LOW_MIB else ""
        found.setdefault(path.stat().st_dev, Disk(path=path, free_mib=free, hint=hint))
    return list(found.values())
