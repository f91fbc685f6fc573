from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from foundry_ray.core.errors import InvalidInput
from foundry_ray.integrations.github import webhook
from tests.unit.integrations.github import payloads

SECRET = SecretStr("It's a Secret to Everybody")
BODY = b"Hello, World!"
# GitHub's own example, from "Validating webhook deliveries".
SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def test_the_signature_that_github_documents_is_accepted() -> None:
    assert webhook.verify(SECRET, BODY, SIGNATURE)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sha256=",
        SIGNATURE.removeprefix("sha256="),
        SIGNATURE.upper(),
        SIGNATURE[:-1] + "8",
        SIGNATURE + "0",
        "sha1=" + hmac.new(b"It's a Secret to Everybody", BODY, hashlib.sha1).hexdigest(),
        "sha256=sígnature",
    ],
)
def test_any_other_signature_is_refused(header: str | None) -> None:
    assert not webhook.verify(SECRET, BODY, header)


def test_a_signature_covers_every_byte_of_the_body() -> None:
    assert not webhook.verify(SECRET, BODY + b"\n", SIGNATURE)


def test_without_a_secret_nothing_is_proved() -> None:
    signature = "sha256=" + hmac.new(b"", BODY, hashlib.sha256).hexdigest()

    assert not webhook.verify(SecretStr(""), BODY, signature)


@pytest.mark.parametrize(
    "body", [b"", b"garbage", b"[]", b'"text"', b"null", b"\xff\xfe{}", b"[" * 200_000]
)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        webhook.parse("push", "guid", body)


def test_parse_finds_everything_that_routing_needs() -> None:
    facts, payload = webhook.parse("push", "g-1", json.dumps(payloads.push_event()).encode())

    assert facts == webhook.WebhookFacts(
        event="push",
        guid="g-1",
        action=None,
        installation_id=3001,
        organization_id=500,
        owner_id=500,
        owner_login="acme",
        repository_id=9001,
        sender_id=41,
        sender_login="ada",
    )
    assert payload["ref"] == "refs/heads/door"


def test_a_payload_without_organization_still_names_installation_and_owner() -> None:
    body = json.dumps(payloads.pull_request_event("closed")).encode()

    facts, _ = webhook.parse("pull_request", "g-2", body)

    assert facts.organization_id is None
    assert (facts.action, facts.installation_id, facts.owner_id) == ("closed", 3001, 500)


def test_the_owner_of_an_installation_event_is_its_account() -> None:
    body = json.dumps({"action": "created", "installation": payloads.installation()}).encode()

    facts, _ = webhook.parse("installation", "g-3", body)

    assert (facts.owner_id, facts.owner_login, facts.repository_id) == (500, "acme", None)


def test_a_ping_of_the_app_has_nobody_in_it() -> None:
    facts, _ = webhook.parse("ping", "g-4", b'{"zen": "Keep it logically awesome.", "hook": {}}')

    assert facts == webhook.WebhookFacts(event="ping", guid="g-4")


@pytest.mark.parametrize("wrong", ["12", True, 1.5, [1]])
def test_an_id_that_is_not_a_number_is_refused(wrong: object) -> None:
    body = json.dumps({"installation": {"id": wrong}}).encode()

    with pytest.raises(InvalidInput):
        webhook.parse("push", "g", body)


def test_a_pull_request_is_read_with_its_times_in_utc() -> None:
    pull = webhook.pull_request_of(payloads.pull_request_event())

    assert (pull.id, pull.number, pull.repository_id) == (77001, 12, 9001)
    assert (pull.state, pull.head_ref, pull.base_ref) == ("open", "door", "main")
    assert pull.updated_at == datetime(2024, 5, 1, 10, 0, tzinfo=UTC)
    assert pull.updated_at.tzinfo is UTC
    assert pull.merge_commit_sha is None, "GitHub's trial merge is not a merge"


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"draft": True}, "draft"),
        ({"state": "closed"}, "closed"),
        ({"state": "closed", "draft": True}, "closed"),
        ({"state": "closed", "merged": True, "merged_at": "2024-05-02T10:00:00Z"}, "merged"),
        ({"state": "closed", "merged_at": "2024-05-02T10:00:00Z"}, "merged"),
    ],
)
def test_the_state_of_a_pull_request_is_one_word(changes: dict[str, object], state: str) -> None:
    event = payloads.pull_request_event(pull_request=payloads.pull_request(**changes))

    assert webhook.pull_request_of(event).state == state


def test_a_merged_pull_request_has_its_merge_commit() -> None:
    merged = payloads.pull_request(state="closed", merged_at="2024-05-02T10:00:00Z")

    pull = webhook.pull_request_of(payloads.pull_request_event(pull_request=merged))

    assert pull.merge_commit_sha == "c" * 40
    assert pull.merged_at == datetime(2024, 5, 2, 10, tzinfo=UTC)


def test_a_pull_request_survives_what_github_leaves_out() -> None:
    bare = payloads.pull_request(
        user=None,
        body=None,
        head={"ref": "door", "sha": "a" * 40, "repo": None},
        base={"ref": "main", "sha": "b" * 40},
    )
    for optional in ("draft", "merged_at", "closed_at", "merge_commit_sha"):
        del bare[optional]

    pull = webhook.pull_request_of(payloads.pull_request_event(pull_request=bare))

    assert (pull.author_login, pull.body, pull.head_repository_id) == ("ghost", "", None)
    assert pull.repository_id == 9001


def test_a_fork_is_told_apart_by_the_head_repository() -> None:
    fork = payloads.pull_request(head={"ref": "door", "sha": "a" * 40, "repo": {"id": 666}})

    pull = webhook.pull_request_of(payloads.pull_request_event(pull_request=fork))

    assert pull.head_repository_id != pull.repository_id


def test_a_push_tells_which_ref_moved() -> None:
    push = webhook.push_of(payloads.push_event())

    assert push == webhook.PushFacts(
        ref="refs/heads/door",
        before="0" * 40,
        after="a" * 40,
        repository_id=9001,
        created=True,
        pusher_login="ada",
    )


def test_the_repository_of_a_push_has_numbers_for_times_and_a_named_owner() -> None:
    repository = webhook.repository_of(payloads.push_event())

    assert repository.pushed_at == datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert (repository.owner_id, repository.owner_login) == (500, "acme")


def test_a_suspended_installation_is_seen_as_such() -> None:
    suspended = payloads.installation(suspended_at="2024-05-01T10:00:00Z")

    found = webhook.installation_of({"action": "suspend", "installation": suspended})

    assert found.suspended
    assert (found.account.kind, found.account.login) == ("organization", "acme")


@pytest.mark.parametrize(
    ("payload", "added", "removed"),
    [
        ({"action": "created", "repositories": [{"id": 1}, {"id": 2}]}, [1, 2], []),
        ({"action": "deleted", "repositories": [{"id": 1}]}, [], [1]),
        (
            {
                "action": "removed",
                "repositories_added": [],
                "repositories_removed": [{"id": 3, "name": "demo"}],
            },
            [],
            [3],
        ),
        ({"action": "added", "repositories_added": [{"id": 4}]}, [4], []),
        ({"action": "created"}, [], []),
    ],
)
def test_repositories_that_come_and_go_with_an_installation(
    payload: dict[str, object], added: list[int], removed: list[int]
) -> None:
    assert webhook.repository_ids_of(payload) == (added, removed)


def test_a_payload_without_its_subject_is_refused_by_name() -> None:
    for read, subject in (
        (webhook.pull_request_of, "pull_request"),
        (webhook.repository_of, "repository"),
        (webhook.installation_of, "installation"),
        (webhook.push_of, "ref"),
    ):
        with pytest.raises(InvalidInput) as refusal:
            read({"action": "opened"})
        assert subject in refusal.value.context["missing"]


def test_the_bare_installation_of_other_events_is_not_an_installation() -> None:
    with pytest.raises(InvalidInput):
        webhook.installation_of(payloads.pull_request_event())
