"""Settings: order of sources, files of secrets, the data directory's own files."""

import os
import stat
import threading
from pathlib import Path

import pytest

from foundry_ray.core import settings as settings_module
from foundry_ray.core.errors import InvalidInput, PermissionDenied
from foundry_ray.core.settings import explain, load


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(home: Path) -> None:
    load(home, {})
    (home / "foundry.toml").write_text('port = 7001\nidle_after = 0.5\nhost = "127.0.0.2"\n')
    found = load(home, {"FOUNDRY_PORT": "7002"})
    assert (found.port, found.idle_after, found.host) == (7002, 0.5, "127.0.0.2")
    assert found.mailbox_limit == 1000
    assert found.public_url == "http://127.0.0.2:7002"


def test_every_setting_says_where_it_came_from(home: Path) -> None:
    load(home, {})
    (home / "foundry.toml").write_text("idle_after = 2\n")
    said = {one.name: one for one in explain(home, {"FOUNDRY_PORT": "7002"})}
    assert said["FOUNDRY_PORT"].source == "environment FOUNDRY_PORT"
    assert said["FOUNDRY_IDLE_AFTER"].source == f"file {home / 'foundry.toml'}"
    assert said["FOUNDRY_HOST"].source == "default"
    assert all(one.meaning for one in said.values())


def test_a_secret_may_be_named_by_a_file_and_is_never_shown(home: Path, tmp_path: Path) -> None:
    (tmp_path / "hook").write_text("very-secret-hook\n")
    environment = {"FOUNDRY_GITHUB_WEBHOOK_SECRET_FILE": str(tmp_path / "hook")}
    found = load(home, environment)
    assert found.github_webhook_secret is not None
    assert found.github_webhook_secret.get_secret_value() == "very-secret-hook"
    assert "very-secret-hook" not in repr(found) + repr(explain(home, environment))


def test_paths_in_the_settings_file_are_beside_it(home: Path) -> None:
    load(home, {})
    (home / "foundry.toml").write_text('github_app_id = 12\ngithub_app_key_file = "app.pem"\n')
    found = load(home, {})
    assert found.github_app_key_file == home / "app.pem"
    assert found.github_app_id == "12"


def test_an_own_github_has_its_api_below_it(home: Path) -> None:
    found = load(home, {"FOUNDRY_GITHUB_URL": "http://127.0.0.1:9/"})
    assert found.github_url == "http://127.0.0.1:9"
    assert found.github_api_url == "http://127.0.0.1:9/api/v3"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FOUNDRY_PORT": "many"}, "FOUNDRY_PORT"),
        ({"FOUNDRY_SECRET_KEY": "short"}, "FOUNDRY_SECRET_KEY"),
        ({"FOUNDRY_GITHUB_URL": "github.com"}, "FOUNDRY_GITHUB_URL"),
        ({"FOUNDRY_SANDBOX_PROVIDER": "moon"}, "FOUNDRY_SANDBOX_PROVIDER"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_without_showing_it(
    home: Path, environment: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(home, environment)
    assert said in caught.value.message
    assert environment[said] not in caught.value.message + caught.value.hint


def test_an_unknown_name_in_the_settings_file_is_an_error(home: Path) -> None:
    load(home, {})
    (home / "foundry.toml").write_text("prot = 1\n")
    with pytest.raises(InvalidInput, match="prot"):
        load(home, {})


def test_the_data_directory_and_its_secret_are_private_and_made_once(home: Path) -> None:
    first, second = load(home, {}), load(home, {})
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "secret.key").stat().st_mode) == 0o600
    assert first == second


def test_makers_at_the_same_time_agree_on_one_instance(home: Path) -> None:
    home.mkdir()
    barrier, found = threading.Barrier(8), []

    def make() -> None:
        barrier.wait()
        made = load(home, {})
        found.append((made.instance_id, made.secret_key.get_secret_value()))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert not list(home.glob(".*"))


def test_the_run_directory_is_short_and_private(home: Path) -> None:
    path = load(home, {}).run_dir
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        socket = (
            path / "ray" / "session_2026-01-01_00-00-00_000000_4194304" / "sockets/plasma_store"
        )
        assert len(os.fsencode(socket)) <= 107
    finally:
        path.rmdir()


def test_a_run_directory_that_others_can_enter_is_refused(home: Path) -> None:
    found = load(home, {})
    path = found.run_dir
    try:
        path.chmod(0o755)
        with pytest.raises(PermissionDenied):
            _ = found.run_dir
    finally:
        path.rmdir()


def test_the_default_data_directory_is_the_users_own(tmp_path: Path) -> None:
    found = settings_module.default_data_dir({"HOME": str(tmp_path)})
    expected = Path("/var/lib/foundry") if os.geteuid() == 0 else tmp_path / ".local/share/foundry"
    assert found == expected
