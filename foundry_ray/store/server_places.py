"""Where the files of the embedded PostgreSQL are, and who owns them.

In ``<data-dir>/postgres``, owned by Foundry's own user:

- ``lock``: held while one process makes, starts or stops the server
- ``password``: the password of the database user, mode 0600
- ``places.json``: where the server's folder and its socket are, if not below this folder
- ``log``: what the server says

The server's folder (``cluster`` and, where the path is short enough, ``socket``) is owned
by the account that runs the server. It is ``<data-dir>/postgres/server`` unless we are root
and that account cannot get there; then it is a folder below ``/var/lib/foundry-postgres``.
No mode of any folder above is ever changed.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

from foundry_ray.core.ids import new_id
from foundry_ray.store import server_account
from foundry_ray.store.server_account import Account

# Below it, folders of servers whose account cannot reach the data directory.
SPARE_ROOT = Path("/var/lib/foundry-postgres")

# A socket's path ends at 107 bytes; the file in the folder takes "/.s.PGSQL.5432".
LONGEST_SOCKET_FOLDER = 107 - len("/.s.PGSQL.5432")
# The setting is a comma-separated list with quoting rules; such a name needs none of them.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")


class Places(NamedTuple):
    """A server's folders and the account that owns them.

    Attributes:
        account: Who runs the server.
        server: Holds ``cluster``, PostgreSQL's data directory.
        socket: Holds the socket.
    """

    account: Account
    server: Path
    socket: Path

    @property
    def cluster(self) -> Path:
        """PostgreSQL's data directory."""
        return self.server / "cluster"


def locate(home: Path, spare_root: Path) -> Places:
    """Read where the folders are; choose and make them the first time.

    Args:
        home: ``<data-dir>/postgres``.
        spare_root: Where the server's folder goes if its account cannot reach *home*.

    Raises:
        Unavailable: Root, and no account to give the server to.
    """
    file = home / "places.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    server = Path(known["server"]) if "server" in known else home / "server"
    account = server_account.choose_account(server if server.exists() else None)
    if not known and not server_account.reaches(account, home):
        spare_root.mkdir(mode=0o755, parents=True, exist_ok=True)
        server = spare_root / new_id()
    if not server.exists():
        server.mkdir(mode=0o700)
        _give(server, account)
    socket = Path(known["socket"]) if "socket" in known else server / "socket"
    if not socket.exists():
        if _fits(socket):
            socket.mkdir(mode=0o700)
        else:
            socket = Path(tempfile.mkdtemp(prefix="foundry-pg-", dir="/tmp"))
        _give(socket, account)
    # What lies below our own folder is not written down, so that the data can move.
    chosen = {"server": server, "socket": socket}
    elsewhere = {name: str(p) for name, p in chosen.items() if not p.is_relative_to(home)}
    if not file.exists() or elsewhere != known:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(elsewhere))
        part.replace(file)
    return Places(account, server, socket)


def write_private(path: Path, text: str, account: Account | None = None) -> None:
    """Create *path* with mode 0600, owned by *account*, refusing whatever stands there already."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w") as file:
        if account is not None and account.switch:
            os.fchown(file.fileno(), account.uid, account.gid)
        file.write(text)


def _fits(socket: Path) -> bool:
    name = str(socket)
    return len(os.fsencode(name)) <= LONGEST_SOCKET_FOLDER and bool(PLAIN_PATH.fullmatch(name))


def _give(path: Path, account: Account) -> None:
    if account.switch:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
