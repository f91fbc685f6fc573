"""``foundry up`` and ``foundry down``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from foundry_ray.cli.leftovers import Report, end_rest
from foundry_ray.cli.node import Node
from foundry_ray.cli.output import Config, DataDir, say
from foundry_ray.cli.places import Places, node_lock
from foundry_ray.cli.processes import INSTANCE_VARIABLE, NodeFile, send, since, wait_gone
from foundry_ray.core import disk
from foundry_ray.core import settings as settings_module
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import FoundryError, Unavailable
from foundry_ray.core.settings import Settings

DRAIN_PATIENCE = 15.0  # seconds; ten are promised
_SANDBOX_NOTE = (
    "sandboxes on this machine separate work, not trust: agents run as the user who runs Foundry"
)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""

    @app.command()
    def up(
        port: Annotated[int | None, typer.Option(help="Port of the edge (7741).")] = None,
        data_dir: DataDir = None,
        config: Config = None,
        demo: Annotated[
            bool, typer.Option("--demo", help="With a local GitHub and a sample organization.")
        ] = False,
        detach: Annotated[
            bool, typer.Option("--detach", help="Return when it is ready; it goes on.")
        ] = False,
        report_to: Annotated[int | None, typer.Option(hidden=True)] = None,
    ) -> None:
        """Start everything on this machine: PostgreSQL, Ray, the edge.

        On a data directory whose Foundry already runs it says so, changes nothing and exits 0.
        """
        if port is not None:
            os.environ["FOUNDRY_PORT"] = str(port)
        if config is not None:
            os.environ["FOUNDRY_CONFIG"] = str(config.absolute())
        settings = settings_module.load(data_dir)
        if detach:
            _detached(settings, demo=demo)
        else:
            _up(settings, demo=demo, report_to=report_to)

    @app.command()
    def down(data_dir: DataDir = None) -> None:
        """End everything that runs on a data directory, sandboxes included; keep the data."""
        directory = settings_module.resolve_data_dir(data_dir)
        if directory.exists():
            _down(settings_module.load(directory))
        else:
            say(f"there is no Foundry in {directory}")


def _up(settings: Settings, *, demo: bool, report_to: int | None) -> None:
    pipe = None if report_to is None else os.fdopen(report_to, "w", buffering=1)

    def tell(message: dict[str, Any]) -> None:
        """Hand a message to the waiting parent, once it is heard no more just go on."""
        nonlocal pipe
        if pipe is None:
            return
        try:
            pipe.write(json.dumps(message) + "\n")
        except BrokenPipeError:
            pipe = None

    def report(line: str) -> None:
        try:
            say(line if report_to is None else f"{SystemClock().now():%Y-%m-%d %H:%M:%S} {line}")
        except OSError as trouble:  # a line less in the log must not end everything
            if not disk.is_full(trouble):
                raise
        tell({"line": line})

    began = time.monotonic()
    with node_lock(Places(settings.data_dir)) as ours:
        if not ours:
            _already(settings, report)
            tell({"end": 0})
            return

        def on_ready(written: NodeFile) -> None:
            nonlocal pipe
            report(f"up after {time.monotonic() - began:.1f} s")
            for line in welcome(settings_module.load(settings.data_dir), written):
                report(line)
            if report_to is None:
                report("  stop     Ctrl-C")
            else:
                report(f"  stop     foundry down --data-dir {settings.data_dir}")
            tell({"end": 0})
            if pipe is not None:
                pipe.close()
                pipe = None

        report(f"Foundry in {settings.data_dir}")
        try:
            Node(settings, dict(os.environ), report, demo=demo).run(on_ready)
        except FoundryError as error:
            if pipe is not None:
                tell({"error": [error.message, error.hint, str(error.context.get("log_tail", ""))]})
            raise


def _already(settings: Settings, report: Report) -> None:
    written = NodeFile.read(Places(settings.data_dir).node_file)
    if written is None or not written.supervisor.running:
        report(f"another Foundry is starting on {settings.data_dir} this moment")
        return
    ago = since(written.supervisor.started_at, SystemClock().now())
    report(
        f"Foundry runs already on {settings.data_dir} "
        f"(process {written.supervisor.pid}, since {ago}, {written.phase}); nothing was changed"
    )
    for line in welcome(settings, written):
        report(line)


def welcome(settings: Settings, written: NodeFile) -> list[str]:
    """Return the lines that tell a person where everything is and what is missing."""
    places = Places(settings.data_dir)
    names = {"foundry": "Foundry", "sign_in": "sign in", "forge": "forge", "ray_dashboard": "Ray"}
    lines = [f"  {names.get(name, name):<8} {url}" for name, url in written.urls.items()]
    lines.append(f"  logs     {places.logs}")
    if written.ray_environment:
        ray = Path(sys.executable).with_name("ray")
        lines.append(f"  ray CLI  . {places.ray_environment} && {ray} list actors")
    if not settings.github_configured:
        lines.append("  ! no GitHub App is configured, so nobody can sign in:")
        lines.append("    try `foundry up --demo`, or see `foundry doctor` for how to make one")
    if settings.sandbox_provider == "local":
        lines.append(f"  note     {_SANDBOX_NOTE}")
    return lines


def _detached(settings: Settings, *, demo: bool) -> None:
    """Run `up` in a session of its own; copy what it says until it is ready or has failed."""
    places = Places(settings.data_dir)
    places.logs.mkdir(mode=0o700, exist_ok=True)
    out, into = os.pipe()
    argv = [sys.executable, "-m", "foundry_ray.cli", "up", "--data-dir", str(settings.data_dir)]
    argv += ["--report-to", str(into), *(["--demo"] if demo else [])]
    log = os.open(places.logs / "foundry.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    child = subprocess.Popen(
        argv,
        env={**os.environ, INSTANCE_VARIABLE: settings.instance_id},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=[into],
    )
    os.close(into)
    os.close(log)
    try:
        with os.fdopen(out) as lines:
            for line in lines:
                message = json.loads(line)
                if "line" in message:
                    say(message["line"])
                elif "error" in message:
                    said, hint, log_tail = message["error"]
                    child.wait()
                    raise Unavailable(said, hint=hint, log_tail=log_tail)
                else:
                    child.returncode = 0  # it lives on without us
                    return
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise typer.Exit(130) from None
    raise Unavailable(
        f"Foundry ended while it started (exit code {child.wait()})",
        hint=f"read {places.logs / 'foundry.log'}",
    )


def _down(settings: Settings) -> None:
    places = Places(settings.data_dir)
    began = time.monotonic()
    written = NodeFile.read(places.node_file)
    if written is not None and written.of_this_boot and written.supervisor.running:
        supervisor = written.supervisor.record
        send(supervisor, signal.SIGTERM)
        if wait_gone([supervisor], DRAIN_PATIENCE):
            say(f"the supervisor (process {supervisor.pid}) does not end by itself: killing it")
            send(supervisor, signal.SIGKILL)
            wait_gone([supervisor], 2.0)
    with node_lock(places) as ours:
        if not ours:
            raise Unavailable(
                "another Foundry is starting on this data directory this moment",
                hint="try again",
            )
        ended, left = end_rest(settings, places, say)
    if left:
        raise Unavailable(f"{left} processes do not end", hint="foundry status --json lists them")
    if written is None or (written.phase in ("down", "failed") and not ended):
        say(f"nothing runs on {settings.data_dir}")
    else:
        now = NodeFile.read(places.node_file) or written
        count = 1 + len(now.services) + len(now.others)
        say(
            f"down after {time.monotonic() - began:.1f} s, {count} processes ended; "
            f"the data stays in {settings.data_dir}"
        )
