"""The verb: start everything, do the job, say what was seen, end everything."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable
from typing import Annotated

import typer

from foundry_ray.cli.demo.evidence import Recorder
from foundry_ray.cli.instance import Instance, free_port, fresh
from foundry_ray.cli.output import DataDir, Json, complain, say, say_json, to_stderr
from foundry_ray.core.errors import FoundryError, InvalidInput


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
        instance = Instance(data_dir or fresh("demo"), port or free_port())
        tell = to_stderr if json_ else say
        recorder = Recorder(tell)
        keep = keep or os.environ.get("KEEP") == "1"
        try:
            _run(recorder, instance, without)
            recorder.finish()
        except FoundryError as trouble:
            complain(trouble)
        finally:
            _end(recorder, instance, keep=keep, tell=tell)
        if json_:
            say_json(recorder.protocol)
        else:
            _where_the_time_went(recorder)
        raise typer.Exit(0 if recorder.protocol.ok else 1)


def _run(recorder: Recorder, instance: Instance, without: str | None) -> None:
    from foundry_ray.cli.demo.job import Job, Without

    with recorder.step("everything started") as step:
        settings = instance.start()
        step.evidence = {"url": settings.public_url, "github": settings.github_url}
    parts: dict[str | None, Without] = {"webhook": "webhook", "push": "push"}
    asyncio.run(Job(settings, recorder, without=parts.get(without)).run())


def _end(
    recorder: Recorder, instance: Instance, *, keep: bool, tell: Callable[[str], None]
) -> None:
    if keep:
        tell(f"everything runs on; end it with: {shlex.join(instance.down)}")
        return
    with recorder.step("everything ended") as step:
        ended, said = instance.end()
        step.evidence = {"said": said[-1:]}
        if not ended:
            recorder.protocol.ok = False
    tell(f"bring this run back with: {shlex.join(instance.up)}")


def _where_the_time_went(recorder: Recorder) -> None:
    protocol = recorder.protocol
    say("")
    say("where the time went:")
    for step in sorted(protocol.steps, key=lambda s: -s.seconds):
        share = step.seconds / protocol.seconds if protocol.seconds else 0
        say(f"  {step.seconds:6.2f} s  {share:4.0%}  {step.name}")
    say(f"  {protocol.seconds:6.2f} s  in all: {'ok' if protocol.ok else 'FAILED'}")
