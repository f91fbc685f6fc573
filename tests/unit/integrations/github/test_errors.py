from __future__ import annotations

import logging
import pickle
import socket
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

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
from foundry_ray.integrations.github import errors
from foundry_ray.integrations.github.app_auth import app_auth
from foundry_ray.integrations.github.base import GitHubSettings
from foundry_ray.integrations.github.client import PyGithubAdapter
from tests.unit.integrations.github.conftest import Answer, Request, Server

TOKEN = SecretStr("s3cr3t-user-t0ken-of-no-known-shape")
NOW = datetime(2024, 5, 1, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, InvalidInput),
        (401, Unauthenticated),
        (403, PermissionDenied),
        (404, NotFound),
        (405, MergeConflict),
        (409, MergeConflict),
        (410, NotFound),
        (422, InvalidInput),
        (429, RateLimited),
        (500, GitHubUnavailable),
        (502, GitHubUnavailable),
        (503, GitHubUnavailable),
    ],
)
async def test_each_status_has_one_meaning(
    github: PyGithubAdapter, server: Server, status: int, expected: type[FoundryError]
) -> None:
    server.always(status, {"message": "No."}, X_GitHub_Request_Id="ABCD:1")

    with pytest.raises(FoundryError) as failure:
        await github.user(TOKEN)

    assert type(failure.value) is expected
    assert failure.value.context["status"] == status
    assert failure.value.context["request_id"] == "ABCD:1"


async def test_a_proxys_error_page_is_an_unavailable_github(
    github: PyGithubAdapter, server: Server
) -> None:
    server.always(502, "<html><body>Bad Gateway</body></html>")

    with pytest.raises(GitHubUnavailable):
        await github.user(TOKEN)


@pytest.mark.parametrize("body", ['{"id": 1, "log', '{"id": 1}', "[]", "null", '{"id": "x"}'])
async def test_an_answer_that_is_not_githubs_is_an_unavailable_github(
    github: PyGithubAdapter, server: Server, body: str
) -> None:
    server.always(200, body)

    with pytest.raises(GitHubUnavailable):
        await github.user(TOKEN)


async def test_a_connection_that_breaks_is_an_unavailable_github(
    github: PyGithubAdapter, server: Server
) -> None:
    server.answer = lambda request: Answer(hang_up=True)

    with pytest.raises(GitHubUnavailable) as failure:
        await github.user(TOKEN)

    assert failure.value.retryable


async def test_a_host_that_nobody_answers_at_is_an_unavailable_github(
    settings: GitHubSettings,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        adapter = PyGithubAdapter(
            settings.model_copy(update={"web_url": nowhere, "api_url": f"{nowhere}/api/v3"})
        )
        try:
            with pytest.raises(GitHubUnavailable):
                await adapter.user(TOKEN)
            with pytest.raises(GitHubUnavailable):
                await adapter.installations()
            with pytest.raises(GitHubUnavailable):
                await adapter.exchange_code("code", "verifier", "http://127.0.0.1/back")
        finally:
            await adapter.aclose()


@pytest.mark.parametrize(
    ("status", "message", "headers", "wait"),
    [
        (403, "You have exceeded a secondary rate limit.", {"Retry_After": "7"}, 7),
        (403, "You have exceeded a secondary rate limit.", {}, errors.SECONDARY_LIMIT_WAIT),
        (429, "Too many requests", {"Retry_After": "3"}, 3),
    ],
)
async def test_a_rate_limit_says_how_long_to_wait_and_is_not_slept_through(
    github: PyGithubAdapter,
    server: Server,
    status: int,
    message: str,
    headers: dict[str, str],
    wait: int,
) -> None:
    server.always(status, {"message": message}, **headers)

    with pytest.raises(RateLimited) as failure:
        await github.user(TOKEN)

    assert failure.value.context["retry_after"] == wait
    assert len(server.seen) == 1


def test_an_exhausted_quota_lasts_until_it_starts_anew() -> None:
    reset = str(int(NOW.timestamp()) + 90)

    failure = errors.of_answer(
        403,
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset},
        {"message": "API rate limit exceeded for installation ID 3001."},
        now=NOW,
    )

    assert isinstance(failure, RateLimited)
    assert failure.context["retry_after"] == 91


async def test_a_refusal_carries_githubs_reasons(github: PyGithubAdapter, server: Server) -> None:
    problem = {"resource": "PullRequest", "code": "custom", "message": "No commits between main"}

    def answer(request: Request) -> Answer:
        if request.verb == "POST":
            return Answer(422, {"message": "Validation Failed", "errors": [problem]})
        return Answer(200, [])

    server.answer = answer

    with pytest.raises(InvalidInput) as failure:
        await github.create_pull_request(
            TOKEN, 9001, head="acme:door", base="main", title="Add a door", body=""
        )

    assert failure.value.context["errors"] == [problem]
    assert "No commits between main" in failure.value.message


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("FORBIDDEN", PermissionDenied),
        ("NOT_FOUND", NotFound),
        ("RATE_LIMITED", RateLimited),
        ("UNPROCESSABLE", InvalidInput),
    ],
)
def test_graphql_refuses_by_type(kind: str, expected: type[FoundryError]) -> None:
    status = 404 if kind == "NOT_FOUND" else 400  # as PyGithub reports them

    failure = errors.of_answer(status, {}, {"errors": [{"type": kind, "message": "No."}]}, now=NOW)

    assert type(failure) is expected


# -- nothing secret leaves -----------------------------------------------------


def everything_said(failure: BaseException, caplog: pytest.LogCaptureFixture) -> str:
    again = pickle.loads(pickle.dumps(failure))
    chained = [failure.__cause__, failure.__context__]
    return "\n".join(
        [
            str(failure),
            repr(failure),
            repr(vars(failure)),
            repr(vars(again)),
            "".join(traceback.format_exception(failure)),
            *[repr(vars(error)) for error in chained if error is not None],
            caplog.text,
        ]
    )


def echo(status: int) -> Callable[[Request], Answer]:
    """Answer like a careless proxy: with the credentials of the request."""

    def answer(request: Request) -> Answer:
        said = f"You sent {request.headers.get('Authorization')} and {request.body}"
        return Answer(status, {"message": said, "errors": [{"message": said}, said]})

    return answer


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500])
async def test_no_token_is_in_an_error_or_a_log_even_if_github_repeats_it(
    github: PyGithubAdapter,
    settings: GitHubSettings,
    server: Server,
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "github.Requester")
    server.answer = echo(status)
    back = "http://127.0.0.1/back"
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: github.user(TOKEN),
        lambda: github.create_pull_request(TOKEN, 1, head="a:b", base="main", title="t", body=""),
        lambda: github.installations(),
        lambda: github.exchange_code("the-sign-in-code", "the-verifier", back),
        lambda: github.configure_webhook("http://127.0.0.1/webhooks"),
    ]

    for call in calls:
        with pytest.raises(FoundryError) as failure:
            await call()
        said = everything_said(failure.value, caplog)
        assert TOKEN.get_secret_value() not in said
        assert settings.client_secret.get_secret_value() not in said
        assert settings.webhook_secret.get_secret_value() not in said
        assert "the-sign-in-code" not in said
        assert "eyJ" not in said, "the App's signed JWT"
        assert failure.value.__context__ is None, "a chained request holds its headers"


async def test_a_minted_token_is_in_no_log_and_no_repr(
    github: PyGithubAdapter, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "github.Requester")
    server.always(201, {"token": "fresh-installation-token", "expires_at": "2099-01-01T00:00:00Z"})

    minted = await github.installation_token(
        3001, repository_ids=[9001], permissions={"contents": "write"}
    )

    assert minted.token.get_secret_value() == "fresh-installation-token"
    assert "fresh-installation-token" not in repr(minted) + str(minted) + caplog.text
    assert server.seen[-1].json() == {
        "permissions": {"contents": "write"},
        "repository_ids": [9001],
    }


async def test_a_token_without_its_end_is_not_quoted_in_the_error(
    github: PyGithubAdapter, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.always(201, {"token": "fresh-installation-token", "expires_at": "tomorrow"})

    with pytest.raises(GitHubUnavailable) as failure:
        await github.installation_token(3001, repository_ids=None, permissions={"contents": "read"})

    assert "fresh-installation-token" not in everything_said(failure.value, caplog)


def test_settings_do_not_print_their_secrets(settings: GitHubSettings) -> None:
    printed = repr(settings) + str(settings) + settings.model_dump_json()

    for secret in (settings.app_key, settings.client_secret, settings.webhook_secret):
        assert secret.get_secret_value() not in printed


@pytest.mark.parametrize(
    "credential",
    [
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "ghs_short",
        "ghs_1234_eyJhbGciOi.J9-longer-than-forty.characters_are_possible",
        "github_pat_11ABCDEFG0123456789_abcdef",
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiI3In0.c2lnbmF0dXJl",
        "Bearer abcdefghijklmnop0123",
    ],
)
def test_anything_shaped_like_a_credential_is_blacked_out(credential: str) -> None:
    assert credential.split()[-1] not in errors.redact(f"before {credential} after")
    assert errors.redact("a token of the weather") == "a token of the weather"


def test_an_unusable_app_key_is_named_without_being_shown(settings: GitHubSettings) -> None:
    broken = settings.model_copy(update={"app_key": SecretStr("-----BEGIN nonsense")})

    with pytest.raises(Unauthenticated) as failure:
        app_auth(broken)

    assert "nonsense" not in str(failure.value)
