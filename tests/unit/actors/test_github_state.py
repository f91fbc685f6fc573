"""GitHub state: what webhooks and reads make of the mirror."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from foundry_ray.actors.app_shell.messages import InstallationSeen, SignInFailed
from foundry_ray.actors.github_state import steps
from foundry_ray.actors.github_state.actor import GitHubStateActor
from foundry_ray.actors.github_state.messages import (
    ConnectGitHub,
    MintCredential,
    PublishPullRequest,
    ReceiveDelivery,
    RecoverDeliveries,
    SignInUser,
    SyncGitHub,
)
from foundry_ray.actors.github_state.tables import MirrorState
from foundry_ray.actors.repository.messages import (
    PullRequestChanged,
    RefsChanged,
    RepositoryDescribed,
)
from foundry_ray.actors.sandbox_instance.messages import CredentialReady, CredentialRefused
from foundry_ray.actors.task.messages import PublishFailed
from foundry_ray.actors.user_github_data.messages import IdentityObtained
from foundry_ray.core import keys
from foundry_ray.core.errors import GitHubUnavailable, InvalidInput, WrongState
from foundry_ray.core.facts import AccountFacts, ConnectedAccount, RefFacts
from foundry_ray.core.secrets import fingerprint
from tests.unit.actors.kit import ANN, NOW, Scene, all_of, begun, only, shown, told
from tests.unit.actors.test_repository import FACTS, pull_request
from tests.unit.integrations.github import payloads

KEY = keys.github(500)
DEMO = keys.repository(500, 9001)
ACCOUNT = AccountFacts(id="500", login="acme", kind="organization")
CONNECT = ConnectGitHub(account=ACCOUNT, installation_id="3001")
DEMO_FACTS = FACTS.model_copy(update={"id": "9001", "full_name": "acme/demo", "name": "demo"})


def mirror(key: str = KEY) -> Scene:
    return Scene(GitHubStateActor, key, MirrorState(key, None, {}, {}))


def connected(*repositories: str) -> Scene:
    """Return a mirror that has read these repositories."""
    scene = mirror()
    scene.when(CONNECT)
    found = [DEMO_FACTS.model_copy(update={"id": r}) for r in repositories or ("9001",)]
    scene.finish(steps.RepositoriesRead(repositories=found, next_page=None))
    while scene.runs:
        [run] = scene.runs.values()
        if run.step == "list-branches":
            scene.finish(steps.BranchesRead(refs=[]))
        else:
            scene.finish(steps.PullRequestsRead(pull_requests=[]))
    return scene


def delivery(event: str, payload: dict[str, Any], guid: str = "g1") -> ReceiveDelivery:
    return ReceiveDelivery(guid=guid, event=event, action=payload.get("action"), payload=payload)


def pull(action: str = "opened", **changes: Any) -> ReceiveDelivery:
    described = payloads.pull_request(**changes)
    return delivery("pull_request", payloads.pull_request_event(action, pull_request=described))


def outcome(scene: Scene) -> str:
    [row] = [row for _, row in scene.turn.effects.rows if hasattr(row, "outcome")]
    return str(row.outcome)


# -- installation and sync ------------------------------------------------------------


def test_a_first_installation_begins_a_sync_and_the_same_one_does_not() -> None:
    scene = mirror()

    assert begun(scene.when(CONNECT)) == ["list-repositories"]
    assert begun(scene.when(CONNECT)) == [], "one is under way; it is followed by another"
    scene = connected()
    assert begun(scene.when(CONNECT)) == []
    other = CONNECT.model_copy(update={"installation_id": "3002"})
    assert begun(scene.when(other)) == ["list-repositories"]


def test_without_an_installation_nothing_is_read() -> None:
    scene = mirror()

    turn = scene.when(ConnectGitHub(account=ACCOUNT))

    assert begun(turn) == []
    assert scene.state.row.installation_status == "install_required"
    with scene.refuses(WrongState, SyncGitHub()):
        pass


def test_a_sync_goes_page_by_page_then_repository_by_repository() -> None:
    scene = mirror()
    way = begun(scene.when(CONNECT))

    def page(*ids: str, next_page: int | None) -> steps.RepositoriesRead:
        found = [DEMO_FACTS.model_copy(update={"id": i}) for i in ids]
        return steps.RepositoriesRead(repositories=found, next_page=next_page)

    way += begun(scene.finish(page("10", next_page=2)))
    way += begun(scene.finish(page("9", next_page=None)))
    assert len(all_of(scene.turn, RepositoryDescribed)) == 1
    for _ in range(2):
        refs = [RefFacts(name="main", sha="1")]
        way += begun(scene.finish(steps.BranchesRead(refs=refs)))
        assert only(scene.turn, RefsChanged).whole
        way += begun(scene.finish(steps.PullRequestsRead(pull_requests=[])))

    once = ["list-branches", "list-pull-requests"]
    assert way == ["list-repositories"] * 2 + once * 2
    row = scene.state.row
    assert (row.sync_status, row.sync_done, row.sync_total) == ("synced", 4, 4)
    assert row.last_sync_at == NOW
    assert scene.runs == {}


def test_a_repository_that_a_sync_does_not_see_is_gone() -> None:
    scene = connected("1", "2")
    scene.when(SyncGitHub())

    turn = scene.finish(
        steps.RepositoriesRead(
            repositories=[DEMO_FACTS.model_copy(update={"id": "2"})], next_page=None
        )
    )

    assert told(turn) == [(keys.repository(500, 1), RepositoryDescribed(facts=None))]
    assert list(scene.state.repositories) == ["2"]


def test_who_asks_for_a_sync_while_one_runs_shares_one_more() -> None:
    scene = mirror()
    scene.when(CONNECT, SyncGitHub(), SyncGitHub())
    assert len(scene.runs) == 1

    turn = scene.finish(steps.RepositoriesRead(repositories=[], next_page=None))

    assert begun(turn) == ["list-repositories"]
    scene.finish(steps.RepositoriesRead(repositories=[], next_page=None))
    assert scene.runs == {}


def test_a_sync_that_fails_shows_it_and_keeps_what_was_read() -> None:
    scene = connected()
    scene.when(SyncGitHub())
    [run] = scene.runs.values()

    scene.turn.fail(run.id, GitHubUnavailable())

    row = scene.state.row
    assert (row.sync_status, row.sync_error["code"]) == ("error", "github_unavailable")
    assert list(scene.state.repositories) == ["9001"]
    assert begun(scene.when(SyncGitHub())) == ["list-repositories"]


# -- webhooks -------------------------------------------------------------------------


def test_a_pull_request_is_kept_shown_and_passed_on() -> None:
    scene = connected()

    turn = scene.when(pull())

    assert outcome(scene) == "applied"
    [(target, message)] = told(turn)
    assert target == DEMO
    assert isinstance(message, PullRequestChanged)
    assert (message.action, message.guid, message.by and message.by.login) == (
        "opened",
        "g1",
        "ada",
    )
    assert len(shown(turn, "pull_request")) == 1
    assert scene.state.row.last_webhook_event == "pull_request.opened"


def test_news_that_come_late_do_not_undo_newer_ones() -> None:
    scene = connected()
    scene.when(pull("closed", merged_at="2024-05-01T11:00:00Z", state="closed",
                    updated_at="2024-05-01T11:00:00Z"))  # fmt: skip
    assert scene.state.pull_request("9001", 12).state == "merged"

    for late in ("2024-05-01T10:59:59Z", "2024-05-01T11:00:00Z", "2024-05-01T11:00:05Z"):
        turn = scene.when(pull("synchronize", updated_at=late))
        assert told(turn) == []
        assert outcome(scene) == "known"

    assert scene.state.pull_request("9001", 12).state == "merged"


def test_a_closed_pull_request_can_be_opened_again() -> None:
    scene = connected()
    scene.when(pull("closed", state="closed", updated_at="2024-05-01T11:00:00Z"))

    scene.when(pull("reopened", updated_at="2024-05-01T11:00:01Z"))

    assert scene.state.pull_request("9001", 12).state == "open"


def test_a_pull_request_of_a_fork_that_is_gone_is_kept_too() -> None:
    scene = connected()

    scene.when(pull(head={"ref": "door", "sha": "a" * 40, "repo": None}))

    assert scene.state.pull_request("9001", 12).head_repository_id is None


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("ping", {}),
        ("star", {"action": "created"}),
        ("pull_request", {"action": "opened"}),
        ("pull_request", payloads.pull_request_event(pull_request=None)),
        ("push", {"ref": "refs/heads/x"}),
        ("push", payloads.push_event(ref="refs/tags/v1")),
        ("delete", {"ref_type": "tag", "ref": "v1"}),
        ("push", payloads.push_event(repository=payloads.repository(id=1))),
        ("repository", {"action": "deleted", "repository": payloads.repository(id=1)}),
    ],
)
def test_what_is_odd_or_nobodys_is_recorded_and_ignored(
    event: str, payload: dict[str, Any]
) -> None:
    scene = connected()

    turn = scene.when(delivery(event, payload))

    assert outcome(scene).startswith("ignored")
    assert told(turn) == []


def test_a_push_and_a_deletion_move_a_branch() -> None:
    scene = connected()

    turn = scene.when(delivery("push", payloads.push_event()))
    assert only(turn, RefsChanged).refs == [RefFacts(name="door", sha="a" * 40)]
    turn = scene.when(delivery("push", payloads.push_event(deleted=True, after="0" * 40)))
    assert only(turn, RefsChanged).refs == [RefFacts(name="door", sha="")]
    gone = {"ref": "door", "ref_type": "branch", "repository": payloads.repository()}
    turn = scene.when(delivery("delete", gone))
    assert only(turn, RefsChanged).refs == [RefFacts(name="door", sha="")]


def test_a_repository_is_renamed_and_goes() -> None:
    scene = connected()
    renamed = {"action": "renamed", "repository": payloads.repository(full_name="acme/new")}

    turn = scene.when(delivery("repository", renamed))
    described = only(turn, RepositoryDescribed).facts
    assert described is not None
    assert described.full_name == "acme/new"
    gone = {"action": "deleted", "repository": payloads.repository()}
    turn = scene.when(delivery("repository", gone))

    assert told(turn) == [(DEMO, RepositoryDescribed(facts=None))]
    assert outcome(connected_after(scene, gone)) == "ignored", "known already"


def connected_after(scene: Scene, payload: dict[str, Any]) -> Scene:
    scene.when(delivery("repository", payload, "g2"))
    return scene


def installation(action: str) -> ReceiveDelivery:
    return delivery("installation", {"action": action, "installation": payloads.installation()})


def test_an_installation_that_is_suspended_or_removed_ends_what_needs_it() -> None:
    scene = connected()

    scene.when(installation("suspend"))
    assert scene.state.row.installation_status == "suspended"
    assert begun(scene.when(delivery("installation_repositories", {"action": "added"}))) == []
    assert begun(scene.when(installation("unsuspend"))) == ["list-repositories"]
    scene.when(installation("deleted"))

    assert scene.state.row.installation_status == "install_required"
    with scene.refuses(WrongState, SyncGitHub()):
        pass


def test_more_repositories_are_read() -> None:
    scene = connected()

    turn = scene.when(delivery("installation_repositories", {"action": "added"}))

    assert begun(turn) == ["list-repositories"]


def test_an_installation_on_an_unknown_account_is_passed_on_to_the_application() -> None:
    scene = mirror()

    turn = scene.when(installation("created"))

    [(target, message)] = told(turn)
    assert target == keys.APP
    assert isinstance(message, InstallationSeen)
    assert (message.account.login, message.installation_id) == ("acme", "3001")


# -- credentials and pull requests --------------------------------------------------------


TASK = keys.task(DEMO, "t1")
SANDBOX = keys.sandbox(500, "local", "b1")
MINT = MintCredential(
    repository_id="9001", access="write", person=ANN, reply_to=SANDBOX, purpose="push/1"
)
PUBLISH = PublishPullRequest(
    task_key=TASK,
    repository_id="9001",
    head="door",
    base="main",
    title=None,
    body=None,
    default_title="t",
    default_body="b",
    draft=None,
    person=ANN,
)


def test_a_credential_lies_sealed_and_only_its_name_is_told() -> None:
    scene = connected()
    assert begun(scene.when(MINT)) == ["mint-credential"]
    expiry = NOW + timedelta(hours=1)

    turn = scene.finish(steps.Minted(sealed_token="sealed", expires_at=expiry))

    [(_, secret)] = turn.effects.rows
    assert (secret.sealed, secret.expires_at) == ("sealed", expiry)
    assert told(turn) == [(SANDBOX, CredentialReady(purpose="push/1", secret_id=secret.id))]


def test_a_credential_that_cannot_be_had_is_refused_to_who_asked() -> None:
    for scene, message in (
        (mirror(), MINT),
        (connected(), MINT.model_copy(update={"repository_id": "1"})),
    ):
        turn = scene.when(message)
        assert begun(turn) == []
        refused = only(turn, CredentialRefused)
        assert (refused.purpose, refused.error.code) == ("push/1", "permission_denied")
    scene = connected()
    scene.when(MINT)
    [run] = scene.runs.values()
    scene.turn = scene._turn(None)
    scene.turn.fail(run.id, GitHubUnavailable())
    assert only(scene.turn, CredentialRefused).error.code == "github_unavailable"
    assert scene.runs == {}


def test_a_published_pull_request_is_news_for_its_task() -> None:
    scene = connected()
    assert begun(scene.when(PUBLISH)) == ["publish-pull-request"]
    facts = pull_request(repository_id="9001", head_repository_id="9001")

    turn = scene.finish(steps.Published(pull_request=facts))
    assert only(turn, PullRequestChanged).action == "published"
    scene.when(PUBLISH)
    turn = scene.finish(steps.Published(pull_request=facts))

    assert only(turn, PullRequestChanged).pull_request == facts, "the task waits for it"


def test_a_pull_request_that_cannot_be_published_is_told() -> None:
    turn = mirror().when(PUBLISH)
    assert only(turn, PublishFailed).error.code == "permission_denied"

    scene = connected()
    scene.when(PUBLISH)
    [run] = scene.runs.values()
    scene.turn = scene._turn(None)
    scene.turn.fail(run.id, InvalidInput("No commits."))
    assert told(scene.turn)[-1][0] == TASK
    assert only(scene.turn, PublishFailed).error.message == "No commits."


# -- people ---------------------------------------------------------------------------


SIGN_IN = SignInUser(state="state", sealed_code="sealed", redirect_uri="http://x")


def test_a_sign_in_ends_at_the_persons_own_data() -> None:
    scene = mirror(keys.APP_GITHUB)
    assert begun(scene.when(SIGN_IN)) == ["exchange-code"]
    turn = scene.finish(steps.Exchanged(sealed_token="s1", expires_at=None, scopes=[]))
    assert begun(turn) == ["read-person"]

    turn = scene.finish(
        steps.PersonRead(
            person=ANN,
            avatar_url="",
            accounts=[ConnectedAccount(account=ACCOUNT)],
            sealed_token="s2",
        )
    )

    [(target, message)] = told(turn)
    assert target == keys.user("7")
    assert isinstance(message, IdentityObtained)
    assert message.state_hash == fingerprint("state")
    kept = [(row.id, row.sealed) for kind, row in turn.effects.rows if kind == "put"]
    assert kept == [(steps.user_secret("7"), "s2")]


def test_a_sign_in_that_fails_is_told_to_the_application() -> None:
    scene = mirror(keys.APP_GITHUB)
    scene.when(SIGN_IN)
    [run] = scene.runs.values()
    scene.turn = scene._turn(None)

    scene.turn.fail(run.id, InvalidInput("The code is used."))

    failed = only(scene.turn, SignInFailed)
    assert (failed.state_hash, failed.code) == (fingerprint("state"), "invalid_input")
    assert scene.runs == {}


def test_missed_deliveries_are_asked_for_again() -> None:
    scene = mirror(keys.APP_GITHUB)

    assert begun(scene.when(RecoverDeliveries())) == ["recover-deliveries"]
    scene.finish(steps.Recovered(redelivered=3))

    assert scene.runs == {}
