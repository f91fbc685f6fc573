from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from foundry_ray.core.errors import (
    FoundryError,
    GitHubUnavailable,
    InvalidInput,
    RateLimited,
    Unauthenticated,
)
from foundry_ray.integrations.github.base import GitHubSettings
from foundry_ray.integrations.github.client import PyGithubAdapter
from tests.unit.integrations.github.conftest import Server

BACK = "http://127.0.0.1:4000/auth/callback?next=/a b"


class StoppedClock:
    instant = datetime(2024, 5, 1, 10, tzinfo=UTC)

    def now(self) -> datetime:
        return self.instant


async def test_the_sign_in_page_gets_state_challenge_and_way_back(
    github: PyGithubAdapter, server: Server
) -> None:
    url = github.authorize_url(
        state="st&te", code_challenge="challenge", redirect_uri=BACK, login="ada"
    )

    assert url.startswith(f"{server.url}/login/oauth/authorize?")
    assert parse_qs(urlsplit(url).query) == {
        "client_id": ["Iv1.client"],
        "redirect_uri": [BACK],
        "state": ["st&te"],
        "code_challenge": ["challenge"],
        "code_challenge_method": ["S256"],
        "login": ["ada"],
    }


async def test_the_install_page_can_name_the_account(
    github: PyGithubAdapter, server: Server
) -> None:
    base = f"{server.url}/apps/foundry-demo/installations/new"

    assert github.install_url() == base
    assert github.install_url(500) == f"{base}/permissions?target_id=500"


async def test_a_code_becomes_a_token(settings: GitHubSettings, server: Server) -> None:
    server.always(
        200,
        {
            "access_token": "user-token",
            "expires_in": 28800,
            "refresh_token": "refresh-token",
            "scope": "read:org,repo",
            "token_type": "bearer",
        },
    )
    adapter = PyGithubAdapter(settings, StoppedClock())

    token = await adapter.exchange_code("code", "verifier", BACK)
    await adapter.aclose()

    assert token.access_token.get_secret_value() == "user-token"
    assert token.refresh_token is not None
    assert token.expires_at == StoppedClock.instant + timedelta(hours=8)
    assert token.scopes == ["read:org", "repo"]
    assert parse_qs(server.seen[0].body) == {
        "client_id": ["Iv1.client"],
        "client_secret": [settings.client_secret.get_secret_value()],
        "code": ["code"],
        "code_verifier": ["verifier"],
        "redirect_uri": [BACK],
    }
    assert "?" not in server.seen[0].path, "secrets travel in the body only"


async def test_a_token_that_does_not_expire_has_no_end(
    github: PyGithubAdapter, server: Server
) -> None:
    server.always(200, {"access_token": "user-token", "scope": "", "token_type": "bearer"})

    token = await github.exchange_code("code", "verifier", BACK)

    assert (token.expires_at, token.refresh_token, token.scopes) == (None, None, [])


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {"error": "bad_verification_code", "error_description": "Expired."}, InvalidInput),
        (200, {"error": "redirect_uri_mismatch"}, InvalidInput),
        (400, {"error": "bad_verification_code"}, InvalidInput),
        (200, {"error": "incorrect_client_credentials"}, Unauthenticated),
        (404, "Not Found", Unauthenticated),
        (429, {"message": "slow down"}, RateLimited),
        (503, "<html>Unicorn!</html>", GitHubUnavailable),
        (200, "<html>Unicorn!</html>", GitHubUnavailable),
        (200, {"token_type": "bearer"}, GitHubUnavailable),
    ],
)
async def test_a_refused_sign_in_says_whose_turn_it_is(
    github: PyGithubAdapter,
    server: Server,
    status: int,
    body: object,
    expected: type[FoundryError],
) -> None:
    server.always(status, body)

    with pytest.raises(FoundryError) as failure:
        await github.exchange_code("code", "verifier", BACK)

    assert type(failure.value) is expected
