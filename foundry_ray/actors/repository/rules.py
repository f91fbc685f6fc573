"""What a repository decides; pure."""

from __future__ import annotations

import re
from collections.abc import Collection

TITLE_LENGTH = 80

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


def branch_for(title: str, task_id: str, taken: Collection[str]) -> str:
    """Return a free branch name made of the title."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-") or "task"
    # The end of the id is random: two tasks of one title get two names. The last name is
    # for a repository that has a branch "foundry": nothing can be in a folder of that name.
    own = f"{slug}-{task_id[-6:]}"
    for name in (f"foundry/{slug}", f"foundry/{own}"):
        if not any(collides(name, other) for other in taken):
            return name
    return f"foundry-{own}"


def collides(name: str, other: str) -> bool:
    """Return whether two branches cannot exist together (same, or one is a folder of the other)."""
    return name == other or name.startswith(f"{other}/") or other.startswith(f"{name}/")
