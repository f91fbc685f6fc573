"""What all verbs share: their options, and how they speak to people and programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from foundry_ray.core.errors import FoundryError

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where Foundry keeps its data.", show_default=False),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file instead of <data-dir>/foundry.toml."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say(line: str = "") -> None:
    """Print a line for a person, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def to_stderr(line: str) -> None:
    """Print a line for a person where a program's output is not."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def say_json(value: Any) -> None:
    """Print one JSON document."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    say(json.dumps(value, indent=2, default=str))


def complain(error: FoundryError) -> None:
    """Print an error and the next step to standard error."""
    lines = [f"error: {error.message}"]
    if log_tail := str(error.context.get("log_tail") or ""):
        lines += ["  the end of its log:", *(f"    | {one}" for one in log_tail.splitlines())]
    if error.hint:
        lines.append(f"  next: {error.hint}")
    sys.stderr.write("\n".join(lines) + "\n")


def table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> None:
    """Print rows under a head in columns as wide as they need; plain text, good for grep."""
    body = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    for row in [list(head), *body]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say(f"  {line}".rstrip())
