"""The Ray actor classes: one per kind of entity, so that Ray's dashboard shows the tree.

They differ by name only. What a kind does stands in foundry_ray/actors; what a process does
stands in hosting.py.
"""

from __future__ import annotations

from typing import Any

import ray

from foundry_ray.cluster.directory import Directory
from foundry_ray.cluster.door import Door
from foundry_ray.cluster.hosting import ActorHost
from foundry_ray.core.settings import Settings


@ray.remote
class AppShellOrganization(ActorHost):
    """Hosts ``app``."""


@ray.remote
class UserGitHubDataActor(ActorHost):
    """Hosts a user's GitHub data."""


@ray.remote
class OrganizationActor(ActorHost):
    """Hosts an organization, and the supervision of all below it."""


@ray.remote
class GitHubStateActor(ActorHost):
    """Hosts an organization's GitHub state, or the application's."""


@ray.remote
class RepositoryActor(ActorHost):
    """Hosts a repository."""


@ray.remote
class HistoryActor(ActorHost):
    """Hosts a repository's history."""


@ray.remote
class TaskActor(ActorHost):
    """Hosts a task."""


@ray.remote
class TaskSessionActor(ActorHost):
    """Hosts an agent session of a task."""


@ray.remote
class SessionStatusSyncActor(ActorHost):
    """Hosts the reader of a session's running agent turn."""


@ray.remote
class SandboxInstanceActor(ActorHost):
    """Hosts a sandbox."""


CLASSES: dict[str, Any] = {
    "app_shell": AppShellOrganization,
    "user_github_data": UserGitHubDataActor,
    "organization": OrganizationActor,
    "github_state": GitHubStateActor,
    "repository": RepositoryActor,
    "history": HistoryActor,
    "task": TaskActor,
    "task_session": TaskSessionActor,
    "session_status_sync": SessionStatusSyncActor,
    "sandbox_instance": SandboxInstanceActor,
}


def directory(loaded: Settings | None = None, *, orderly: bool = False) -> Directory:
    """Return a new directory of these classes, open.

    Args:
        loaded: Say how many activations may live; without them there is no limit.
        orderly: For a supervisor: who finds no room waits here in a queue.
    """
    door = None
    if loaded is not None:
        door = Door(loaded.run_dir / "door", loaded.max_activations, orderly=orderly)
    made = Directory(CLASSES, door)
    made.open()
    return made
