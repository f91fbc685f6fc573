"""GitHub's JSON, as REST answers and webhooks write it, turned into the port's facts.

Both speak the same shapes with small differences (a push writes its times as
seconds since 1970, an owner may have a `name` instead of a `login`), so one
reader serves both. What is optional at GitHub may be missing; what Foundry
cannot do without raises `Malformed` with the field's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from pydantic import ValidationError

from foundry_ray.integrations.github.base import (
    Branch,
    Delivery,
    GitHubAccount,
    GitHubUser,
    Installation,
    InstallationToken,
    OrganizationRole,
    PullRequest,
    PullRequestState,
    Repository,
)
from foundry_ray.integrations.github.errors import Malformed

P = ParamSpec("P")
R = TypeVar("R")
Json = Mapping[str, Any]

GHOST = {"id": 10137, "login": "ghost"}
"""GitHub's own stand-in for the author of whom the account was deleted."""


def _named(reader: Callable[P, R]) -> Callable[P, R]:
    """Turn any surprise while reading into `Malformed`, without quoting what was read."""

    def read(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return reader(*args, **kwargs)
        except Malformed:
            raise
        except ValidationError as error:
            fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
            problem = f"{reader.__name__}: {fields}"
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            field = str(error) if isinstance(error, KeyError) else type(error).__name__
            problem = f"{reader.__name__}: {field}"
        raise Malformed(problem)

    return read


def instant(value: Any) -> datetime | None:
    """Return GitHub's time, ISO 8601 or seconds since 1970, as an aware UTC datetime."""
    if value is None or value == "":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    parsed = datetime.fromisoformat(str(value))
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


@_named
def account(data: Json, *, role: OrganizationRole = "member", kind: str = "") -> GitHubAccount:
    """Read an organization or user; *kind* is GitHub's type where the data has none."""
    written = str(data.get("type") or kind)
    return GitHubAccount(
        id=data["id"],
        login=data["login"],
        kind="organization" if written == "Organization" else "personal",
        name=data.get("name"),
        avatar_url=data.get("avatar_url") or "",
        role=role,
    )


@_named
def membership(data: Json) -> GitHubAccount:
    """Read a person's membership as the organization with that person's role."""
    role: OrganizationRole = "admin" if data.get("role") == "admin" else "member"
    return account(data["organization"], kind="Organization", role=role)


@_named
def user(data: Json) -> GitHubUser:
    """Read a user."""
    return GitHubUser(
        id=data["id"],
        login=data["login"],
        name=data.get("name"),
        email=data.get("email"),
        avatar_url=data.get("avatar_url") or "",
    )


@_named
def slug(data: Json) -> str:
    """Read an App's name in URLs."""
    found = data["slug"]
    if not isinstance(found, str):
        raise TypeError
    return found


@_named
def installation(data: Json) -> Installation:
    """Read an installation (not the bare id that most webhooks carry)."""
    return Installation(
        id=data["id"],
        account=account(data["account"], kind=data.get("target_type") or ""),
        suspended=data.get("suspended_at") is not None,
        html_url=data.get("html_url") or "",
        permissions=data.get("permissions") or {},
        repository_selection=data.get("repository_selection") or "selected",
    )


@_named
def installation_token(data: Json) -> InstallationToken:
    """Read a fresh installation token."""
    return InstallationToken(token=data["token"], expires_at=instant(data["expires_at"]))


@_named
def repository(data: Json) -> Repository:
    """Read a repository."""
    owner = data["owner"]
    return Repository(
        id=data["id"],
        full_name=data["full_name"],
        owner_id=owner["id"],
        owner_login=owner.get("login") or owner["name"],
        name=data["name"],
        default_branch=data.get("default_branch") or data.get("master_branch") or "main",
        private=bool(data.get("private", True)),
        archived=bool(data.get("archived", False)),
        clone_url=data.get("clone_url") or f"{data['html_url']}.git",
        html_url=data["html_url"],
        pushed_at=instant(data.get("pushed_at")),
        updated_at=instant(data.get("updated_at")),
    )


@_named
def branch(data: Json) -> Branch:
    """Read a branch."""
    return Branch(name=data["name"], sha=data["commit"]["sha"])


@_named
def pull_request(data: Json, repository_id: int | None = None) -> PullRequest:
    """Read a pull request; *repository_id* where its base does not say."""
    head, base = data["head"], data["base"]
    author = data.get("user") or GHOST
    merged_at = instant(data.get("merged_at"))
    base_repo = base.get("repo") or {"id": repository_id}
    return PullRequest(
        id=data["id"],
        number=data["number"],
        repository_id=base_repo["id"],
        head_repository_id=(head.get("repo") or {}).get("id"),
        head_ref=head["ref"],
        head_sha=head["sha"],
        base_ref=base["ref"],
        title=data["title"],
        body=data.get("body") or "",
        state=_state(data, merged_at),
        url=data["html_url"],
        author_id=author["id"],
        author_login=author["login"],
        created_at=instant(data["created_at"]),
        updated_at=instant(data["updated_at"]),
        merged_at=merged_at,
        closed_at=instant(data.get("closed_at")),
        # While open this is a trial merge that GitHub throws away.
        merge_commit_sha=data.get("merge_commit_sha") if merged_at else None,
    )


def _state(data: Json, merged_at: datetime | None) -> PullRequestState:
    if merged_at or data.get("merged"):
        return "merged"
    if data["state"] == "closed":
        return "closed"
    return "draft" if data.get("draft") else "open"


@_named
def delivery(data: Json) -> Delivery:
    """Read a line of the delivery log."""
    return Delivery(
        id=data["id"],
        guid=data["guid"],
        event=data["event"],
        action=data.get("action"),
        delivered_at=instant(data["delivered_at"]),
        redelivery=bool(data.get("redelivery", False)),
        status_code=data.get("status_code") or 0,
        installation_id=data.get("installation_id"),
    )
