"""What a repository decides; pure."""

from __future__ import annotations

import re
from collections.abc import Container

TITLE_LENGTH = 80
AGENTS = ("scripted", "claude", "codex", "opencode")

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


def valid_branch(name: str) -> bool:
    """Return whether git accepts *name* as a branch (git-check-ref-format(1), --branch)."""
    if not name or name == "@" or name == "HEAD" or name.startswith("-"):
        return False
    if _FORBIDDEN.search(name) or len(name.encode()) > 200:
        return False
    if name.endswith((".", "/")) or name.startswith("/"):
        return False
    return all(
        part and not part.startswith(".") and not part.endswith(".lock") for part in name.split("/")
    )


def title_of(prompt: str) -> str:
    """Return a title made of the prompt's first line that says something."""
    for line in prompt.splitlines():
        words = line.strip().lstrip("#>-*").strip()
        if words:
            if len(words) <= TITLE_LENGTH:
                return words
            return words[:TITLE_LENGTH].rsplit(" ", 1)[0] + "…"
    return "Untitled task"


def branch_for(title: str, task_id: str, taken: Container[str]) -> str:
    """Return a free branch name made of the title."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-") or "task"
    plain = f"foundry/{slug}"
    # The end of the id is random: two tasks of one title get two names.
    return plain if plain not in taken else f"{plain}-{task_id[-6:]}"


def collides(name: str, other: str) -> bool:
    """Return whether two branches cannot exist together (same, or one is a folder of the other)."""
    return name == other or name.startswith(f"{other}/") or other.startswith(f"{name}/")
