"""The rows of the forge's database as values.

Instants are text in GitHub's form (``2030-01-31T12:00:00Z``); sets and maps are JSON text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Account:
    """A person, an organization or an App's bot: they share one space of ids and logins."""

    id: int
    login: str
    kind: str  # User, Organization or Bot
    name: str | None
    email: str | None
    created_at: str
    updated_at: str


@dataclass(frozen=True)
class Member:
    """Who belongs to an organization, as ``admin`` (owner) or ``member``."""

    org_id: int
    user_id: int
    role: str


@dataclass(frozen=True)
class Repository:
    """One repository; its git directory never moves, whatever it is called."""

    id: int
    owner_id: int
    name: str
    description: str | None
    private: int
    archived: int
    default_branch: str
    fork_of: int | None
    git_dir: str  # relative to the directory of all repositories
    next_number: int  # of the next pull request
    created_at: str
    updated_at: str
    pushed_at: str


@dataclass(frozen=True)
class Pull:
    """One pull request."""

    id: int
    repository_id: int
    head_repository_id: int
    number: int
    title: str
    body: str | None
    state: str  # open or closed
    draft: int
    user_id: int
    head_ref: str
    head_sha: str
    base_ref: str
    base_sha: str
    merge_commit_sha: str | None
    merged_by: int | None
    merged_at: str | None
    closed_at: str | None
    created_at: str
    updated_at: str


@dataclass(frozen=True)
class App:
    """A GitHub App with its webhook; of its key only the public half is here."""

    id: int
    slug: str
    name: str
    owner_id: int
    bot_id: int
    client_id: str
    client_secret: str
    public_key: str
    permissions: str
    events: str
    hook_id: int
    webhook_url: str
    webhook_secret: str
    created_at: str
    updated_at: str

    @property
    def permission_map(self) -> dict[str, str]:
        """What the App may do at most, by permission name."""
        return _map(self.permissions)


@dataclass(frozen=True)
class Installation:
    """An App on one account, for all of its repositories or for selected ones."""

    id: int
    app_id: int
    account_id: int
    selection: str  # all or selected
    permissions: str
    events: str
    suspended_at: str | None
    suspended_by: int | None
    created_at: str
    updated_at: str

    @property
    def permission_map(self) -> dict[str, str]:
        """What this installation may do at most, by permission name."""
        return _map(self.permissions)


@dataclass(frozen=True)
class Token:
    """A token that was handed out; only its digest is kept."""

    digest: str
    kind: str  # user, personal or installation
    user_id: int | None
    app_id: int | None
    installation_id: int | None
    scopes: str
    permissions: str
    repository_ids: str | None  # JSON list; none: every repository of the installation
    expires_at: str | None

    @property
    def permission_map(self) -> dict[str, str]:
        """What the token may do, by permission name."""
        return _map(self.permissions)

    @property
    def repositories(self) -> frozenset[int] | None:
        """The only repositories the token is for, or none for all of the installation's."""
        return None if self.repository_ids is None else frozenset(json.loads(self.repository_ids))


@dataclass(frozen=True)
class Code:
    """An OAuth code that waits for its exchange."""

    digest: str
    app_id: int
    user_id: int
    redirect_uri: str
    scopes: str
    challenge: str
    expires_at: str


@dataclass(frozen=True)
class Intent:
    """A change of refs that was begun; one that is still here at start was interrupted."""

    id: int
    repository_id: int
    actor_id: int
    pull_id: int | None
    merge_sha: str | None
    at: str


@dataclass(frozen=True)
class Delivery:
    """One attempt to deliver a webhook: waiting until ``done``, then with its outcome."""

    id: int
    guid: str
    app_id: int
    event: str
    action: str | None
    installation_id: int | None
    repository_id: int | None
    redelivery: int
    payload: str
    done: int
    delivered_at: str
    duration: float  # seconds
    status: str
    status_code: int
    url: str
    request_headers: str
    response_headers: str
    response_payload: str


def _map(text: str) -> dict[str, str]:
    value: Any = json.loads(text)
    return {str(name): str(level) for name, level in value.items()}
