"""Needs: a local forge (its own process, real git, HTTP on loopback)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from foundry_ray.core.errors import (
    GitHubUnavailable,
    InvalidInput,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
)
from foundry_ray.integrations.github import webhook
from foundry_ray.integrations.github.base import GitHub, PullRequest
from foundry_ray.integrations.github.client import PyGithubAdapter
from foundry_ray.testing.forge.process import start_forge
from tests.helpers import eventually
from tests.integration.github.conftest import BACK, Consent, World

NAMES = [f"r{n:03}" for n in range(101)]

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def installation(github: PyGithubAdapter) -> int:
    return (await github.installation_for("acme")).id


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def demo(world: World) -> int:
    return int((await world.repository())["id"])


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def big(world: World) -> int:
    """The installation of an organization with more repositories than a page holds."""
    await world.admin("POST", "/orgs", {"login": "big", "owner": "ada"})
    installed = await world.admin("POST", "/accounts/big/installations", {"app": "foundry-demo"})
    await asyncio.gather(
        *(
            world.admin("POST", "/orgs/big/repositories", {"name": name, "files": {}})
            for name in NAMES
        )
    )
    return int(installed["id"])


async def test_the_adapter_is_the_port(github: PyGithubAdapter) -> None:
    port: GitHub = github

    assert port is github


# -- sign-in -------------------------------------------------------------------


async def test_a_person_signs_in_with_pkce(
    github: PyGithubAdapter, consent: Callable[[str], Awaitable[Consent]]
) -> None:
    given = await consent("ben")

    token = await github.exchange_code(given.code, given.verifier, BACK)
    user = await github.user(token.access_token)

    assert (user.login, user.name, user.email) == ("ben", "Ben Okri", "ben@acme.example")


async def test_a_code_works_once_and_only_with_its_verifier(
    github: PyGithubAdapter, consent: Callable[[str], Awaitable[Consent]]
) -> None:
    stolen, used = await consent("ada"), await consent("ada")
    await github.exchange_code(used.code, used.verifier, BACK)

    with pytest.raises(InvalidInput):
        await github.exchange_code(stolen.code, "another verifier", BACK)
    with pytest.raises(InvalidInput):
        await github.exchange_code(used.code, used.verifier, BACK)


async def test_a_wrong_client_secret_is_foundrys_fault(
    world: World, consent: Callable[[str], Awaitable[Consent]]
) -> None:
    settings = world.settings.model_copy(update={"client_secret": SecretStr("wrong")})
    adapter = PyGithubAdapter(settings)
    given = await consent("ada")

    with pytest.raises(Unauthenticated):
        await adapter.exchange_code(given.code, given.verifier, BACK)
    await adapter.aclose()


async def test_a_token_that_github_does_not_know_is_refused(github: PyGithubAdapter) -> None:
    with pytest.raises(Unauthenticated):
        await github.user(SecretStr("gho_nobody"))


async def test_a_person_sees_organizations_and_installations_with_the_role(
    github: PyGithubAdapter, ada: SecretStr, installation: int
) -> None:
    [acme] = await github.organizations(ada)
    [installed] = await github.user_installations(ada)

    assert (acme.login, acme.kind, acme.role) == ("acme", "organization", "admin")
    assert (installed.id, installed.account.id) == (installation, acme.id)


async def test_an_outsider_sees_neither(
    github: PyGithubAdapter, consent: Callable[[str], Awaitable[Consent]]
) -> None:
    given = await consent("eve")
    eve = (await github.exchange_code(given.code, given.verifier, BACK)).access_token

    assert await github.organizations(eve) == []
    assert await github.user_installations(eve) == []


# -- the App and its installations ---------------------------------------------


async def test_the_app_finds_its_installations(github: PyGithubAdapter, installation: int) -> None:
    found = {i.id: i for i in await github.installations()}[installation]

    assert (found.account.login, found.account.kind) == ("acme", "organization")
    assert not found.suspended
    assert found.permissions["contents"] == "write"
    assert (await github.installation_for("ACME")).id == installation
    assert await github.app_slug() == "foundry-demo"
    with pytest.raises(NotFound):
        await github.installation_for("eve")


async def test_a_wrong_app_key_is_refused(world: World) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    adapter = PyGithubAdapter(world.settings.model_copy(update={"app_key": SecretStr(pem)}))

    with pytest.raises(Unauthenticated):
        await adapter.installations()
    await adapter.aclose()


async def test_repositories_come_page_by_page(github: PyGithubAdapter, big: int) -> None:
    first = await github.repositories(big)
    second = await github.repositories(big, page=first.next_page or 0)

    assert (len(first.items), first.next_page, second.next_page) == (100, 2, None)
    assert sorted(r.name for r in [*first.items, *second.items]) == NAMES


async def test_a_repository_is_found_by_its_id(
    world: World, github: PyGithubAdapter, installation: int, demo: int
) -> None:
    found = await github.repository(installation, demo)

    assert found.full_name == "acme/demo"
    assert (found.owner_login, found.default_branch, found.private) == ("acme", "main", True)
    assert found.clone_url == f"{world.forge.url}/acme/demo.git"
    with pytest.raises(NotFound):
        await github.repository(installation, 987654321)


async def test_branches_tell_their_commits(
    world: World, github: PyGithubAdapter, ada: SecretStr, installation: int, demo: int
) -> None:
    sha = await world.branch("feature/shelf", ada)

    found = {b.name: b.sha for b in (await github.branches(installation, demo)).items}

    assert found["feature/shelf"] == sha
    assert "main" in found


async def test_a_token_of_an_installation_reaches_one_repository_only(
    world: World, github: PyGithubAdapter, installation: int, demo: int
) -> None:
    await world.admin("POST", "/orgs/acme/repositories", {"name": "secret"})
    token = await github.installation_token(
        installation, repository_ids=[demo], permissions={"contents": "read"}
    )
    headers = {"Authorization": f"Bearer {token.token.get_secret_value()}"}

    answers = [
        (await world.http.get(f"{world.forge.api_url}/repos/acme/{name}", headers=headers))
        for name in ("demo", "secret")
    ]

    assert [answer.status_code for answer in answers] == [200, 404]


async def test_a_token_never_exceeds_the_installation(
    github: PyGithubAdapter, installation: int, demo: int
) -> None:
    with pytest.raises(InvalidInput):
        await github.installation_token(
            installation, repository_ids=[demo], permissions={"administration": "write"}
        )
    with pytest.raises(InvalidInput):
        await github.installation_token(
            installation, repository_ids=[987654321], permissions={"contents": "read"}
        )
    with pytest.raises(NotFound):
        await github.installation_token(
            987654321, repository_ids=None, permissions={"contents": "read"}
        )


async def test_permission_is_what_github_says(
    github: PyGithubAdapter, installation: int, demo: int
) -> None:
    levels = {
        login: await github.permission(installation, demo, login)
        for login in ("ada", "ben", "eve", "nobody")
    }

    assert levels["ada"] == "admin"
    assert levels["ben"] in ("write", "read")
    assert (levels["eve"], levels["nobody"]) == ("none", "none")
    with pytest.raises(NotFound):
        await github.permission(installation, 987654321, "ada")


# -- pull requests -------------------------------------------------------------


async def test_a_pull_request_lives_from_creation_to_its_listing(
    world: World, github: PyGithubAdapter, ada: SecretStr, installation: int, demo: int
) -> None:
    sha = await world.branch("door", ada)
    assert await github.find_pull_request(ada, demo, "acme", "door") is None

    made = await github.create_pull_request(
        ada, demo, head="door", base="main", title="Add a door", body=""
    )
    changed = await github.update_pull_request(
        ada, demo, made.number, title="Add two doors", body="They open."
    )

    assert (made.state, made.head_sha, made.author_login, made.body) == ("open", sha, "ada", "")
    assert (made.repository_id, made.head_repository_id) == (demo, demo)
    assert made.url == f"{world.forge.url}/acme/demo/pull/{made.number}"
    assert (changed.title, changed.body, changed.id) == ("Add two doors", "They open.", made.id)
    assert await github.pull_request(installation, demo, made.number) == changed
    assert await github.find_pull_request(ada, demo, "Acme", "door") == changed
    listed = await github.pull_requests(installation, demo)
    assert changed in listed.items
    assert listed.next_page is None


async def test_creating_a_pull_request_twice_gives_the_same_one(
    world: World, github: PyGithubAdapter, ada: SecretStr, demo: int
) -> None:
    await world.branch("twice", ada)

    async def create(title: str) -> PullRequest:
        return await github.create_pull_request(
            ada, demo, head="acme:twice", base="main", title=title, body="x", draft=True
        )

    first, second = await create("Once"), await create("Twice")

    assert first == second
    assert first.state == "draft"


async def test_a_pull_request_without_commits_is_refused_with_the_reason(
    github: PyGithubAdapter, ada: SecretStr, demo: int
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await github.create_pull_request(
            ada, demo, head="main", base="main", title="Nothing", body=""
        )

    assert "No commits" in refusal.value.message
    assert refusal.value.context["status"] == 422


async def test_a_merged_pull_request_is_seen_as_merged(
    world: World, github: PyGithubAdapter, ada: SecretStr, installation: int, demo: int
) -> None:
    await world.branch("finished", ada)
    made = await github.create_pull_request(
        ada, demo, head="finished", base="main", title="Finished", body=""
    )

    answer = await world.http.put(
        f"{world.forge.api_url}/repos/acme/demo/pulls/{made.number}/merge",
        headers={"Authorization": f"Bearer {ada.get_secret_value()}"},
    )
    answer.raise_for_status()
    closed = (await github.pull_requests(installation, demo, state="closed")).items

    [merged] = [pull for pull in closed if pull.id == made.id]
    assert merged.state == "merged"
    assert merged.merge_commit_sha == answer.json()["sha"]
    assert merged.merged_at is not None
    assert await github.find_pull_request(ada, demo, "acme", "finished") is None


async def test_an_outsider_cannot_see_or_open_a_pull_request(
    github: PyGithubAdapter, consent: Callable[[str], Awaitable[Consent]], demo: int
) -> None:
    given = await consent("eve")
    eve = (await github.exchange_code(given.code, given.verifier, BACK)).access_token

    with pytest.raises((NotFound, PermissionDenied)):
        await github.create_pull_request(eve, demo, head="main", base="main", title="t", body="")
    with pytest.raises(NotFound):
        await github.find_pull_request(eve, demo, "acme", "main")


# -- webhooks ------------------------------------------------------------------


@dataclass
class Receiver:
    """Takes webhooks as Foundry's ingress would, and keeps them."""

    url: str = ""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def first(self, event: str) -> tuple[dict[str, str], bytes]:
        """Return the first webhook of this kind."""
        found = [one for one in self.got if one[0]["x-github-event"] == event]
        assert found
        return found[0]

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:]
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.got.append((headers, body))
        writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest_asyncio.fixture(loop_scope="session")
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with await asyncio.start_server(receiver.take, "127.0.0.1", 0) as server:
        receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/webhooks/github"
        yield receiver


async def test_a_webhook_is_signed_logged_and_delivered_again_under_its_guid(
    world: World,
    github: PyGithubAdapter,
    ada: SecretStr,
    receiver: Receiver,
    installation: int,
    demo: int,
) -> None:
    await github.configure_webhook(receiver.url)
    sha = await world.branch("told", ada)
    headers, body = await eventually(lambda: receiver.first("push"))

    assert webhook.verify(world.settings.webhook_secret, body, headers["x-hub-signature-256"])
    facts, payload = webhook.parse("push", headers["x-github-delivery"], body)
    assert (facts.installation_id, facts.repository_id) == (installation, demo)
    assert (facts.owner_login, facts.sender_login) == ("acme", "ada")
    push = webhook.push_of(payload)
    assert (push.ref, push.after, push.created) == ("refs/heads/told", sha, True)
    assert webhook.repository_of(payload).full_name == "acme/demo"

    async def logged() -> int:
        log, _ = await github.deliveries()
        found = [d for d in log if d.guid == facts.guid]
        assert [d.status_code for d in found] == [202]
        return found[0].id

    delivery_id: int = await eventually(logged)
    await github.redeliver(delivery_id)
    again = await eventually(
        lambda: [one for one in receiver.got if one[0]["x-github-delivery"] == facts.guid][1:]
    )

    assert again[0][1] == body
    assert json.loads(body)["ref"] == "refs/heads/told"

    async def attempts() -> bool:
        log, _ = await github.deliveries()
        return [d.redelivery for d in log if d.guid == facts.guid] == [True, False]

    seen: bool = await eventually(attempts)
    assert seen


async def test_a_pull_request_event_says_the_same_as_the_api(
    world: World,
    github: PyGithubAdapter,
    ada: SecretStr,
    receiver: Receiver,
    installation: int,
    demo: int,
) -> None:
    await github.configure_webhook(receiver.url)
    await world.branch("window", ada)
    made = await github.create_pull_request(
        ada, demo, head="window", base="main", title="Add a window", body="Light."
    )

    _, body = await eventually(lambda: receiver.first("pull_request"))
    facts, payload = webhook.parse("pull_request", "guid", body)

    assert facts.action == "opened"
    assert webhook.pull_request_of(payload) == made


async def test_the_delivery_log_goes_on_by_cursor(github: PyGithubAdapter, big: int) -> None:
    async def everything() -> list[int]:
        found: list[int] = []
        cursor: str | None = None
        while True:
            log, cursor = await github.deliveries(cursor)
            found += [delivery.id for delivery in log]
            if cursor is None:
                assert len(found) > len(NAMES)
                return found

    ids: list[int] = await eventually(everything)

    assert len(set(ids)) == len(ids), "each once"
    assert ids == sorted(ids, reverse=True), "newest first"


# -- trouble (a forge of its own) ----------------------------------------------


async def test_a_rate_limit_and_an_outage_pass(
    tmp_path_factory: pytest.TempPathFactory, world: World
) -> None:
    forge = await start_forge(tmp_path_factory.mktemp("gone"), seed=None)
    there = {"web_url": forge.url, "api_url": forge.api_url}
    github = PyGithubAdapter(world.settings.model_copy(update=there))
    token = SecretStr("gho_nobody")

    admin = {"X-Forge-Admin": forge.admin_secret}
    made = await world.http.post(f"{forge.url}/-/users", json={"login": "zoe"}, headers=admin)
    made.raise_for_status()
    given = await world.http.post(f"{forge.url}/-/users/zoe/tokens", json={}, headers=admin)
    token = SecretStr(given.json()["token"])
    assert (await github.user(token)).login == "zoe"

    await world.http.post(f"{forge.url}/-/rate-limit", json={"limit": 0}, headers=admin)
    with pytest.raises(RateLimited) as limited:
        await github.user(token)
    assert 0 < limited.value.context["retry_after"] <= 3601

    await forge.stop()
    with pytest.raises(GitHubUnavailable):
        await github.user(token)
    with pytest.raises(GitHubUnavailable):
        await github.exchange_code("code", "verifier", BACK)
    await github.aclose()
