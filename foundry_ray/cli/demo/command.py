"""The verb: start everything, do the job, say what was seen, end everything."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from foundry_ray.cli.demo.evidence import Recorder
from foundry_ray.cli.output import DataDir, Json, complain, say, say_json
from foundry_ray.core import settings as settings_module
from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import FoundryError, InvalidInput, Unavailable


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""

    @app.command()
    def demo(
        data_dir: DataDir = None,
        port: Annotated[int | None, typer.Option(help="Port of the edge; else a free one.")] = None,
        keep: Annotated[bool, typer.Option("--keep", help="Leave everything running.")] = False,
        json_: Json = False,
        without: Annotated[str | None, typer.Option(hidden=True)] = None,
    ) -> None:
        """Do the main job end to end: sign in, task, agent, push, pull request, merge.

        Every step is seen through another channel than the one that did it. Exit 0 only if
        every step was seen. Everything ends afterwards; the data stays.
        """
        if without not in (None, "webhook", "push"):
            raise InvalidInput("--without takes webhook or push")
        chosen = data_dir or _fresh()
        tell = _to_stderr if json_ else say
        recorder = Recorder(tell)
        keep = keep or os.environ.get("KEEP") == "1"
        up = [*_foundry(), "up", "--demo", "--data-dir", str(chosen)]
        up += ["--port", str(port or _free_port())]
        try:
            _run(recorder, up, chosen, without)
            recorder.finish()
        except FoundryError as trouble:
            complain(trouble)
        finally:
            _end(recorder, chosen, up, keep=keep, tell=tell)
        if json_:
            say_json(recorder.protocol)
        else:
            _where_the_time_went(recorder)
        raise typer.Exit(0 if recorder.protocol.ok else 1)


def _run(recorder: Recorder, up: list[str], data_dir: Path, without: str | None) -> None:
    from foundry_ray.cli.demo.job import Job, Without

    with recorder.step("everything started") as step:
        done = subprocess.run([*up, "--detach"], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable("Foundry did not start.", log_tail=done.stdout[-2000:])
        os.environ["FOUNDRY_PORT"] = up[-1]
        settings = settings_module.load(data_dir)
        step.evidence = {"url": settings.public_url, "github": settings.github_url}
    parts: dict[str | None, Without] = {"webhook": "webhook", "push": "push"}
    asyncio.run(Job(settings, recorder, without=parts.get(without)).run())


def _end(
    recorder: Recorder, data_dir: Path, up: list[str], *, keep: bool, tell: Callable[[str], None]
) -> None:
    again = shlex.join(up)
    if keep:
        tell(f"everything runs on; end it with: {shlex.join([*_foundry(), 'down'])}"
             f" --data-dir {data_dir}")  # fmt: skip
        return
    with recorder.step("everything ended") as step:
        argv = [*_foundry(), "down", "--data-dir", str(data_dir)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
        step.evidence = {"said": done.stdout.strip().splitlines()[-1:]}
        if done.returncode != 0:
            recorder.protocol.ok = False
    tell(f"bring this run back with: {again}")


def _where_the_time_went(recorder: Recorder) -> None:
    protocol = recorder.protocol
    say("")
    say("where the time went:")
    for step in sorted(protocol.steps, key=lambda s: -s.seconds):
        share = step.seconds / protocol.seconds if protocol.seconds else 0
        say(f"  {step.seconds:6.2f} s  {share:4.0%}  {step.name}")
    say(f"  {protocol.seconds:6.2f} s  in all: {'ok' if protocol.ok else 'FAILED'}")


def _foundry() -> list[str]:
    return [sys.executable, "-m", "foundry_ray.cli"]


def _fresh() -> Path:
    """Return a new data directory beside the default one, so that runs do not meet."""
    default = settings_module.resolve_data_dir()
    return default.with_name(f"{default.name}-demo") / f"{SystemClock().now():%Y%m%d-%H%M%S}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
