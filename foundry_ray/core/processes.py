"""Which process is which: a number alone is not a name, since numbers come back."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple


class ProcessRecord(NamedTuple):
    """A running process: enough to recognise it later and never to take another for it.

    Attributes:
        pid: Process id.
        start_ticks: The kernel's start time of the process, in clock ticks since boot.
        started_at: The same as an instant.
        session: Session id of the process.
    """

    pid: int
    start_ticks: int
    started_at: datetime
    session: int


def look_at(pid: int) -> ProcessRecord | None:
    """Return what the kernel says of process *pid*; None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may contain anything, also spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    ticks = int(fields[19])
    boot = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    assert boot is not None, "the kernel always says when it booted"
    since_boot = timedelta(seconds=ticks / os.sysconf("SC_CLK_TCK"))
    started_at = datetime.fromtimestamp(int(boot.group(1)), UTC) + since_boot
    return ProcessRecord(pid, ticks, started_at, session=int(fields[3]))


def is_still(record: ProcessRecord) -> bool:
    """Tell whether the process that *record* describes still runs."""
    now = look_at(record.pid)
    return now is not None and now.start_ticks == record.start_ticks
