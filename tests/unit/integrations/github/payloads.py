"""Webhook payloads and REST answers, written by hand after GitHub's documentation."""

from __future__ import annotations

from typing import Any

ORGANIZATION = {"id": 500, "login": "acme", "avatar_url": "https://avatars.test/500"}
SENDER = {"id": 41, "login": "ada", "type": "User"}


def repository(**changes: Any) -> dict[str, Any]:
    return {
        "id": 9001,
        "name": "demo",
        "full_name": "acme/demo",
        "private": True,
        "archived": False,
        "owner": {"id": 500, "login": "acme", "type": "Organization"},
        "html_url": "https://github.test/acme/demo",
        "clone_url": "https://github.test/acme/demo.git",
        "default_branch": "main",
        "pushed_at": "2024-05-01T10:00:00Z",
        "updated_at": "2024-05-01T10:00:01Z",
    } | changes


def pull_request(**changes: Any) -> dict[str, Any]:
    return {
        "id": 77001,
        "number": 12,
        "state": "open",
        "draft": False,
        "title": "Add a door",
        "body": "It opens.",
        "html_url": "https://github.test/acme/demo/pull/12",
        "user": {"id": 41, "login": "ada"},
        "head": {"ref": "door", "sha": "a" * 40, "repo": {"id": 9001}},
        "base": {"ref": "main", "sha": "b" * 40, "repo": {"id": 9001}},
        "created_at": "2024-05-01T10:00:00Z",
        "updated_at": "2024-05-01T12:00:00+02:00",
        "merged_at": None,
        "closed_at": None,
        "merge_commit_sha": "c" * 40,
    } | changes


def installation(**changes: Any) -> dict[str, Any]:
    return {
        "id": 3001,
        "account": {"id": 500, "login": "acme", "type": "Organization"},
        "target_type": "Organization",
        "html_url": "https://github.test/organizations/acme/settings/installations/3001",
        "permissions": {"contents": "write", "metadata": "read"},
        "repository_selection": "all",
        "suspended_at": None,
    } | changes


def pull_request_event(action: str = "opened", **changes: Any) -> dict[str, Any]:
    return {
        "action": action,
        "number": 12,
        "pull_request": pull_request(),
        "repository": repository(),
        "installation": {"id": 3001, "node_id": "MDIz"},
        "sender": SENDER,
    } | changes


def push_event(**changes: Any) -> dict[str, Any]:
    return {
        "ref": "refs/heads/door",
        "before": "0" * 40,
        "after": "a" * 40,
        "created": True,
        "deleted": False,
        # A push writes times as numbers and its owner by name.
        "repository": repository(
            pushed_at=1714557600, owner={"id": 500, "name": "acme", "email": None}
        ),
        "pusher": {"name": "ada", "email": "ada@acme.test"},
        "installation": {"id": 3001},
        "organization": ORGANIZATION,
        "sender": SENDER,
    } | changes
