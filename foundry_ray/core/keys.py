"""Addresses of entities: owners first, then the noun, then its id.

A key is also the name of the entity's Ray actor, so the tree can be read in the
Ray dashboard. Organizations, repositories and users go by GitHub's numeric ids,
because logins change; every other id is Foundry's own.
"""

from __future__ import annotations

import re

from foundry_ray.core.errors import NotFound

APP = "app"
APP_GITHUB = "app/github"

# What a key of each kind looks like. <org>, <repo> and <user> are GitHub's numbers.
SHAPES: tuple[tuple[str, str], ...] = (
    ("app_shell", "app"),
    ("github_state", "app/github"),
    ("user_github_data", "app/user/<user>"),
    ("organization", "org/<org>"),
    ("github_state", "org/<org>/github"),
    ("sandbox_instance", "org/<org>/sandbox/<provider>/<sandbox>"),
    ("repository", "org/<org>/repo/<repo>"),
    ("history", "org/<org>/repo/<repo>/history"),
    ("task", "org/<org>/repo/<repo>/task/<task>"),
    ("task_session", "org/<org>/repo/<repo>/task/<task>/session/<session>"),
    (
        "session_status_sync",
        "org/<org>/repo/<repo>/task/<task>/session/<session>/status-sync",
    ),
)


def _pattern(shape: str) -> re.Pattern[str]:
    numbers = re.sub(r"<(org|repo|user)>", r"[0-9]+", shape)
    return re.compile(re.sub(r"<[a-z]+>", r"[0-9a-z][0-9a-z_-]{0,63}", numbers) + r"\Z")


_PATTERNS = tuple((kind, _pattern(shape)) for kind, shape in SHAPES)


def organization(organization_id: str | int) -> str:
    """Return the key of an organization's coordinator."""
    return f"org/{organization_id}"


def github(organization_id: str | int) -> str:
    """Return the key of an organization's GitHub state."""
    return f"org/{organization_id}/github"


def repository(organization_id: str | int, repository_id: str | int) -> str:
    """Return the key of a repository's coordinator."""
    return f"org/{organization_id}/repo/{repository_id}"


def history(repository_key: str) -> str:
    """Return the key of a repository's history."""
    return f"{repository_key}/history"


def task(repository_key: str, task_id: str) -> str:
    """Return the key of a task of a repository."""
    return f"{repository_key}/task/{task_id}"


def session(task_key: str, session_id: str) -> str:
    """Return the key of an agent session of a task."""
    return f"{task_key}/session/{session_id}"


def status_sync(session_key: str) -> str:
    """Return the key of the reader of a session's running agent turn."""
    return f"{session_key}/status-sync"


def sandbox(organization_id: str | int, provider: str, sandbox_id: str) -> str:
    """Return the key of a sandbox instance."""
    return f"org/{organization_id}/sandbox/{provider}/{sandbox_id}"


def user(user_id: str | int) -> str:
    """Return the key of a user's GitHub data."""
    return f"app/user/{user_id}"


def kind_of(key: str) -> str:
    """Return the actor type that *key* addresses.

    Raises:
        NotFound: No kind of entity has such a key; refuse the message at the door.
    """
    for kind, pattern in _PATTERNS:
        if pattern.match(key):
            return kind
    raise NotFound("No entity can have this key.", key=key)


def parent_of(key: str) -> str | None:
    """Return the key of the supervising entity; None for the root of a tree."""
    kind = kind_of(key)
    if kind in ("app_shell", "organization"):
        return None
    drop = {
        "github_state": 1,
        "user_github_data": 2,
        "sandbox_instance": 3,
        "repository": 2,
        "history": 1,
        "task": 2,
        "task_session": 2,
        "session_status_sync": 1,
    }[kind]
    return key.rsplit("/", drop)[0]


def root_of(key: str) -> str:
    """Return the key of the tree's root: ``org/<id>`` or ``app``."""
    parts = key.split("/")
    return APP if parts[0] == APP else "/".join(parts[:2])


def organization_id(key: str) -> str:
    """Return the numeric organization id in a key that belongs to an organization."""
    return key.split("/")[1]


def repository_id(key: str) -> str:
    """Return the numeric repository id in a key at or below a repository."""
    return key.split("/")[3]


def last_id(key: str) -> str:
    """Return the entity's own id: the last part of its key."""
    return key.rsplit("/", 1)[1]
