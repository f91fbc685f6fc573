"""GitHub's refusals and silences, as errors of Foundry.

Decided by type and status only. The new errors carry GitHub's own words, with
every secret of the call blacked out, and never the failed request: its headers
hold a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from github import GithubException, RateLimitExceededException

from foundry_ray.core.errors import (
    FoundryError,
    GitHubUnavailable,
    InvalidInput,
    MergeConflict,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
)

SECONDARY_LIMIT_WAIT = 60  # seconds; GitHub's advice where it sends no Retry-After
LONGEST_QUOTE = 300  # characters of GitHub's own words

_CREDENTIAL = re.compile(
    r"\b(?:gh[a-z]_[A-Za-z0-9_.-]+|github_pat_\w+|eyJ[\w-]+\.[\w-]+\.[\w-]*)"
    r"|(?i:\b(?:bearer|token|basic)\s+)[A-Za-z0-9._~+/=-]{16,}"
)


class Malformed(ValueError):
    """An answer or payload lacks what GitHub documents; the text names the field only."""


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return *text* without these secrets and without anything shaped like a credential."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _CREDENTIAL.sub("***", text)


def classify(error: BaseException, *, now: datetime, secrets: Iterable[str] = ()) -> FoundryError:
    """Return what *error*, raised by PyGithub, requests or httpx, means to Foundry.

    *now* turns the time at which a rate limit ends into seconds to wait.
    """
    if isinstance(error, GithubException):
        return of_answer(
            error.status,
            error.headers or {},
            error.data,
            now=now,
            secrets=secrets,
            limited=isinstance(error, RateLimitExceededException),
        )
    if isinstance(error, Malformed):
        return GitHubUnavailable("GitHub's answer was not understood.", reason=str(error))
    return GitHubUnavailable(reason=type(error).__name__)


def of_answer(
    status: int,
    headers: Mapping[str, Any],
    data: Any,
    *,
    now: datetime,
    secrets: Iterable[str] = (),
    limited: bool = False,
) -> FoundryError:
    """Return the error for an answer of GitHub with this status and body."""
    headers = {str(key).lower(): str(value) for key, value in headers.items()}
    said = _quote(data.get("message") if isinstance(data, dict) else None, secrets)
    context: dict[str, Any] = {"status": status}
    if said:
        context["github"] = said
    if request_id := headers.get("x-github-request-id"):
        context["request_id"] = request_id
    if problems := _problems(data, secrets):
        context["errors"] = problems

    if _is_rate_limit(status, headers, limited or _graphql_type(data) == "RATE_LIMITED"):
        return RateLimited(
            "GitHub asks us to wait before the next request.",
            retry_after=_wait(headers, now),
            **context,
        )
    if status == 401:
        return Unauthenticated(
            "GitHub does not accept this sign-in any more.", hint="Sign in again.", **context
        )
    if status == 403 or _graphql_type(data) == "FORBIDDEN":
        return PermissionDenied("GitHub does not allow this.", **context)
    if status in (404, 410):
        return NotFound("GitHub has nothing here, or nothing that may be seen.", **context)
    if status in (405, 409):
        return MergeConflict("GitHub cannot merge this as it is.", **context)
    if status >= 500 or status < 400:
        return GitHubUnavailable(**context)
    reason = next((p["message"] for p in problems if p.get("message")), said)
    return InvalidInput(f"GitHub refused this: {reason or status}", **context)


def _is_rate_limit(status: int, headers: Mapping[str, str], limited: bool) -> bool:
    if limited or status == 429:
        return True
    exhausted = "retry-after" in headers or headers.get("x-ratelimit-remaining") == "0"
    return status == 403 and exhausted


def _wait(headers: Mapping[str, str], now: datetime) -> int:
    """Return the seconds to wait: what GitHub says, else until the quota starts anew."""
    if (after := headers.get("retry-after", "")).isdigit():
        return int(after)
    reset = headers.get("x-ratelimit-reset", "")
    if headers.get("x-ratelimit-remaining") == "0" and reset.isdigit():
        return max(1, int(reset) - int(now.timestamp()) + 1)
    return SECONDARY_LIMIT_WAIT


def _problems(data: Any, secrets: Iterable[str]) -> list[dict[str, str]]:
    """Return GitHub's ``errors[]`` as small closed dictionaries."""
    listed = data.get("errors") if isinstance(data, dict) else None
    if not isinstance(listed, list):
        return []
    kept = ("resource", "field", "code", "type", "message")
    return [
        {key: _quote(item[key], secrets) for key in kept if isinstance(item.get(key), str)}
        if isinstance(item, dict)
        else {"message": _quote(item, secrets)}
        for item in listed[:10]
    ]


def _graphql_type(data: Any) -> str:
    problems = _problems(data, ())
    return problems[0].get("type", "") if problems else ""


def _quote(words: Any, secrets: Iterable[str]) -> str:
    if words is None:
        return ""
    text = words if isinstance(words, str) else json.dumps(words, default=str)
    return redact(text, secrets)[:LONGEST_QUOTE]
