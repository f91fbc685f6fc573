"""What is asked of GitHub; nobody else asks (S19)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from foundry_ray.core.clock import Clock
from foundry_ray.core.errors import NotFound, PermissionDenied
from foundry_ray.core.facts import (
    AccountFacts,
    ConnectedAccount,
    PullRequestFacts,
    RefFacts,
    RepositoryFacts,
)
from foundry_ray.core.messages import Person, Value
from foundry_ray.core.retry import RetryPolicy
from foundry_ray.integrations.github.base import GitHub, GitHubAccount, PullRequest, Repository
from foundry_ray.runtime.workflow import Nothing, StepContext, step

PATIENT = RetryPolicy(max_attempts=8, first_delay=timedelta(seconds=1))
PROMPT = RetryPolicy(max_attempts=3, first_delay=timedelta(seconds=0.3))
# Deliveries older than this are not asked for again (GitHub keeps its log for 3 days).
RECOVER_BACK = timedelta(days=3)
RECOVER_PAGES = 20


@dataclass(frozen=True)
class GitHubTools:
    """What the steps work with.

    Attributes:
        derive: Makes the PKCE verifier of a state; only this installation can.
        open_sealed: Opens a sealed sign-in code.
    """

    github: GitHub
    derive: Callable[[str, str], str]
    open_sealed: Callable[[str, str], str]
    clock: Clock


def account_facts(account: GitHubAccount) -> AccountFacts:
    """Return an account in Foundry's words."""
    return AccountFacts(
        id=str(account.id),
        login=account.login,
        kind=account.kind,
        name=account.name or "",
        avatar_url=account.avatar_url,
        role=account.role,
    )


def repository_facts(repository: Repository) -> RepositoryFacts:
    """Return a repository in Foundry's words."""
    return RepositoryFacts(
        id=str(repository.id),
        full_name=repository.full_name,
        name=repository.name,
        default_branch=repository.default_branch,
        private=repository.private,
        archived=repository.archived,
        clone_url=repository.clone_url,
        html_url=repository.html_url,
    )


def pull_request_facts(pull: PullRequest) -> PullRequestFacts:
    """Return a pull request in Foundry's words."""
    head = pull.head_repository_id
    return PullRequestFacts(
        number=pull.number,
        repository_id=str(pull.repository_id),
        head_repository_id=str(head) if head is not None else None,
        head_ref=pull.head_ref,
        head_sha=pull.head_sha,
        base_ref=pull.base_ref,
        title=pull.title,
        body=pull.body,
        state=pull.state,
        url=pull.url,
        author_login=pull.author_login,
        updated_at=pull.updated_at,
        merged_at=pull.merged_at,
        merge_commit_sha=pull.merge_commit_sha,
    )


# -- sign-in --------------------------------------------------------------------------


class CodeInput(Value):
    """What came back from GitHub's sign-in page; the code is sealed."""

    state: str
    sealed_code: str
    redirect_uri: str


class Exchanged(Value):
    """The person's token, sealed for the next step."""

    sealed_token: str
    expires_at: datetime | None
    scopes: list[str]


@step("exchange-code", timeout=timedelta(seconds=30), retry=RetryPolicy(max_attempts=1))
async def exchange_code(tools: GitHubTools, input: CodeInput, context: StepContext) -> Exchanged:
    """Turn the code into a token; a code works once, so this is not tried again.

    Raises:
        InvalidInput: The code is wrong, used or expired; begin the sign-in again.
    """
    token = await tools.github.exchange_code(
        tools.open_sealed(input.sealed_code, "oauth-code"),
        tools.derive("pkce", input.state),
        input.redirect_uri,
    )
    return Exchanged(
        sealed_token=context.seal(token.access_token, f"oauth/{context.run_id}"),
        expires_at=token.expires_at,
        scopes=token.scopes,
    )


class PersonRead(Value):
    """Who signed in, what they may see, and their token sealed for their own data."""

    person: Person
    avatar_url: str
    accounts: list[ConnectedAccount]
    sealed_token: str


def user_secret(user_id: str) -> str:
    """Return the id of the sealed token of a user."""
    return f"app/user/{user_id}#github-token"


@step("read-person", timeout=timedelta(minutes=1), retry=PROMPT)
async def read_person(tools: GitHubTools, input: Nothing, context: StepContext) -> PersonRead:
    """Ask who the token belongs to and which accounts they may see (S22)."""
    token = await context.secret(f"oauth/{context.run_id}")
    user = await tools.github.user(token)
    own = AccountFacts(
        id=str(user.id),
        login=user.login,
        kind="personal",
        name=user.name or "",
        avatar_url=user.avatar_url,
        role="admin",
    )
    accounts = [own, *map(account_facts, await tools.github.organizations(token))]
    installed = {str(i.account.id): i for i in await tools.github.user_installations(token)}
    return PersonRead(
        person=Person(
            kind="user",
            id=str(user.id),
            login=user.login,
            name=user.name or "",
            email=user.email or "",
        ),
        avatar_url=user.avatar_url,
        accounts=[
            ConnectedAccount(
                account=account,
                installation_id=str(found.id) if (found := installed.get(account.id)) else None,
                suspended=found.suspended if found else False,
            )
            for account in accounts
        ],
        sealed_token=context.seal(token, user_secret(str(user.id))),
    )


# -- sync -----------------------------------------------------------------------------


class PageInput(Value):
    """Which page of what the installation can see."""

    installation_id: int
    page: int = 1


class RepositoriesRead(Value):
    """One page of repositories."""

    repositories: list[RepositoryFacts]
    next_page: int | None


@step("list-repositories", timeout=timedelta(minutes=1), retry=PATIENT)
async def list_repositories(
    tools: GitHubTools, input: PageInput, context: StepContext
) -> RepositoriesRead:
    """Read one page of the repositories."""
    page = await tools.github.repositories(input.installation_id, input.page)
    return RepositoriesRead(
        repositories=[repository_facts(r) for r in page.items], next_page=page.next_page
    )


class RepositoryInput(Value):
    """Which repository."""

    installation_id: int
    repository_id: int


class BranchesRead(Value):
    """All branches of a repository."""

    refs: list[RefFacts]


@step("list-branches", timeout=timedelta(minutes=3), retry=PATIENT)
async def list_branches(
    tools: GitHubTools, input: RepositoryInput, context: StepContext
) -> BranchesRead:
    """Read the branches of one repository."""
    refs: list[RefFacts] = []
    page: int | None = 1
    while page is not None:
        found = await tools.github.branches(input.installation_id, input.repository_id, page)
        refs += [RefFacts(name=b.name, sha=b.sha) for b in found.items]
        page = found.next_page
    return BranchesRead(refs=refs)


class PullRequestsRead(Value):
    """All open pull requests of a repository."""

    pull_requests: list[PullRequestFacts]


@step("list-pull-requests", timeout=timedelta(minutes=3), retry=PATIENT)
async def list_pull_requests(
    tools: GitHubTools, input: RepositoryInput, context: StepContext
) -> PullRequestsRead:
    """Read the open pull requests of one repository."""
    pulls: list[PullRequestFacts] = []
    page: int | None = 1
    while page is not None:
        found = await tools.github.pull_requests(
            input.installation_id, input.repository_id, page=page
        )
        pulls += [pull_request_facts(p) for p in found.items]
        page = found.next_page
    return PullRequestsRead(pull_requests=pulls)


# -- credentials and pull requests -----------------------------------------------------


class MintInput(RepositoryInput):
    """Who wants which access to which repository."""

    login: str
    access: Literal["read", "write"]


class Minted(Value):
    """A sealed installation token for one repository."""

    sealed_token: str
    expires_at: datetime


@step("mint-credential", timeout=timedelta(seconds=45), retry=PROMPT)
async def mint_credential(tools: GitHubTools, input: MintInput, context: StepContext) -> Minted:
    """Check what the person may do now, then mint a token for that and no more.

    Raises:
        PermissionDenied: The person may not, on GitHub; nothing was minted.
    """
    level = await tools.github.permission(input.installation_id, input.repository_id, input.login)
    enough = ("admin", "write") if input.access == "write" else ("admin", "write", "read")
    if level not in enough:
        raise PermissionDenied(
            f"{input.login} may not {input.access} this repository on GitHub.",
            hint="Ask an owner of the repository for access.",
        )
    token = await tools.github.installation_token(
        input.installation_id,
        repository_ids=[input.repository_id],
        permissions={"contents": input.access},
    )
    return Minted(
        sealed_token=context.seal(token.token, f"credential/{context.run_id}"),
        expires_at=token.expires_at,
    )


class PublishInput(Value):
    """Which pull request, as whom."""

    repository_id: int
    owner_login: str
    head: str
    base: str
    title: str | None
    body: str | None
    default_title: str
    default_body: str
    draft: bool | None
    user_id: str


class Published(Value):
    """The pull request as it is now."""

    pull_request: PullRequestFacts


@step("publish-pull-request", timeout=timedelta(minutes=1), retry=PROMPT)
async def publish_pull_request(
    tools: GitHubTools, input: PublishInput, context: StepContext
) -> Published:
    """Update the open pull request of the branch, or create it, with the person's own token.

    Raises:
        PermissionDenied: The person has not signed in for long; signing in again helps.
    """
    try:
        token = await context.secret(user_secret(input.user_id))
    except NotFound as gone:
        raise PermissionDenied(
            "There is no GitHub sign-in of this person any more.", hint="Sign in again."
        ) from gone
    github = tools.github
    found = await github.find_pull_request(
        token, input.repository_id, input.owner_login, input.head
    )
    if found is None:
        found = await github.create_pull_request(
            token,
            input.repository_id,
            head=input.head,
            base=input.base,
            title=input.title or input.default_title,
            body=input.default_body if input.body is None else input.body,
            draft=bool(input.draft),
        )
    elif (input.title, input.body, input.draft) != (None, None, None):
        found = await github.update_pull_request(
            token,
            input.repository_id,
            found.number,
            title=input.title,
            body=input.body,
            draft=input.draft,
        )
    return Published(pull_request=pull_request_facts(found))


# -- missed deliveries -----------------------------------------------------------------


class Recovered(Value):
    """How many deliveries were asked for again."""

    redelivered: int


@step("recover-deliveries", timeout=timedelta(minutes=5), retry=PATIENT)
async def recover_deliveries(tools: GitHubTools, input: Nothing, context: StepContext) -> Recovered:
    """Ask again for deliveries that never arrived; a repeated GUID has no second effect."""
    since = tools.clock.now() - RECOVER_BACK
    arrived: set[str] = set()
    failed: dict[str, int] = {}
    cursor: str | None = None
    for _ in range(RECOVER_PAGES):
        deliveries, cursor = await tools.github.deliveries(cursor)
        for delivery in deliveries:
            if 200 <= delivery.status_code < 300:
                arrived.add(delivery.guid)
            else:
                failed.setdefault(delivery.guid, delivery.id)
        if cursor is None or (deliveries and deliveries[-1].delivered_at < since):
            break
    missing = [identity for guid, identity in failed.items() if guid not in arrived]
    for identity in reversed(missing):  # oldest first
        await tools.github.redeliver(identity)
    return Recovered(redelivered=len(missing))
