"""People, organizations and signing in; needs a forge process."""

from __future__ import annotations

import pytest

from .world import CALLBACK, World


def test_a_person_signs_in_with_state_and_pkce(world: World) -> None:
    back = world.authorize(login="ben", state="s 1&x", scope="read:org user:email")
    assert back["state"] == "s 1&x"

    answer = world.exchange(code=back["code"], redirect_uri=CALLBACK)

    assert answer["token_type"] == "bearer"
    assert answer["access_token"].startswith("ghu_")
    me = world.rest(answer["access_token"], "GET", "/user")
    assert me.json()["login"] == "ben"
    assert me.json()["email"] == "ben@acme.example"
    assert me.headers["X-OAuth-Scopes"] == "read:org, user:email"


def test_a_code_works_once(world: World) -> None:
    code = world.authorize(login="ben")["code"]
    assert "access_token" in world.exchange(code=code)
    assert world.exchange(code=code)["error"] == "bad_verification_code"


def test_a_code_needs_the_verifier_of_its_challenge(world: World) -> None:
    assert world.user_token("ada").startswith("ghu_")
    back = world.authorize(login="ada", code_challenge="0" * 43, code_challenge_method="S256")
    refused = world.exchange(code=back["code"], code_verifier="something else")
    assert refused["error"] == "bad_verification_code"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"client_secret": "no"}, "incorrect_client_credentials"),
        ({"code": "no"}, "bad_verification_code"),
        ({"redirect_uri": "http://127.0.0.1:9/other"}, "redirect_uri_mismatch"),
    ],
)
def test_a_wrong_exchange_answers_200_with_an_error(
    world: World, wrong: dict[str, str], error: str
) -> None:
    fields = {"code": world.authorize(login="ben")["code"], **wrong}
    assert world.exchange(**fields)["error"] == error


def test_the_page_offers_every_person_and_a_way_back(world: World) -> None:
    query = {"client_id": world.settings["github_client_id"], "redirect_uri": CALLBACK}
    page = world.http.get(f"{world.forge.url}/login/oauth/authorize", params=query).text
    assert all(f'name="login" value="{login}"' in page for login in ("ada", "ben", "eve"))
    assert world.authorize(deny="1", state="s")["error"] == "access_denied"
    query["redirect_uri"] = "http://elsewhere.example/"
    elsewhere = world.http.get(f"{world.forge.url}/login/oauth/authorize", params=query)
    assert elsewhere.status_code == 400


def test_a_github_client_reads_people_and_their_organizations(world: World) -> None:
    github = world.github(world.user_token("ben"))
    me = github.get_user()
    assert (me.login, me.name, me.type) == ("ben", "Ben Okri", "User")
    assert [email.email for email in me.get_emails()] == ["ben@acme.example"]
    assert [org.login for org in me.get_orgs()] == ["acme"]
    membership = me.get_organization_membership("acme")
    assert (membership.role, membership.state) == ("member", "active")
    org = github.get_organization("ACME")
    assert [member.login for member in org.get_members(role="admin")] == ["ada"]
    assert [member.login for member in org.get_members(role="member")] == ["ben"]
    assert org.has_in_members(github.get_user("ada"))
    assert github.get_user_by_id(me.id).login == "ben"
    assert github.get_user("acme").id == org.id


def test_strangers_see_no_members(world: World) -> None:
    token = world.user_token("eve")
    assert world.rest(token, "GET", "/orgs/acme/members").json() == []
    assert world.rest(token, "GET", "/orgs/acme/memberships/ada").status_code == 403
    own = world.rest(world.user_token("ben"), "GET", "/orgs/acme/memberships/eve")
    assert own.status_code == 404


def test_an_unknown_token_is_refused(world: World) -> None:
    for path in ("/user", "/repos/acme/demo", "/app"):
        answered = world.rest("ghu_unknown", "GET", path)
        assert (answered.status_code, answered.json()["message"]) == (401, "Bad credentials")
    assert world.rest("", "GET", "/user").json()["message"] == "Requires authentication"


def test_an_unchanged_answer_costs_nothing(world: World) -> None:
    token = world.user_token("ben")
    first = world.rest(token, "GET", "/user")
    left = int(first.headers["X-RateLimit-Remaining"])
    again = world.rest(token, "GET", "/user", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    assert int(again.headers["X-RateLimit-Remaining"]) == left


def test_the_administration_needs_its_secret(world: World) -> None:
    answered = world.http.post(f"{world.forge.url}/-/users/ben/tokens")
    assert answered.status_code == 403
    assert world.http.get(f"{world.forge.url}/-/healthz").status_code == 200
