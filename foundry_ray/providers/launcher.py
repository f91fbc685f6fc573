"""Starts a program that outlives whoever asked for it.

Ray kills the children of a worker when its actor ends, own session or not; a process that
was forked twice is nobody's child and lives on. Run as a short-lived script
(``python -I -S -B launcher.py``) that reads its order from standard input, so that nothing
secret stands in its own command line, and prints what it started.

Order: ``{"argv": [...], "environment": {...}, "cwd": ..., "log": path}``.
Answer: ``{"pid": ..., "start": ticks}`` or ``{"error": {"errno": ..., "message": ...}}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def start_ticks(pid: int) -> int | None:
    """Return when *pid* started, in clock ticks since boot; None if it is dead or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def launch(order: dict[str, Any]) -> dict[str, Any]:
    """Start the ordered program in a session of its own and return the answer."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us may ignore it
    pid_out, pid_in = os.pipe()
    failure_out, failure_in = os.pipe()  # closed by a successful exec: no failure to read
    child = os.fork()
    if child == 0:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            try:
                _become(order)
            except BaseException as error:
                number = error.errno if isinstance(error, OSError) else None
                words = json.dumps({"errno": number, "message": str(error)})
                os.write(failure_in, words.encode())
            os._exit(127)
        os.write(pid_in, str(grandchild).encode())
        os._exit(0)
    os.close(pid_in)
    os.close(failure_in)
    os.waitpid(child, 0)
    pid = int(os.read(pid_out, 32))
    failure = os.read(failure_out, 65536)
    if failure:
        return {"error": json.loads(failure)}
    return {"pid": pid, "start": start_ticks(pid)}


def _become(order: dict[str, Any]) -> None:
    _reset("/proc/self/oom_score_adj", b"0")
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except PermissionError:
        pass  # only root may take back niceness; the program then runs as nice as we are
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python does, programs do not expect it
        signal.signal(ignored, signal.SIG_DFL)
    os.chdir(order["cwd"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.execve(order["argv"][0], order["argv"], order["environment"])  # noqa: S606


def _reset(path: str, value: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(value)
    except PermissionError:
        pass  # without the right to lower it, the program is as killable as we are


if __name__ == "__main__":
    sys.stdout.write(json.dumps(launch(json.loads(sys.stdin.buffer.read()))))
