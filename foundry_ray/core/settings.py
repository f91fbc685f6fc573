"""What an operator may set, where each value came from, and the data directory.

Order: environment (``FOUNDRY_*``), ``<data-dir>/foundry.toml``, default. A secret may also be
given as a file: ``FOUNDRY_SECRET_KEY_FILE`` or ``secret_key_file``. Every process of Foundry
reads its settings here, so the node supervisor passes on only ``FOUNDRY_DATA_DIR`` and what was
said on its command line.
"""

from __future__ import annotations

import base64
import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from foundry_ray.core.errors import InvalidInput, PermissionDenied
from foundry_ray.core.ids import new_id

PREFIX = "FOUNDRY_"
DEFAULT_PORT = 7741
_MADE_HERE = frozenset({"data_dir", "instance_id"})  # never read from foundry.toml


class Settings(BaseModel):
    """All settings of one installation; made by `load`, never by hand outside tests.

    Secrets are `SecretStr`: they print as stars, and a reader must ask for the value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Field(description="where Foundry keeps everything it must not lose")
    instance_id: str = Field(description="names this installation; made once per data directory")
    secret_key: SecretStr = Field(
        description="encrypts stored tokens; else made once in <data-dir>/secret.key"
    )
    database_url: SecretStr | None = Field(
        default=None, description="external PostgreSQL instead of the embedded one"
    )
    host: str = Field(default="127.0.0.1", description="address on which the edge listens")
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535, description="port of the edge")
    public_url: str = Field(default="", description="how people reach the edge")
    ingress: Literal["proxy"] = Field(
        default="proxy", description="Ray Serve's HTTP front: its Python proxy"
    )
    max_activations: int = Field(default=200, ge=1, description="live activations per node")
    mailbox_limit: int = Field(
        default=1000, ge=1, description="pending messages per entity; ten times that per org"
    )
    idle_after: float = Field(
        default=1.0, gt=0, description="factor on the idle times after which an entity passivates"
    )
    github_url: str = Field(
        default="https://github.com", description="base of GitHub's pages, OAuth and git"
    )
    github_api_url: str = Field(default="", description="base of GitHub's REST API")
    github_app_id: str | None = Field(default=None, description="id of the GitHub App")
    github_app_slug: str = Field(default="", description="name of the GitHub App in its URLs")
    github_app_key_file: Path | None = Field(
        default=None, description="the GitHub App's private key, a PEM file"
    )
    github_client_id: str | None = Field(default=None, description="the App's OAuth client id")
    github_client_secret: SecretStr | None = Field(
        default=None, description="the App's OAuth client secret"
    )
    github_webhook_secret: SecretStr | None = Field(
        default=None, description="signs the webhooks that GitHub sends"
    )
    sandbox_provider: Literal["local"] = Field(
        default="local", description="where sandboxes run: processes on this machine"
    )
    sandbox_agent_bin: Path | None = Field(
        default=None, description="the sandbox-agent program; else the tools folder, else PATH"
    )
    failpoints_dir: Path | None = Field(
        default=None, description="folder in which `foundry chaos` says where to stop processes"
    )

    @field_validator("public_url", "github_url", "github_api_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @field_validator("github_app_id", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("secret_key")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < 32:
            raise ValueError("must be at least 32 characters long")
        return value

    @model_validator(mode="before")
    @classmethod
    def _derived(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        github = str(values.get("github_url") or "https://github.com").rstrip("/")
        if not values.get("github_api_url"):
            own = github != "https://github.com"
            values["github_api_url"] = f"{github}/api/v3" if own else "https://api.github.com"
        if not values.get("public_url"):
            host = str(values.get("host") or "127.0.0.1")
            host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared only
            if ":" in host and not host.startswith("["):
                host = f"[{host}]"
            values["public_url"] = f"http://{host}:{values.get('port') or DEFAULT_PORT}"
        return values

    @property
    def github_configured(self) -> bool:
        """Whether every value of the GitHub App is there."""
        return None not in (
            self.github_app_id,
            self.github_app_key_file,
            self.github_client_id,
            self.github_client_secret,
            self.github_webhook_secret,
        )

    @property
    def run_dir(self) -> Path:
        """A short private directory for sockets and Ray's temporary files, made when asked for.

        A socket path ends at 107 bytes and a data directory may be deep. The instance id in the
        name is random and only readable by us, so nobody else can have made it before.

        Raises:
            PermissionDenied: Something that is not ours stands in its place.
        """
        # Always /tmp, whatever TMPDIR says: `up` and `down` must mean the same place.
        path = Path("/tmp") / f"foundry-{self.instance_id[-10:]}"  # noqa: S108 - private, see above
        _private_directory(path, exact=True)
        return path


class Explained(BaseModel):
    """One setting for a person: its name, its value (secrets masked) and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: str
    source: str
    meaning: str


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """Return where data go when nothing was said: a system folder for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/foundry")
    home = environment.get("XDG_DATA_HOME") or f"{environment.get('HOME') or '~'}/.local/share"
    return Path(home).expanduser() / "foundry"


def resolve_data_dir(
    data_dir: Path | None = None, environment: Mapping[str, str] | None = None
) -> Path:
    """Return the absolute data directory without making it."""
    env = os.environ if environment is None else environment
    said = data_dir or env.get(f"{PREFIX}DATA_DIR") or default_data_dir(env)
    return Path(said).expanduser().absolute()


def load(
    data_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    config: Path | None = None,
) -> Settings:
    """Read the settings; make data directory, secret key and instance id if they are not there.

    Args:
        data_dir: Wins over ``FOUNDRY_DATA_DIR`` and the default.
        environment: Instead of this process's environment.
        config: A settings file instead of ``<data-dir>/foundry.toml``.

    Raises:
        InvalidInput: A value cannot be used; the message names the setting and its source.
        PermissionDenied: The data directory cannot be made or read.
    """
    return _load(data_dir, environment, config)[0]


def explain(
    data_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    config: Path | None = None,
) -> list[Explained]:
    """Return every setting with its meaning and source; errors as `load`."""
    settings, sources = _load(data_dir, environment, config)
    return [
        Explained(
            name=f"{PREFIX}{name.upper()}",
            value="" if (value := getattr(settings, name)) is None else str(value),
            source=sources.get(name, "default"),
            meaning=field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _load(
    data_dir: Path | None, environment: Mapping[str, str] | None, config: Path | None
) -> tuple[Settings, dict[str, str]]:
    env = os.environ if environment is None else environment
    directory = resolve_data_dir(data_dir, env)
    _private_directory(directory)
    named = config or (Path(env[f"{PREFIX}CONFIG"]) if env.get(f"{PREFIX}CONFIG") else None)
    values, sources = _from_file(named or directory / "foundry.toml", must_exist=bool(named))
    for name in Settings.model_fields:
        for key, read in (
            (f"{PREFIX}{name.upper()}", False),
            (f"{PREFIX}{name.upper()}_FILE", True),
        ):
            if env.get(key) and (not read or _is_secret(name)):
                values[name] = _read(Path(env[key]), key) if read else env[key]
                sources[name] = f"environment {key}"
                break
    values["data_dir"] = directory
    said = "command line" if data_dir else f"environment {PREFIX}DATA_DIR"
    sources["data_dir"] = said if data_dir or env.get(f"{PREFIX}DATA_DIR") else "default"
    values["instance_id"] = _made_once(directory / "instance_id", new_id)
    sources["instance_id"] = f"file {directory / 'instance_id'}"
    if "secret_key" not in values:
        values["secret_key"] = _made_once(directory / "secret.key", _new_key)
        sources["secret_key"] = f"file {directory / 'secret.key'}"
    try:
        return Settings.model_validate(values), sources
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise InvalidInput(
            f"{PREFIX}{name.upper()} cannot be used: {first['msg']}",
            hint=f"it comes from: {sources.get(name, 'default')}; "
            "`foundry doctor` explains every setting",
        ) from None  # the cause would print the value, which may be a secret


def _from_file(path: Path, *, must_exist: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return values and sources of a settings file; relative paths in it are beside it."""
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise InvalidInput(f"the settings file {path} does not exist") from None
        return {}, {}
    except OSError as error:
        raise PermissionDenied(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from error
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = key.removesuffix("_file")
        if key in Settings.model_fields and key not in _MADE_HERE:
            kept: Any = value
            if key in _paths():
                kept = (path.parent / Path(str(value)).expanduser()).absolute()
            values[key] = kept
        elif key != name and name in Settings.model_fields and _is_secret(name):
            values.setdefault(name, _read(path.parent / Path(str(value)).expanduser(), key))
        else:
            raise InvalidInput(
                f"{path} sets {key!r}, which is not a setting",
                hint="`foundry doctor` lists every setting",
            )
    return values, dict.fromkeys(values, f"file {path}")


def _paths() -> tuple[str, ...]:
    return ("github_app_key_file", "sandbox_agent_bin", "failpoints_dir")


def _is_secret(name: str) -> bool:
    return "SecretStr" in str(Settings.model_fields[name].annotation)


def _read(path: Path, named_by: str) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        raise InvalidInput(f"{named_by} names {path}: {error.strerror}") from error


def _new_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def _made_once(path: Path, make: Callable[[], str]) -> str:
    """Return the text of ``path``, made if missing; of two makers at once, one wins whole."""
    try:
        return _kept(path)
    except FileNotFoundError:
        pass
    draft = path.with_name(f".{path.name}.{new_id()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as out:
            out.write(make() + "\n")
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another process made it between our look and now: theirs holds
    finally:
        draft.unlink()
    return _kept(path)


def _kept(path: Path) -> str:
    try:
        text = path.read_text("ascii").strip()
    except PermissionError as error:
        raise PermissionDenied(
            f"cannot read {path}", hint="run Foundry as the user who owns the data directory"
        ) from error
    if not text:
        raise InvalidInput(f"{path} is empty", hint="restore it from a backup")
    return text


def _private_directory(path: Path, *, exact: bool = False) -> None:
    """Make ``path`` with mode 0700; with ``exact``, insist that it is ours and private."""
    try:
        path.mkdir(mode=0o700, parents=True)
        return
    except FileExistsError:
        pass
    except OSError as error:
        raise PermissionDenied(
            f"cannot make the directory {path}: {error.strerror}",
            hint="give another one with --data-dir or FOUNDRY_DATA_DIR",
        ) from error
    seen = path.lstat()
    if not path.is_dir() or (
        exact
        and (
            stat.S_ISLNK(seen.st_mode)
            or seen.st_uid != os.geteuid()
            or stat.S_IMODE(seen.st_mode) & 0o077
        )
    ):
        raise PermissionDenied(f"{path} exists and is not a private directory of ours")
