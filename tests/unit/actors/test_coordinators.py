"""Organization, application, user, history, status sync."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from foundry_ray.actors.app_shell.actor import SESSION_LIFE, SIGN_IN_LIFE, AppShellOrganization
from foundry_ray.actors.app_shell.messages import (
    BeginSignIn,
    ClearAppIssues,
    CompleteSignIn,
    CreateToken,
    DeleteToken,
    InstallationSeen,
    SignInFailed,
    SignInSucceeded,
    SignOut,
)
from foundry_ray.actors.app_shell.tables import AppState
from foundry_ray.actors.github_state.messages import ConnectGitHub, SignInUser
from foundry_ray.actors.history.actor import HistoryActor
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.actors.organization.actor import OrganizationActor
from foundry_ray.actors.organization.messages import (
    ClearIssues,
    ConnectOrganization,
    RepositoryIndexed,
    TaskIndexed,
)
from foundry_ray.actors.organization.tables import OrganizationState
from foundry_ray.actors.session_status_sync.actor import SessionStatusSyncActor
from foundry_ray.actors.session_status_sync.messages import EndFollowing, FollowTurn
from foundry_ray.actors.session_status_sync.steps import Followed
from foundry_ray.actors.session_status_sync.tables import SyncState
from foundry_ray.actors.task_session.messages import TurnLost
from foundry_ray.actors.user_github_data.actor import UserGitHubDataActor
from foundry_ray.actors.user_github_data.messages import IdentityObtained
from foundry_ray.actors.user_github_data.tables import UserState
from foundry_ray.core import keys, topics
from foundry_ray.core.errors import InvalidInput, NotFound, Unavailable
from foundry_ray.core.facts import AccountFacts, ConnectedAccount
from foundry_ray.core.messages import Failure, IssueReported, IssueResolved, Message
from foundry_ray.core.secrets import fingerprint
from foundry_ray.runtime.issues import RESOLVED_KEPT, IssueBook
from tests.unit.actors.kit import ANN, NOW, Scene, all_of, begun, only, reply, shown, told

ORG = keys.organization(1)
REPOSITORY = keys.repository(1, 2)
TASK, OTHER = keys.task(REPOSITORY, "t1"), keys.task(REPOSITORY, "t2")
SANDBOX = keys.sandbox(1, "local", "b1")
ACCOUNT = AccountFacts(id="1", login="acme", kind="organization", name="Acme", role="admin")


# -- the book of issues ---------------------------------------------------------------


def an_organization(*messages: Message) -> Scene:
    book = IssueBook(topics.organization(ORG))
    scene = Scene(OrganizationActor, ORG, OrganizationState(ORG, None, {}, {}, book))
    scene.when(
        ConnectOrganization(account=ACCOUNT),
        RepositoryIndexed(repository_id="2", full_name="acme/app"),
        TaskIndexed(task_id="t1", repository_id="2", title="Fix it", sandbox_key=SANDBOX),
        *messages,
    )
    return scene


def failed(entity: str = TASK, **told: Any) -> IssueReported:
    plain = {
        "fingerprint": "w:s:c",
        "code": "c",
        "message": "It broke.",
        "entity": entity,
        "workflow": "w",
        "step": "s",
        "attempt": 1,
        "will_retry": True,
    }
    return IssueReported(failure=Failure.model_validate({**plain, **told}))


def issues(scene: Scene) -> list[Any]:
    return list(scene.state.issues.issues.values())


def test_one_cause_is_one_issue_whoever_it_affects() -> None:
    scene = an_organization(failed(), failed(attempt=2), failed(OTHER, message="Again."))

    [issue] = issues(scene)
    assert (issue.count, issue.attempt, issue.message) == (3, 1, "Again.")
    assert set(issue.affected) == {TASK, OTHER}
    [badge] = shown(scene.turn, "runtime")
    assert badge.data == {"status": "error", "error_count": 1}
    scene.when(failed(fingerprint="another"))
    assert len(issues(scene)) == 2


def test_an_issue_resolves_itself_when_nobody_is_affected_any_more() -> None:
    scene = an_organization(failed(), failed(OTHER))

    scene.when(IssueResolved(entity=TASK, workflow="w"))
    assert issues(scene)[0].resolved_at is None
    scene.when(IssueResolved(entity=OTHER, workflow="another"))
    assert issues(scene)[0].resolved_at is None
    scene.when(IssueResolved(entity=OTHER, workflow="w"))

    assert issues(scene)[0].resolved_at == NOW
    [badge] = shown(scene.turn, "runtime")
    assert badge.data == {"status": "healthy", "error_count": 0}
    scene.when(failed())
    assert [issue.resolved_at for issue in issues(scene)] == [NOW, None], "a new incident"


def test_who_is_affected_again_counts_again() -> None:
    scene = an_organization(failed(), failed(OTHER), IssueResolved(entity=TASK, workflow="w"))

    scene.when(failed(), IssueResolved(entity=OTHER, workflow="w"))

    assert issues(scene)[0].resolved_at is None


def test_resolved_issues_are_kept_to_a_number() -> None:
    scene = an_organization()
    for n in range(RESOLVED_KEPT + 5):
        scene.when(failed(fingerprint=str(n)), IssueResolved(entity=TASK, workflow="w"))

    assert len(issues(scene)) == RESOLVED_KEPT
    assert scene.state.issues.open_count() == 0


@pytest.mark.parametrize(
    ("entity", "kind", "title"),
    [
        (TASK, "task", "Fix it"),
        (keys.session(TASK, "s1"), "task", "Fix it"),
        (SANDBOX, "task", "Fix it"),
        (REPOSITORY, "repository", "acme/app"),
        (keys.github(1), "github_state", "org/1/github"),
        (OTHER, "repository", "acme/app"),
    ],
)
def test_an_issue_says_whom_it_affects_in_peoples_words(entity: str, kind: str, title: str) -> None:
    [issue] = issues(an_organization(failed(entity)))

    [who] = issue.represent()["affected"]
    assert (who["kind"], who["title"]) == (kind, title)


def test_clearing_is_audited_and_told_to_the_history_of_each_task() -> None:
    scene = an_organization(failed(), failed(fingerprint="another"))
    [first, _] = issues(scene)

    turn = scene.when(ClearIssues(by=ANN, issue_id=first.id))

    assert reply(turn) == {"cleared": 1}
    [audit] = [row for kind, row in turn.effects.rows if kind == "insert"]
    assert (audit.what, audit.by["login"]) == ("issue_cleared", "ann")
    assert told(turn)[0][0] == keys.history(REPOSITORY)
    assert only(turn, RecordEvent).what == "issue_cleared"
    assert shown(turn, "runtime_issue")[0].data is None
    assert reply(scene.when(ClearIssues(by=ANN))) == {"cleared": 1}
    with scene.refuses(NotFound, ClearIssues(by=ANN, issue_id="unknown")):
        pass


def test_clearing_is_told_once_to_each_history_that_it_concerns() -> None:
    scene = an_organization(
        failed(),
        failed(keys.session(TASK, "s1")),
        failed(SANDBOX),
        failed(REPOSITORY),
        failed(keys.github(1)),
    )

    turn = scene.when(ClearIssues(by=ANN))

    assert [target for target, _ in told(turn)] == [keys.history(REPOSITORY)] * 2
    events = [message for _, message in told(turn) if isinstance(message, RecordEvent)]
    assert [event.task_id for event in events] == ["t1", None]


def test_an_organization_connects_its_mirror_and_keeps_its_index() -> None:
    scene = an_organization()
    turn = scene.when(ConnectOrganization(account=ACCOUNT, installation_id="9"))
    assert told(turn) == [
        (keys.github(1), ConnectGitHub(account=ACCOUNT, installation_id="9", suspended=False))
    ]

    scene.when(RepositoryIndexed(repository_id="2", full_name="acme/new"))
    assert scene.state.repositories["2"].full_name == "acme/new"
    turn = scene.when(RepositoryIndexed(repository_id="2", full_name=""))

    assert scene.state.repositories == {}
    assert shown(turn, "repository")[0].data is None
    assert "t1" in scene.state.tasks, "tasks of a repository that is gone stay"
    assert scene.when(RepositoryIndexed(repository_id="2", full_name="")).effects.rows == []


# -- the application ---------------------------------------------------------------------


BEGIN = BeginSignIn(state_hash=fingerprint("state"), return_to="/back")
COMPLETE = CompleteSignIn(
    state="state", sealed_code="sealed", redirect_uri="http://x", session_hash="hash"
)


def an_application(*messages: Message) -> Scene:
    scene = Scene(AppShellOrganization, keys.APP, AppState({}, {}, {}, IssueBook("app")))
    scene.when(*messages)
    return scene


def signed_in(*accounts: ConnectedAccount) -> SignInSucceeded:
    return SignInSucceeded(state_hash=BEGIN.state_hash, user_id="7", accounts=list(accounts))


OWN = ConnectedAccount(account=AccountFacts(id="7", login="ann", kind="personal", role="admin"))
TEAM = ConnectedAccount(account=ACCOUNT, installation_id="9")


def test_a_sign_in_is_answered_when_github_has_said_who_it_is() -> None:
    scene = an_application(BEGIN)

    turn = scene.when(COMPLETE, command_id="c1")
    assert turn.effects.replies == []
    assert told(turn)[0][0] == keys.APP_GITHUB
    assert only(turn, SignInUser).sealed_code == "sealed"
    turn = scene.when(signed_in(OWN, TEAM), command_id=None)

    assert reply(turn, "c1")["return_to"] == "/back"
    [session] = [row for _, row in turn.effects.rows if hasattr(row, "active_organization_id")]
    assert (session.token_hash, session.user_id) == ("hash", "7")
    assert (session.active_organization_id, session.expires_at) == ("1", NOW + SESSION_LIFE)
    assert {target for target, _ in told(turn)} == {keys.organization(7), ORG}
    assert set(scene.state.memberships) == {("7", "7"), ("7", "1")}
    assert scene.state.sign_ins == {}


def test_a_sign_in_works_once_and_not_for_long() -> None:
    scene = an_application(BEGIN, COMPLETE)
    with scene.refuses(InvalidInput, COMPLETE):
        pass
    with an_application().refuses(InvalidInput, COMPLETE):
        pass
    scene = an_application(BEGIN)
    [row] = scene.state.sign_ins.values()
    row.expires_at -= SIGN_IN_LIFE + timedelta(seconds=1)
    with scene.refuses(InvalidInput, COMPLETE):
        pass
    scene.when(BEGIN.model_copy(update={"state_hash": "another"}))
    assert list(scene.state.sign_ins) == ["another"], "old ones are forgotten"


def test_a_sign_in_that_fails_is_refused_to_the_browser() -> None:
    scene = an_application(BEGIN)
    scene.when(COMPLETE, command_id="c1")

    turn = scene.when(
        SignInFailed(state_hash=BEGIN.state_hash, code="invalid_input", message="No."),
        command_id=None,
    )

    assert reply(turn, "c1")["code"] == "invalid_input"
    for late in (signed_in(OWN), SignInFailed(state_hash="x", code="c", message="m")):
        assert scene.when(late).effects.rows == []


def test_an_organization_that_a_person_may_not_see_any_more_is_lost_at_sign_in() -> None:
    scene = an_application(BEGIN, COMPLETE, signed_in(OWN, TEAM), BEGIN, COMPLETE)

    scene.when(signed_in(OWN))

    assert set(scene.state.memberships) == {("7", "7")}


def test_an_installation_makes_an_account_known() -> None:
    turn = an_application().when(InstallationSeen(account=ACCOUNT, installation_id="9"))

    [(target, message)] = told(turn)
    assert target == ORG
    assert isinstance(message, ConnectOrganization)
    assert message.installation_id == "9"


def test_only_hashes_of_tokens_are_kept_and_they_go_at_once() -> None:
    scene = an_application()
    create = CreateToken(id="k1", user_id="7", name="ci", token_hash="hash", expires_at=None)

    turn = scene.when(create)
    assert reply(turn) == {"id": "k1"}
    [(_, row)] = turn.effects.rows
    assert row.token_hash == "hash"
    for end in (DeleteToken(id="k1", user_id="7"), SignOut(session_id="s1", user_id="7")):
        turn = scene.when(end)
        [(_, named)] = turn.effects.drops
        assert named["actor_key"] == keys.APP


def test_the_application_keeps_the_issues_below_it() -> None:
    scene = an_application(failed(keys.APP_GITHUB), failed(keys.user(7)))

    assert len(scene.state.issues.issues) == 1
    assert reply(scene.when(ClearAppIssues(by=ANN))) == {"cleared": 1}
    scene.when(failed(keys.user(7)), IssueResolved(entity=keys.user(7), workflow="w"))
    assert scene.state.issues.open_count() == 0
    with scene.refuses(NotFound, ClearAppIssues(by=ANN, issue_id="unknown")):
        pass


def test_a_users_data_are_kept_before_the_sign_in_goes_on() -> None:
    scene = Scene(UserGitHubDataActor, keys.user(7), UserState(None))
    event = IdentityObtained(
        state_hash="h",
        person=ANN,
        avatar_url="a",
        token_secret_id="id of a secret",
        token_expires_at=None,
        scopes=[],
        accounts=[OWN, TEAM],
    )

    turn = scene.when(event)

    row = scene.state.row
    assert (row.login, row.email, row.organization_ids) == ("ann", "ann@example.org", ["7", "1"])
    assert row.token_secret_id == "id of a secret"
    assert told(turn) == [
        (keys.APP, SignInSucceeded(state_hash="h", user_id="7", accounts=[OWN, TEAM]))
    ]


# -- history and status sync ---------------------------------------------------------------


def test_a_history_only_grows() -> None:
    scene = Scene(HistoryActor, keys.history(REPOSITORY), None)
    event = RecordEvent(actor=ANN, what="task_created", task_id="t1", summary="s", data={"a": 1})

    turn = scene.when(event)

    [(kind, row)] = turn.effects.rows
    assert (kind, row.kind, row.task_id, row.repository_id) == (
        "insert",
        "task_created",
        "t1",
        "2",
    )
    assert row.actor == {"kind": "user", "id": "7", "login": "ann"}
    assert shown(turn, "history")[0].topic == "repository:1/2"


SESSION = keys.session(TASK, "s1")
FOLLOW = FollowTurn(sandbox_key=SANDBOX, server_id="s1", from_seq=1, message_id="m1")


def a_reader() -> Scene:
    key = keys.status_sync(SESSION)
    return Scene(SessionStatusSyncActor, key, SyncState(key, None))


def test_a_reader_reads_a_turn_slice_by_slice_to_its_end() -> None:
    scene = a_reader()
    assert begun(scene.when(FOLLOW)) == ["follow-journal"]
    assert begun(scene.when(FOLLOW)) == [], "it is read already"

    turn = scene.finish(Followed(next_seq=50))
    assert begun(turn) == ["follow-journal"]
    [run] = scene.runs.values()
    assert (run.step_input["from_seq"], run.step_input["session_key"]) == (50, SESSION)
    turn = scene.finish(Followed(ended=True, next_seq=60))

    assert (begun(turn), told(turn), scene.runs) == ([], [], {})
    assert scene.state.row.message_id is None


def test_a_reader_turns_to_the_next_turn_and_leaves_the_old_one() -> None:
    scene = a_reader()
    scene.when(FOLLOW)

    turn = scene.when(FOLLOW.model_copy(update={"message_id": "m2"}))

    assert len(turn.effects.cancelled) == 1
    assert begun(turn) == ["follow-journal"]


@pytest.mark.parametrize("how", ["lost", "failed"])
def test_a_reader_that_finds_nobody_tells_its_session(how: str) -> None:
    scene = a_reader()
    scene.when(FOLLOW)

    if how == "lost":
        turn = scene.finish(Followed(lost=True, next_seq=3))
    else:
        [run] = scene.runs.values()
        turn = scene.turn = scene._turn(None)
        turn.fail(run.id, Unavailable())

    assert [target for target, m in told(turn) if isinstance(m, TurnLost)] == [SESSION]
    assert scene.runs == {}


def test_a_reader_ends_with_its_session() -> None:
    scene = a_reader()
    scene.when(EndFollowing(), FOLLOW)

    turn = scene.when(EndFollowing())

    assert len(turn.effects.cancelled) == 1
    assert all_of(turn, TurnLost) == []
