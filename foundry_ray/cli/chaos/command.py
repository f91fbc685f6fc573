"""The verb: an instance of its own, a load, kills, and a verdict."""

from __future__ import annotations

import asyncio
import random
import shlex
from collections.abc import Callable
from typing import Annotated

import typer

from foundry_ray.cli.chaos.report import Report, lines
from foundry_ray.cli.instance import Instance, foundry, free_port, fresh
from foundry_ray.cli.output import DataDir, Json, complain, say, say_json, to_stderr
from foundry_ray.core.errors import FoundryError

# Sessions leave after 30 s without work instead of five minutes: leaving and coming back belong
# to what must survive.
IDLE = "0.1"


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""

    @app.command()
    def chaos(
        minutes: Annotated[float, typer.Option(min=0.1, help="How long to kill.")] = 15,
        seed: Annotated[
            int | None, typer.Option(help="What all choices begin with; else a new one.")
        ] = None,
        tasks: Annotated[int, typer.Option(min=1, max=50, help="Tasks at a time.")] = 8,
        data_dir: DataDir = None,
        keep: Annotated[
            bool, typer.Option("--keep", help="Keep it running, and its data.")
        ] = False,
        json_: Json = False,
    ) -> None:
        """Kill parts of a Foundry of its own while agents work, and check that nothing is lost.

        SIGKILL goes to entity actors, Serve replicas, PostgreSQL and sandbox-agents, each while a
        turn is open, while a step is claimed, while an agent speaks and while nothing is to be
        done; right after a prompt has left, and far behind in a transcript. Afterwards every
        prompt, transcript and pull request is compared with what agents, journals and the forge
        say. Exit 0 only if nothing broke. The data stays if something did.
        """
        chosen = random.SystemRandom().randrange(2**32) if seed is None else seed
        tell = to_stderr if json_ else say
        instance = Instance(data_dir or fresh("chaos"), free_port(), {"FOUNDRY_IDLE_AFTER": IDLE})
        again = [*foundry(), "chaos", "--minutes", f"{minutes:g}", "--seed", str(chosen)]
        report = Report(
            seed=chosen,
            minutes=minutes,
            tasks=tasks,
            data_dir=str(instance.data_dir),
            command=shlex.join([*again, "--tasks", str(tasks)]),
        )
        try:
            _go(instance, report, tell)
            report.conclude()
        except FoundryError as trouble:
            complain(trouble)
        finally:
            if keep:
                tell(f"everything runs on; end it with: {shlex.join(instance.down)}")
            else:
                _end(instance, report, remove=data_dir is None, tell=tell)
        if json_:
            say_json(report)
        else:
            for line in lines(report):
                say(line)
        raise typer.Exit(0 if report.ok else 1)


def _go(instance: Instance, report: Report, tell: Callable[[str], None]) -> None:
    from foundry_ray.cli.chaos.run import Run

    failpoints = instance.settings.data_dir / "failpoints"
    failpoints.mkdir(mode=0o700, exist_ok=True)
    instance.environment["FOUNDRY_FAILPOINTS_DIR"] = str(failpoints)
    settings = instance.start()
    tell(f"Foundry in {settings.data_dir} at {settings.public_url}, seed {report.seed}")
    asyncio.run(Run(settings, failpoints, report, tell).go())


def _end(instance: Instance, report: Report, *, remove: bool, tell: Callable[[str], None]) -> None:
    """End it; what is left of a run in which nothing broke is of no use to anybody."""
    ended, said = instance.end()
    tell(said[-1] if said else "nothing was there to end")
    if not ended:
        report.ok = False
    elif report.ok and remove:
        instance.remove()
        tell(f"{report.data_dir} was removed: nothing broke")
