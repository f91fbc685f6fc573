"""Writing settings into a TOML file of which other parts own the rest."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

from foundry_ray.core.errors import InvalidInput


def write_settings(path: Path, settings: Mapping[str, str | int]) -> None:
    """Set top-level keys of the TOML file *path* (0600) and leave everything else as it is.

    Raises:
        InvalidInput: The file is not TOML, or has these keys in a form that this cannot replace.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    expected = _parsed(path, before) | dict(settings)
    lines = before.splitlines()
    table = next((at for at, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    top, rest = lines[:table], lines[table:]
    for key, value in settings.items():
        written = f"{key} = {json.dumps(value)}"
        place = next(
            (at for at, line in enumerate(top) if re.match(rf"\s*{re.escape(key)}\s*=", line)), None
        )
        if place is None:
            while top and not top[-1].strip():
                top.pop()
            top.append(written)
        else:
            top[place] = written
    if rest and top and top[-1].strip():
        top.append("")
    after = "\n".join([*top, *rest]) + "\n"
    if _parsed(path, after) != expected:
        raise InvalidInput(
            f"The GitHub settings in {path} cannot be replaced.",
            hint="Remove the lines that begin with github_ from this file and try again.",
        )
    if after != before:
        _replace(path, after)
    os.chmod(path, 0o600)


def _parsed(path: Path, text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as trouble:
        raise InvalidInput(f"{path} is not valid TOML: {trouble}") from trouble


def _replace(path: Path, text: str) -> None:
    """Write the whole file or nothing of it; the new one is private from its first byte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # made with 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
