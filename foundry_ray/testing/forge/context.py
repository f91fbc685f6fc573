"""What every part of the forge works with."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from foundry_ray.testing.forge.auth import Gate
from foundry_ray.testing.forge.directory import Directory
from foundry_ray.testing.forge.git import Git
from foundry_ray.testing.forge.limits import RateLimits
from foundry_ray.testing.forge.records import Repository
from foundry_ray.testing.forge.shapes import Addresses
from foundry_ray.testing.forge.store import Store
from foundry_ray.testing.forge.webhooks import Webhooks


@dataclass(frozen=True)
class Size:
    """How large a pull request is."""

    commits: int
    additions: int
    deletions: int
    changed_files: int


@dataclass
class Forge:
    """One running forge.

    Args:
        root: The forge's own directory.
        at: Its addresses.
        admin_secret: Opens the test-only part below ``/-/``.
    """

    root: Path
    at: Addresses
    store: Store
    admin_secret: str
    directory: Directory = field(init=False)
    gate: Gate = field(init=False)
    webhooks: Webhooks = field(init=False)
    limits: RateLimits = field(init=False)
    # What git said about two commits never changes: by base and head sha.
    mergeable: dict[tuple[str, str], bool] = field(default_factory=dict)
    sizes: dict[tuple[str, str], Size] = field(default_factory=dict)
    _locks: defaultdict[int, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )

    def __post_init__(self) -> None:
        self.directory = Directory(self.store)
        self.gate = Gate(self.directory)
        self.webhooks = Webhooks(self.store, self.directory, self.at)
        self.limits = RateLimits(self.store)

    @property
    def repositories(self) -> Path:
        """The directory of all bare repositories."""
        return self.root / "repositories"

    @property
    def workroom(self) -> Path:
        """Where temporary work trees live; emptied at start."""
        return self.root / "tmp"

    def git(self, repository: Repository) -> Git:
        """Return the git repository behind *repository*."""
        return Git(self.repositories / repository.git_dir)

    def lock(self, repository: Repository) -> asyncio.Lock:
        """Return the lock under which refs of *repository* change."""
        return self._locks[repository.id]
