"""Messages to the application, users, organizations and their GitHub state."""

from __future__ import annotations

from datetime import timedelta

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
from foundry_ray.actors.app_shell.tables import (
    AppShellAccount,
    AppShellMembership,
    AppShellSession,
    AppShellSignIn,
    AppShellToken,
)
from foundry_ray.actors.github_state import steps
from foundry_ray.actors.github_state.messages import (
    ConnectGitHub,
    MintCredential,
    PublishPullRequest,
    ReceiveDelivery,
    RecoverDeliveries,
    SignInUser,
    SyncGitHub,
)
from foundry_ray.actors.github_state.tables import (
    GitHubState,
    GitHubStateDelivery,
    GitHubStateRepository,
)
from foundry_ray.actors.github_state.workflows import Mint, PublishPull, Recover, SignIn, Sync
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.actors.organization.messages import (
    ClearIssues,
    ConnectOrganization,
    RepositoryIndexed,
    TaskIndexed,
)
from foundry_ray.actors.organization.tables import (
    Organization,
    OrganizationRepository,
    OrganizationTask,
)
from foundry_ray.actors.repository.messages import RefsChanged
from foundry_ray.actors.user_github_data.messages import IdentityObtained
from foundry_ray.actors.user_github_data.tables import UserGitHubData
from foundry_ray.core.facts import ConnectedAccount
from foundry_ray.core.messages import IssueReported, IssueResolved
from foundry_ray.core.secrets import fingerprint
from foundry_ray.runtime.tables import RtAudit, RtIssue
from foundry_ray.testing.clock import START
from tests.integration.every_message.kit import (
    ACME,
    ADA,
    APP,
    APP_GITHUB,
    DEMO,
    GITHUB,
    HISTORY,
    ORG,
    REPO,
    SANDBOX,
    TASK,
    USER,
    Case,
    asked_before,
    failure,
    feed,
    gone,
    issue_row,
    kept,
    mail,
    replied,
    row,
    run,
    withdrawn,
)

CONNECTED = ConnectedAccount(account=ACME, installation_id="3001")
STATE = fingerprint("state")
FRESH_SIGN_IN = kept(
    AppShellSignIn,
    APP,
    state_hash=STATE,
    return_to="/tasks",
    expires_at=START + timedelta(minutes=10),
)
SIGN_IN_UNDER_WAY = kept(
    AppShellSignIn,
    APP,
    state_hash=STATE,
    return_to="/tasks",
    session_hash="cookie",
    command_id="c1",
    expires_at=START + timedelta(minutes=10),
)
APP_CASES = (
    Case(
        "app_shell",
        BeginSignIn(state_hash=STATE, return_to="/tasks"),
        (row(AppShellSignIn, state_hash=STATE, return_to="/tasks"), replied()),
        way="ask",
    ),
    Case(
        "app_shell",
        CompleteSignIn(state="state", sealed_code="x", redirect_uri="y", session_hash="cookie"),
        (
            row(AppShellSignIn, state_hash=STATE, session_hash="cookie"),
            mail(APP_GITHUB, SignInUser, state="state", sealed_code="x"),
        ),
        rows=(FRESH_SIGN_IN,),
    ),
    Case(
        "app_shell",
        SignInFailed(state_hash=STATE, code="unavailable", message="GitHub is away."),
        (
            gone(AppShellSignIn, state_hash=STATE),
            replied(0, {"code": "unavailable", "message": "GitHub is away."}, "c1"),
        ),
        rows=(SIGN_IN_UNDER_WAY, asked_before(APP, "c1")),
    ),
    Case(
        "app_shell",
        SignInSucceeded(state_hash=STATE, user_id="41", accounts=[CONNECTED]),
        (
            gone(AppShellSignIn, state_hash=STATE),
            row(AppShellSession, token_hash="cookie", user_id="41"),
            row(AppShellAccount, id="500", login="acme"),
            row(AppShellMembership, user_id="41", organization_id="500", role="admin"),
            mail(ORG, ConnectOrganization, installation_id="3001"),
            replied(200, {"session_id": ..., "return_to": "/tasks"}, "c1"),
        ),
        rows=(SIGN_IN_UNDER_WAY, asked_before(APP, "c1")),
    ),
    Case(
        "app_shell",
        SignOut(session_id="w1", user_id="41"),
        (gone(AppShellSession, id="w1"), replied()),
        rows=(
            kept(
                AppShellSession,
                APP,
                id="w1",
                token_hash="cookie",
                user_id="41",
                expires_at=START + timedelta(days=1),
            ),
        ),
        way="ask",
    ),
    Case(
        "app_shell",
        CreateToken(id="k1", user_id="41", name="laptop", token_hash="hash", expires_at=None),
        (row(AppShellToken, id="k1", user_id="41", token_hash="hash"), replied(body={"id": "k1"})),
        way="ask",
    ),
    Case(
        "app_shell",
        DeleteToken(id="k1", user_id="41"),
        (gone(AppShellToken, id="k1"), replied()),
        rows=(kept(AppShellToken, APP, id="k1", token_hash="hash", user_id="41", name="laptop"),),
        way="ask",
    ),
    Case(
        "app_shell",
        InstallationSeen(account=ACME, installation_id="3001"),
        (
            row(AppShellAccount, id="500", login="acme"),
            mail(ORG, ConnectOrganization, installation_id="3001"),
        ),
    ),
    Case(
        "app_shell",
        ClearAppIssues(by=ADA, issue_id="i1"),
        (
            row(RtAudit, actor_key=APP, what="issue_cleared", by={"login": "ada"}),
            gone(RtIssue, actor_key=APP, id="i1"),
            withdrawn("app", "runtime_issue", "i1"),
            replied(body={"cleared": 1}),
        ),
        rows=(issue_row(APP, APP_GITHUB),),
        way="ask",
    ),
    Case(
        "app_shell",
        IssueReported(failure=failure(APP_GITHUB)),
        (
            row(RtIssue, actor_key=APP, count=1, affected={APP_GITHUB: {"since": None}}),
            feed("app", "runtime_issue", count=1, resolved_at=None),
        ),
    ),
    Case(
        "app_shell",
        IssueResolved(entity=APP_GITHUB, workflow=failure(APP_GITHUB).workflow),
        (
            row(RtIssue, id="i1", resolved_at=...),
            feed("app", "runtime_issue", id="i1", resolved_at=...),
        ),
        rows=(issue_row(APP, APP_GITHUB),),
    ),
)

USER_CASES = (
    Case(
        "user_github_data",
        IdentityObtained(
            state_hash=STATE,
            person=ADA,
            avatar_url="",
            token_secret_id="user/41",
            token_expires_at=None,
            scopes=["repo"],
            accounts=[CONNECTED],
        ),
        (
            row(UserGitHubData, actor_key=USER, login="ada", organization_ids=["500"]),
            mail(APP, SignInSucceeded, state_hash=STATE, user_id="41"),
        ),
    ),
)

ACME_ROW = kept(Organization, ORG, id="500", login="acme", kind="organization")
ORGANIZATION_CASES = (
    Case(
        "organization",
        ConnectOrganization(account=ACME, installation_id="3001"),
        (
            row(Organization, id="500", login="acme"),
            mail(GITHUB, ConnectGitHub, installation_id="3001"),
        ),
    ),
    Case(
        "organization",
        RepositoryIndexed(repository_id="9001", full_name="acme/demo"),
        (row(OrganizationRepository, repository_id="9001", full_name="acme/demo"),),
    ),
    Case(
        "organization",
        TaskIndexed(task_id="t1", repository_id="9001", title="Say hello", sandbox_key=SANDBOX),
        (row(OrganizationTask, task_id="t1", sandbox_key=SANDBOX),),
    ),
    Case(
        "organization",
        ClearIssues(by=ADA, issue_id="i1"),
        (
            gone(RtIssue, actor_key=ORG, id="i1"),
            row(RtAudit, actor_key=ORG, what="issue_cleared", by={"login": "ada"}),
            mail(HISTORY, RecordEvent, what="issue_cleared", task_id="t1"),
            withdrawn("organization:500", "runtime_issue", "i1"),
            feed("organization:500", "runtime", status="healthy"),
            replied(body={"cleared": 1}),
        ),
        rows=(
            ACME_ROW,
            kept(
                OrganizationTask,
                ORG,
                task_id="t1",
                repository_id="9001",
                title="Say hello",
                sandbox_key=SANDBOX,
            ),
            issue_row(ORG, TASK),
        ),
        way="ask",
    ),
    Case(
        "organization",
        IssueReported(failure=failure(SANDBOX)),
        (
            row(RtIssue, actor_key=ORG, count=1, affected={SANDBOX: {"since": None}}),
            feed("organization:500", "runtime_issue", count=1),
            feed("organization:500", "runtime", status="error", error_count=1),
        ),
        rows=(ACME_ROW,),
    ),
    Case(
        "organization",
        IssueResolved(entity=TASK, workflow=failure(TASK).workflow),
        (
            row(RtIssue, actor_key=ORG, id="i1", resolved_at=...),
            feed("organization:500", "runtime", status="healthy"),
        ),
        rows=(ACME_ROW, issue_row(ORG, TASK)),
    ),
)

MIRROR = (
    kept(
        GitHubState,
        GITHUB,
        account=ACME.model_dump(exclude={"role"}),
        installation_id="3001",
        installation_status="connected",
        sync_status="synced",
        last_sync_at=START,
    ),
    kept(GitHubStateRepository, GITHUB, repository_id="9001", facts=DEMO.model_dump()),
)
PUSH = {
    "ref": "refs/heads/door",
    "before": "0" * 40,
    "after": "a" * 40,
    "repository": {"id": 9001},
    "sender": {"id": 41, "login": "ada"},
}
GITHUB_CASES = (
    Case(
        "github_state",
        ConnectGitHub(account=ACME, installation_id="3001"),
        (
            row(GitHubState, installation_status="connected", sync_status="syncing"),
            run(Sync, steps.list_repositories),
            feed("organization:500", "github", sync_status="syncing"),
        ),
    ),
    Case(
        "github_state",
        SyncGitHub(),
        (
            row(GitHubState, sync_status="syncing"),
            run(Sync, steps.list_repositories),
            replied(202, {"sync_status": "syncing"}),
        ),
        rows=MIRROR,
        way="ask",
    ),
    Case(
        "github_state",
        ReceiveDelivery(guid="g1", event="push", payload=PUSH),
        (
            row(GitHubStateDelivery, guid="g1", outcome="applied"),
            row(GitHubState, last_webhook_event="push"),
            mail(REPO, RefsChanged, refs=[{"name": "door", "sha": "a" * 40}], guid="g1"),
        ),
        rows=MIRROR,
    ),
    Case(
        "github_state",
        MintCredential(
            repository_id="9001", access="write", person=ADA, reply_to=SANDBOX, purpose="push/r1"
        ),
        (run(Mint, steps.mint_credential, input={"reply_to": SANDBOX, "access": "write"}),),
        rows=MIRROR,
    ),
    Case(
        "github_state",
        PublishPullRequest(
            task_key=TASK,
            repository_id="9001",
            head="door",
            base="main",
            title=None,
            body=None,
            default_title="Say hello",
            default_body="",
            draft=None,
            person=ADA,
        ),
        (run(PublishPull, steps.publish_pull_request, input={"task_key": TASK, "head": "door"}),),
        rows=MIRROR,
    ),
    Case(
        "github_state",
        SignInUser(state="state", sealed_code="x", redirect_uri="y"),
        (run(SignIn, steps.exchange_code, entity_key=APP_GITHUB, input={"state": "state"}),),
        key=APP_GITHUB,
    ),
    Case(
        "github_state",
        RecoverDeliveries(),
        (run(Recover, steps.recover_deliveries, entity_key=APP_GITHUB),),
        key=APP_GITHUB,
    ),
)

CASES = (*APP_CASES, *USER_CASES, *ORGANIZATION_CASES, *GITHUB_CASES)
