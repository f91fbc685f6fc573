from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr

from foundry_ray.core.errors import GitHubUnavailable, InvalidInput, NotFound, Unauthenticated
from foundry_ray.integrations.github.base import GitHubSettings
from foundry_ray.integrations.github.client import PyGithubAdapter
from tests.unit.integrations.github import payloads
from tests.unit.integrations.github.conftest import Answer, Request, Server

ADA = SecretStr("token-of-ada")
USER = {"id": 41, "login": "ada", "name": "Ada", "email": None, "avatar_url": ""}


class Clock:
    def __init__(self) -> None:
        self.instant = datetime(2024, 5, 1, 10, tzinfo=UTC)

    def now(self) -> datetime:
        return self.instant


def routes(table: dict[tuple[str, str], Any]) -> Callable[[Request], Answer]:
    """Answer from (verb, path below the API root without query); anything else is 404."""

    def answer(request: Request) -> Answer:
        path = urlsplit(request.path).path.removeprefix("/api/v3")
        found = table.get((request.verb, path))
        if found is None:
            return Answer(404, {"message": "Not Found"})
        if callable(found):
            made = found(request)
            assert isinstance(made, Answer)
            return made
        return Answer(201 if request.verb == "POST" else 200, found)

    return answer


def tokens(clock: Clock) -> Callable[[Request], Answer]:
    """Mint numbered installation tokens that last an hour."""
    counter = iter(range(1, 100))

    def mint(request: Request) -> Answer:
        ends = (clock.instant + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
        return Answer(201, {"token": f"ghs_{next(counter)}", "expires_at": ends})

    return mint


MINT = ("POST", "/app/installations/3001/access_tokens")
DEMO = ("GET", "/repositories/9001")


async def test_an_installation_token_is_kept_until_five_minutes_before_its_end(
    settings: GitHubSettings, server: Server
) -> None:
    clock = Clock()
    server.answer = routes({MINT: tokens(clock), DEMO: payloads.repository()})
    github = PyGithubAdapter(settings, clock)

    def used() -> list[str]:
        return [r.headers["Authorization"] for r in server.seen if r.verb == "GET"]

    await github.repository(3001, 9001)
    clock.instant += timedelta(minutes=54)
    await github.repository(3001, 9001)
    assert used() == ["token ghs_1", "token ghs_1"]

    clock.instant += timedelta(minutes=1)
    await github.repository(3001, 9001)
    assert used()[-1] == "token ghs_2"
    await github.aclose()


async def test_reading_asks_for_reading_only(settings: GitHubSettings, server: Server) -> None:
    clock = Clock()
    server.answer = routes({MINT: tokens(clock), DEMO: payloads.repository()})
    github = PyGithubAdapter(settings, clock)

    await github.repository(3001, 9001)
    await github.aclose()

    asked = server.seen[0].json()["permissions"]
    assert asked
    assert set(asked.values()) == {"read"}


async def test_many_calls_at_once_mint_one_token_and_never_mix(
    settings: GitHubSettings, server: Server
) -> None:
    clock = Clock()

    def by_id(request: Request) -> Answer:
        return Answer(200, payloads.repository(id=int(request.path.rsplit("/", 1)[1])))

    ids = range(1, 31)
    server.answer = routes(
        {MINT: tokens(clock)} | {("GET", f"/repositories/{n}"): by_id for n in ids}
    )
    github = PyGithubAdapter(settings, clock)

    found = await asyncio.gather(*(github.repository(3001, n) for n in ids))
    await github.aclose()

    assert [repository.id for repository in found] == list(ids)
    assert sum(r.verb == "POST" for r in server.seen) == 1


async def test_a_refused_installation_token_is_not_used_again(
    settings: GitHubSettings, server: Server
) -> None:
    clock = Clock()

    def only_the_second(request: Request) -> Answer:
        if request.headers["Authorization"] == "token ghs_1":
            return Answer(401, {"message": "Bad credentials"})
        return Answer(200, payloads.repository())

    server.answer = routes({MINT: tokens(clock), DEMO: only_the_second})
    github = PyGithubAdapter(settings, clock)

    with pytest.raises(Unauthenticated):
        await github.repository(3001, 9001)
    assert (await github.repository(3001, 9001)).id == 9001
    await github.aclose()


@pytest.mark.parametrize(
    ("repository_ids", "permissions"), [(None, {}), ([], {"contents": "write"})]
)
async def test_a_token_for_everything_cannot_be_asked_for_by_accident(
    github: PyGithubAdapter,
    server: Server,
    repository_ids: list[int] | None,
    permissions: dict[str, str],
) -> None:
    with pytest.raises(InvalidInput):
        await github.installation_token(
            3001, repository_ids=repository_ids, permissions=permissions
        )

    assert server.seen == []


async def test_reads_are_repeated_after_a_hiccup_and_writes_are_not(
    settings: GitHubSettings, server: Server
) -> None:
    github = PyGithubAdapter(settings.model_copy(update={"retries": 2}))
    server.answer = lambda request: Answer(502, "") if len(server.seen) == 1 else Answer(200, USER)

    assert (await github.user(ADA)).login == "ada"
    assert len(server.seen) == 2

    server.seen.clear()
    server.always(502, "")
    with pytest.raises(GitHubUnavailable):
        await github.redeliver(5)
    assert len(server.seen) == 1
    await github.aclose()


async def test_a_call_ends_when_its_time_is_up_and_the_next_one_works(
    settings: GitHubSettings, server: Server
) -> None:
    github = PyGithubAdapter(settings.model_copy(update={"timeout": 1}))
    go = threading.Event()
    server.answer = lambda request: Answer(200, USER, wait=go)

    with pytest.raises(GitHubUnavailable) as failure:
        await github.user(ADA)
    go.set()

    assert failure.value.retryable
    assert (await github.user(ADA)).login == "ada"
    await github.aclose()


async def test_a_cancelled_caller_does_not_disturb_the_next_one(
    github: PyGithubAdapter, server: Server
) -> None:
    go, arrived = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def answer(request: Request) -> Answer:
        loop.call_soon_threadsafe(arrived.set)
        return Answer(200, USER, wait=go)

    server.answer = answer
    first = asyncio.create_task(github.user(ADA))
    await arrived.wait()
    second = asyncio.create_task(github.user(ADA))
    first.cancel()
    go.set()

    assert (await second).login == "ada"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_closed_adapter_says_so(settings: GitHubSettings) -> None:
    github = PyGithubAdapter(settings)
    await github.aclose()

    with pytest.raises(GitHubUnavailable):
        await github.user(ADA)


async def test_an_empty_token_is_nobody(github: PyGithubAdapter, server: Server) -> None:
    with pytest.raises(Unauthenticated):
        await github.user(SecretStr(""))

    assert server.seen == []


async def test_organizations_come_without_role_when_members_may_not_be_read(
    github: PyGithubAdapter, server: Server
) -> None:
    forbidden = Answer(403, {"message": "Resource not accessible by integration"})
    server.answer = routes(
        {
            ("GET", "/user/memberships/orgs"): lambda request: forbidden,
            ("GET", "/user/orgs"): [payloads.ORGANIZATION],
        }
    )

    [acme] = await github.organizations(ADA)

    assert (acme.login, acme.kind, acme.role) == ("acme", "organization", "member")


async def test_every_page_of_a_persons_installations_is_read(
    github: PyGithubAdapter, server: Server
) -> None:
    def page(request: Request) -> Answer:
        number = int(parse_qs(urlsplit(request.path).query)["page"][0])
        items = [payloads.installation(id=3000 + number)]
        link = f'<{server.url}/api/v3/user/installations?page={number + 1}>; rel="next"'
        return Answer(200, {"installations": items}, {"Link": link} if number < 3 else {"Link": ""})

    server.answer = routes({("GET", "/user/installations"): page})

    assert [i.id for i in await github.user_installations(ADA)] == [3001, 3002, 3003]


async def test_the_delivery_log_is_read_by_cursor(github: PyGithubAdapter, server: Server) -> None:
    entry = {
        "id": 12345678901234567,
        "guid": "0b989ba4-242f-11e5-81e1-c7b6966d2516",
        "delivered_at": "2024-05-01T10:00:00Z",
        "redelivery": False,
        "status": "OK",
        "status_code": 202,
        "event": "push",
        "action": None,
        "installation_id": 3001,
        "repository_id": 9001,
    }

    def page(request: Request) -> Answer:
        if "cursor" in parse_qs(urlsplit(request.path).query):
            return Answer(200, [])
        link = f'<{server.url}/api/v3/app/hook/deliveries?per_page=100&cursor=v1_99>; rel="next"'
        return Answer(200, [entry], {"Link": link})

    server.answer = routes({("GET", "/app/hook/deliveries"): page})

    [delivery], cursor = await github.deliveries()

    assert (delivery.id, delivery.event, delivery.action) == (12345678901234567, "push", None)
    assert cursor == "v1_99"
    assert await github.deliveries(cursor) == ([], None)


async def test_the_webhook_is_configured_with_our_secret(
    github: PyGithubAdapter, server: Server, settings: GitHubSettings
) -> None:
    server.answer = routes({("PATCH", "/app/hook/config"): {}})

    await github.configure_webhook("https://foundry.test/webhooks/github")

    assert server.seen[0].json() == {
        "url": "https://foundry.test/webhooks/github",
        "content_type": "json",
        "insecure_ssl": "0",
        "secret": settings.webhook_secret.get_secret_value(),
    }


async def test_a_pull_request_that_exists_already_is_returned(
    github: PyGithubAdapter, server: Server
) -> None:
    refusal = Answer(422, {"message": "Validation Failed", "errors": [{"code": "custom"}]})
    fork = payloads.pull_request(
        number=13, head={"ref": "door", "sha": "d" * 40, "repo": {"id": 666}}
    )
    server.answer = routes(
        {
            ("POST", "/repositories/9001/pulls"): lambda request: refusal,
            ("GET", "/repositories/9001/pulls"): [fork, payloads.pull_request()],
            DEMO: payloads.repository(),
        }
    )

    found = await github.create_pull_request(
        ADA, 9001, head="door", base="main", title="Add a door", body=""
    )

    assert found.number == 12
    query = parse_qs(urlsplit(server.seen[-1].path).query)
    assert (query["head"], query["base"], query["state"]) == (["acme:door"], ["main"], ["open"])


async def test_a_forks_pull_request_is_never_found(github: PyGithubAdapter, server: Server) -> None:
    fork = payloads.pull_request(head={"ref": "door", "sha": "d" * 40, "repo": {"id": 666}})
    server.answer = routes({("GET", "/repositories/9001/pulls"): [fork]})

    assert await github.find_pull_request(ADA, 9001, "acme", "door") is None


async def test_an_update_sends_only_what_is_given(github: PyGithubAdapter, server: Server) -> None:
    path = "/repositories/9001/pulls/12"
    server.answer = routes(
        {("GET", path): payloads.pull_request(), ("PATCH", path): payloads.pull_request()}
    )

    await github.update_pull_request(ADA, 9001, 12, title="Add two doors")

    [patch] = [r for r in server.seen if r.verb == "PATCH"]
    assert patch.json() == {"title": "Add two doors"}


async def test_a_draft_is_made_ready_through_graphql(
    github: PyGithubAdapter, server: Server
) -> None:
    draft = {"draft": True, "node_id": "PR_12"}

    def graphql(request: Request) -> Answer:
        draft["draft"] = False
        return Answer(
            200,
            {"data": {"markPullRequestReadyForReview": {"pullRequest": {"isDraft": False}}}},
        )

    path = "/repositories/9001/pulls/12"
    server.answer = routes(
        {
            ("GET", path): lambda request: Answer(200, payloads.pull_request(**draft)),
            ("POST", "/api/graphql"): graphql,
        }
    )

    pull = await github.update_pull_request(ADA, 9001, 12, draft=False)

    assert pull.state == "open"
    [mutation] = [r for r in server.seen if r.verb == "POST"]
    assert "markPullRequestReadyForReview" in mutation.json()["query"]
    assert mutation.json()["variables"] == {"input": {"pullRequestId": "PR_12"}}


async def test_nobody_has_no_permission_but_a_missing_repository_is_missing(
    settings: GitHubSettings, server: Server
) -> None:
    clock = Clock()
    table: dict[tuple[str, str], Any] = {MINT: tokens(clock), DEMO: payloads.repository()}
    server.answer = routes(table)
    github = PyGithubAdapter(settings, clock)

    assert await github.permission(3001, 9001, "nobody") == "none"
    del table[DEMO]
    with pytest.raises(NotFound):
        await github.permission(3001, 9001, "nobody")
    await github.aclose()
