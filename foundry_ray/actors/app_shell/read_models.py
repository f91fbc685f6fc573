"""What the application shows of itself; reads only, and wakes nobody."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from foundry_ray.core import keys
from foundry_ray.store.engine import Transaction

_HELD = {
    "session": "SELECT 'session' AS via, id, user_id, active_organization_id, expires_at"
    " FROM app_shell_session WHERE token_hash = %(hash)s AND expires_at > %(now)s",
    "token": "SELECT 'token' AS via, id, user_id, NULL AS active_organization_id, expires_at"
    " FROM app_shell_token WHERE token_hash = %(hash)s"
    " AND (expires_at IS NULL OR expires_at > %(now)s)",
}


async def get_principal(
    transaction: Transaction,
    via: Literal["session", "token"],
    token_hash: str,
    now: datetime,
    organization_id: str | None = None,
) -> dict[str, Any] | None:
    """Return who holds this session or token, and their role in an organization, in one query.

    ``login`` is None for the moment between the first sign-in and the commit of the user's
    own data; ``role`` is None for who is not a member.
    """
    return await transaction.one(
        "SELECT held.*, person.login, person.name, person.email, person.avatar_url, member.role"
        f" FROM ({_HELD[via]}) AS held"
        " LEFT JOIN user_github_data AS person ON person.actor_key = %(user)s || held.user_id"
        " LEFT JOIN app_shell_membership AS member ON member.actor_key = %(app)s"
        " AND member.user_id = held.user_id AND member.organization_id = %(organization)s",
        {
            "hash": token_hash,
            "now": now,
            "user": keys.user(""),
            "app": keys.APP,
            "organization": organization_id,
        },
    )


async def list_valid(
    transaction: Transaction,
    hashes: Sequence[str],
    members: Sequence[tuple[str, str]],
    now: datetime,
) -> tuple[set[str], set[tuple[str, str]]]:
    """Return which credentials and which (user, organization) memberships hold now."""
    rows = await transaction.fetch(
        "SELECT token_hash AS one, NULL AS other FROM app_shell_session"
        " WHERE token_hash = ANY(%(hashes)s) AND expires_at > %(now)s"
        " UNION ALL SELECT token_hash, NULL FROM app_shell_token"
        " WHERE token_hash = ANY(%(hashes)s) AND (expires_at IS NULL OR expires_at > %(now)s)"
        " UNION ALL SELECT user_id, organization_id FROM app_shell_membership"
        " WHERE actor_key = %(app)s AND (user_id, organization_id) IN"
        " (SELECT * FROM unnest(%(users)s::text[], %(organizations)s::text[]))",
        {
            "hashes": list(hashes),
            "now": now,
            "app": keys.APP,
            "users": [user for user, _ in members],
            "organizations": [organization for _, organization in members],
        },
    )
    held = {row["one"] for row in rows if row["other"] is None}
    return held, {(row["one"], row["other"]) for row in rows if row["other"] is not None}


async def list_organizations(transaction: Transaction, user_id: str) -> list[dict[str, Any]]:
    """Return the organizations of a user with the user's role, by login."""
    return await transaction.fetch(
        "SELECT account.id, account.login, account.kind, account.name, account.avatar_url,"
        " member.role FROM app_shell_membership AS member JOIN app_shell_account AS account"
        " ON account.actor_key = member.actor_key AND account.id = member.organization_id"
        " WHERE member.actor_key = %s AND member.user_id = %s"
        " ORDER BY account.kind, lower(account.login)",
        (keys.APP, user_id),
    )


async def get_account(transaction: Transaction, organization_id: str) -> dict[str, Any] | None:
    """Return what the directory knows of an organization; it holds until its own first turn."""
    return await transaction.one(
        "SELECT id, login, kind, name AS display_name, avatar_url, '{}'::jsonb AS settings,"
        " 0 AS revision, updated_at FROM app_shell_account WHERE actor_key = %s AND id = %s",
        (keys.APP, organization_id),
    )


async def list_tokens(transaction: Transaction, user_id: str) -> list[dict[str, Any]]:
    """Return a user's API tokens without their secrets, the newest first."""
    return await transaction.fetch(
        "SELECT id, name, created_at, updated_at, expires_at, revision FROM app_shell_token"
        " WHERE actor_key = %s AND user_id = %s ORDER BY id DESC",
        (keys.APP, user_id),
    )
