"""The embedded PostgreSQL with its real programs, as root and as an ordinary user."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from foundry_ray.core.errors import Unavailable
from foundry_ray.core.processes import look_at
from foundry_ray.store import server_account
from foundry_ray.store.embedded import EmbeddedPostgres
from tests.helpers import eventually

FAST = {"fsync": "off"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that root's server account can pass through."""
    made = Path(tempfile.mkdtemp(prefix="foundry-embedded-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedPostgres]:
    made = embedded(folder / "data")
    yield made
    made.destroy()


def embedded(data_dir: Path, **more: object) -> EmbeddedPostgres:
    return EmbeddedPostgres(data_dir, settings=FAST, **more)  # type: ignore[arg-type]


def ask(url: str, question: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(question).fetchone()
    assert row is not None
    return row[0]


def test_start_stop_and_start_keep_the_data(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.start()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    first = server.record
    server.stop()
    assert first is not None
    assert look_at(first.pid) is None
    assert server.record is None

    url = server.start()

    assert ask(url, "SELECT number FROM kept") == 7
    assert server.record is not None
    assert server.record != first


def test_stop_does_nothing_when_nothing_runs(server: EmbeddedPostgres, folder: Path) -> None:
    server.stop()
    assert not (folder / "data").exists()

    server.start()
    server.stop()
    server.stop()

    assert server.pid is None


def test_a_running_server_is_adopted_and_stopped_by_another_process(
    server: EmbeddedPostgres, folder: Path
) -> None:
    url = server.start()
    pid = server.pid
    program = (
        "import sys; from pathlib import Path\n"
        "from foundry_ray.store.embedded import EmbeddedPostgres\n"
        "other = EmbeddedPostgres(Path(sys.argv[1]))\n"
        "print(other.start()); print(other.pid); other.stop()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "data")],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines() == [url, str(pid)]
    assert server.record is None


def test_many_starters_at_once_make_one_server(folder: Path) -> None:
    starters = [embedded(folder / "data") for _ in range(4)]
    urls: list[str] = []
    threads = [threading.Thread(target=lambda s=s: urls.append(s.start())) for s in starters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(urls) == 4
        assert len(set(urls)) == 1
        assert len({starter.pid for starter in starters}) == 1
    finally:
        for starter in starters:
            starter.stop()


def test_a_killed_server_starts_again_with_what_was_committed(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.start()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)

    url = server.start()

    assert ask(url, "SELECT number FROM kept") == 7


def test_a_pid_file_that_names_a_stranger_is_not_believed(
    server: EmbeddedPostgres, folder: Path
) -> None:
    server.start()
    server.stop()
    stale = folder / "data/postgres/server/cluster/postmaster.pid"
    stale.write_text(f"{os.getpid()}\n{stale.parent}\n1000000000\n5432\n/nowhere\n\n\nready\n")

    assert server.record is None
    server.start()

    assert server.pid != os.getpid()


def test_a_killed_server_that_nobody_has_reaped_is_not_believed(server: EmbeddedPostgres) -> None:
    command = server.prepare()
    with command.log.open("ab") as log:
        child = subprocess.Popen(command.argv, stdout=log, stderr=log, **command.popen_options())
    try:
        with psycopg.connect(server.wait_ready()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie

        assert ask(server.start(), "SELECT number FROM kept") == 7
    finally:
        child.wait()


def test_the_supervisor_way_runs_it_in_the_foreground(server: EmbeddedPostgres) -> None:
    command = server.prepare()
    with command.log.open("ab") as log:
        child = subprocess.Popen(command.argv, stdout=log, stderr=log, **command.popen_options())
    try:
        url = server.wait_ready(ended=lambda: child.poll() is not None)
        assert server.record is not None
        assert (server.record.pid, server.record.session) == (child.pid, child.pid)
        assert ask(url, "SELECT current_database()") == "foundry"
        assert url not in " ".join(command.argv)
    finally:
        child.send_signal(signal.SIGINT)
        assert child.wait() == 0


def test_the_server_listens_on_no_network_address_and_wants_a_password(
    server: EmbeddedPostgres,
) -> None:
    url = server.start()
    expected = {
        "listen_addresses": "",
        "max_connections": "300",
        "jit": "off",
        "password_encryption": "scram-sha-256",
        "server_encoding": "UTF8",
        "data_checksums": "on",
    }
    assert {name: ask(url, f"SHOW {name}") for name in expected} == expected
    assert int(str(ask(url, "SHOW server_version_num"))) >= 180000

    before, _, after = url.partition(":")[2].partition("@")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql:{before.rpartition(':')[0]}:wrong@{after}")


def test_secrets_and_socket_are_private(server: EmbeddedPostgres, folder: Path) -> None:
    server.start()
    home = folder / "data/postgres"

    assert (home / "password").stat().st_mode & 0o777 == 0o600
    assert (home / "server").stat().st_mode & 0o777 == 0o700
    assert (home / "server/socket").stat().st_mode & 0o777 == 0o700
    assert not (home / "server/password").exists()
    assert folder.stat().st_mode & 0o777 == 0o711


def test_a_deep_data_directory_gets_a_short_socket(folder: Path) -> None:
    server = embedded(folder / ("d" * 60) / ("e" * 60))
    try:
        assert ask(server.start(), "SELECT 1") == 1
        socket = server.socket
        assert len(str(socket)) < 40
    finally:
        server.destroy()
    assert not socket.exists()


def test_errors_quote_no_values_in_the_log(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.start(), autocommit=True) as connection:
        connection.execute("CREATE TABLE once (token text PRIMARY KEY)")
        for _ in range(2):
            try:
                connection.execute("INSERT INTO once VALUES (%s)", ("hush-hush",))
            except psycopg.errors.UniqueViolation:
                pass

    text = server.log.read_text()
    assert "once_pkey" in text
    assert "hush-hush" not in text


def test_data_of_another_major_version_is_refused(server: EmbeddedPostgres, folder: Path) -> None:
    server.start()
    server.stop()
    (folder / "data/postgres/server/cluster/PG_VERSION").write_text("17\n")

    with pytest.raises(Unavailable, match="written by PostgreSQL 17"):
        server.start()

    (folder / "data/postgres/server/cluster/PG_VERSION").write_text("18\n")


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "data", settings={**FAST, "shared_buffers": "nonsense"})

    with pytest.raises(Unavailable) as caught:
        server.start()

    assert "shared_buffers" in caught.value.context["log_tail"]
    server.destroy()


def test_an_unreachable_data_directory_and_unreachable_programs_still_work(folder: Path) -> None:
    """Under a folder of mode 0700 root's server account sees neither data nor programs.

    An ordinary user owns both, so nothing has to go elsewhere.
    """
    private = folder / "private"
    private.mkdir(mode=0o700)
    packages = private / "packages"
    wheel = server_account.installed_packages()
    for name in (server_account.LIBRARIES, server_account.PACKAGE):
        shutil.copytree(wheel / name, packages / name, symlinks=True)
    spare = folder / "spare"
    server = embedded(private / "data", packages=packages, spare_root=spare)

    assert ask(server.start(), "SELECT 1") == 1
    assert private.stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        assert len(list(spare.iterdir())) == 2, "the data and the programs went to reachable places"
    else:
        assert not spare.exists()
    server.stop()
    assert ask(server.start(), "SELECT 1") == 1
    server.destroy()
    assert {path.name for path in spare.glob("*")} <= {"programs"}


async def test_the_server_never_runs_as_root(server: EmbeddedPostgres) -> None:
    server.start()
    owner = await eventually(lambda: Path(f"/proc/{server.pid}").stat())

    if os.geteuid() == 0:
        assert pwd.getpwuid(owner.st_uid).pw_name in server_account.SYSTEM_ACCOUNTS
    else:
        assert owner.st_uid == os.geteuid()
