"""A full disk: how it is recognised, and what to say about it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

# Below this much, PostgreSQL may not be able to begin its next log file soon.
LOW_MIB = 64
NEXT_STEP = "Free some disk space; what waits goes on by itself."


def is_full(trouble: BaseException) -> bool:
    """Tell whether the operating system refused to write because no room is left."""
    return isinstance(trouble, OSError) and trouble.errno in (errno.ENOSPC, errno.EDQUOT)


def free_mib(path: Path) -> int:
    """Return the free space of the file system that *path* is on, in MiB."""
    return shutil.disk_usage(path).free // 2**20
