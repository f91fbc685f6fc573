"""The App, its installations and what their tokens may do; needs a forge process."""

from __future__ import annotations

import time
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from foundry_ray.core.clock import SystemClock

from .world import World


def test_a_github_client_finds_the_app_and_its_installation(world: World) -> None:
    integration = world.integration()
    app = integration.get_app()
    assert (app.slug, app.id) == ("foundry-demo", world.settings["github_app_id"])
    found = integration.get_org_installation("acme")
    assert [one.id for one in integration.get_installations()] == [found.id]
    assert integration.get_repo_installation("acme", "demo").id == found.id
    assert found.target_type == "Organization"
    assert world.app("GET", "/orgs/nobody/installation").status_code == 404


def _claims(**changes: Any) -> dict[str, Any]:
    now = int(SystemClock().now().timestamp())
    return {"iat": now - 30, "exp": now + 300} | {
        key: now + value if key in ("iat", "exp") else value for key, value in changes.items()
    }


@pytest.mark.parametrize("changes", [{"exp": -60}, {"exp": 3600}])
def test_a_jwt_that_lives_wrongly_is_refused(world: World, changes: dict[str, int]) -> None:
    key = Path(world.settings["github_app_key_file"]).read_text()
    claims = _claims(iss=str(world.settings["github_app_id"]), **changes)
    token = jwt.encode(claims, key, "RS256")
    assert world.rest(token, "GET", "/app").status_code == 401


def test_a_jwt_of_another_key_is_refused(world: World) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    claims = _claims(iss=str(world.settings["github_app_id"]))
    assert world.rest(jwt.encode(claims, key, "RS256"), "GET", "/app").status_code == 401


def test_an_installation_token_lasts_an_hour(world: World) -> None:
    access = world.integration().get_access_token(world.installation_id(), {"contents": "read"})
    left = access.expires_at.replace(tzinfo=UTC) - SystemClock().now()
    assert timedelta(minutes=58) < left <= timedelta(hours=1)
    assert access.permissions == {"contents": "read", "metadata": "read"}


def test_a_token_reaches_only_its_repositories(world: World) -> None:
    one, other = world.repository(), world.repository()
    token = world.installation_token(repository_ids=[one["id"]])
    assert world.rest(token, "GET", f"/repos/{one['full_name']}").status_code == 200
    assert world.rest(token, "GET", f"/repos/{other['full_name']}").status_code == 404
    assert world.rest(token, "GET", f"/repositories/{other['id']}").status_code == 404
    listed = world.rest(token, "GET", "/installation/repositories").json()
    assert [found["id"] for found in listed["repositories"]] == [one["id"]]
    assert listed["total_count"] == 1


def test_a_token_does_only_what_it_was_asked_for(world: World) -> None:
    made = world.repository()
    token = world.installation_token(permissions={"contents": "read"})
    path = f"/repos/{made['full_name']}"
    sha = world.rest(token, "GET", f"{path}/git/ref/heads/main").json()["object"]["sha"]
    body = {"ref": "refs/heads/x", "sha": sha}
    assert world.rest(token, "POST", f"{path}/git/refs", json=body).status_code == 403
    assert world.rest(token, "GET", f"{path}/pulls").status_code == 403
    assert world.rest(token, "GET", "/orgs/acme/members").status_code == 403


@pytest.mark.parametrize(
    "asked",
    [
        {"permissions": {"administration": "write"}},
        {"permissions": {"members": "write"}},
        {"repositories": ["nowhere"]},
        {"repository_ids": [1]},
    ],
)
def test_a_token_is_never_broader_than_its_installation(
    world: World, asked: dict[str, Any]
) -> None:
    path = f"/app/installations/{world.installation_id()}/access_tokens"
    assert world.app("POST", path, json=asked).status_code == 422


def test_a_person_reaches_through_the_app_what_both_may(world: World) -> None:
    ben, eve = world.user_token("ben"), world.user_token("eve")
    assert world.rest(ben, "GET", "/repos/acme/demo").status_code == 200
    assert world.rest(eve, "GET", "/repos/acme/demo").status_code == 404
    found = world.rest(ben, "GET", "/user/installations").json()
    assert [one["account"]["login"] for one in found["installations"]] == ["acme"]
    assert world.rest(eve, "GET", "/user/installations").json()["total_count"] == 0
    assert world.rest(ben, "GET", "/app").status_code == 401


def test_a_suspended_installation_gives_nothing(world: World) -> None:
    token = world.installation_token()
    path = f"/app/installations/{world.installation_id()}"
    assert world.app("PUT", f"{path}/suspended").status_code == 204
    try:
        assert world.rest(token, "GET", "/repos/acme/demo").status_code == 403
        assert world.app("POST", f"{path}/access_tokens", json={}).status_code == 403
        assert world.rest(world.user_token("ben"), "GET", "/repos/acme/demo").status_code == 404
    finally:
        assert world.app("DELETE", f"{path}/suspended").status_code == 204
    assert world.rest(token, "GET", "/repos/acme/demo").status_code == 200


def test_the_rate_limit_refuses_and_says_until_when(world: World) -> None:
    token = world.personal_token("eve")
    limit = world.admin("GET", "/state")["rate_limit"]
    world.admin("POST", "/rate-limit", {"limit": 1})
    try:
        assert world.rest(token, "GET", "/user").status_code == 200
        refused = world.rest(token, "GET", "/user")
        assert refused.status_code == 403
        assert refused.headers["X-RateLimit-Remaining"] == "0"
        assert int(refused.headers["X-RateLimit-Reset"]) > time.time() - 1  # noqa: TID251
    finally:
        world.admin("POST", "/rate-limit", {"limit": limit})
