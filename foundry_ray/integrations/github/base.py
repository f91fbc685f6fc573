"""What Foundry asks of GitHub, in Foundry's own words.

The port knows nothing of the library behind it. Every method may raise
`GitHubUnavailable` and `RateLimited` (try again later), `Unauthenticated` (the
token or key is refused), `PermissionDenied` and `NotFound` (GitHub says 404 of
private things that one may not see).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

T = TypeVar("T")


def _in_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return value.astimezone(UTC)


Instant = Annotated[datetime, AfterValidator(_in_utc)]
"""An aware datetime in UTC."""

AccountKind = Literal["organization", "personal"]
OrganizationRole = Literal["admin", "member"]
PullRequestState = Literal["open", "draft", "merged", "closed"]
PermissionLevel = Literal["admin", "write", "read", "none"]


class _Fact(BaseModel):
    # Inputs are hidden in errors because some of them are tokens.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class GitHubAccount(_Fact):
    """An organization or a person's own account, where an App can be installed."""

    id: int
    login: str
    kind: AccountKind
    name: str | None = None
    avatar_url: str = ""
    role: OrganizationRole = "member"
    """The role of the user who asked; `member` where nobody did."""


class GitHubUser(_Fact):
    """A person who signed in."""

    id: int
    login: str
    name: str | None = None
    email: str | None = None
    avatar_url: str = ""


class UserToken(_Fact):
    """What a person's sign-in gave us; it acts with that person's rights only."""

    access_token: SecretStr
    expires_at: Instant | None = None
    refresh_token: SecretStr | None = None
    scopes: list[str] = []


class Installation(_Fact):
    """The App, installed on one account."""

    id: int
    account: GitHubAccount
    suspended: bool = False
    html_url: str = ""
    permissions: dict[str, str] = {}
    repository_selection: str = "selected"


class InstallationToken(_Fact):
    """A short-lived credential of an installation."""

    token: SecretStr
    expires_at: Instant


class Repository(_Fact):
    """A repository that an installation can see."""

    id: int
    full_name: str
    owner_id: int
    owner_login: str
    name: str
    default_branch: str
    private: bool
    archived: bool
    clone_url: str
    html_url: str
    pushed_at: Instant | None = None
    updated_at: Instant | None = None


class Branch(_Fact):
    """A branch and the commit that it points to."""

    name: str
    sha: str


class PullRequest(_Fact):
    """A pull request as GitHub last described it."""

    id: int
    number: int
    repository_id: int
    head_repository_id: int | None
    """None when the head's fork was deleted; another id than `repository_id` for a fork."""
    head_ref: str
    head_sha: str
    base_ref: str
    title: str
    body: str
    state: PullRequestState
    url: str
    """The page for people."""
    author_id: int
    author_login: str
    created_at: Instant
    updated_at: Instant
    merged_at: Instant | None = None
    closed_at: Instant | None = None
    merge_commit_sha: str | None = None
    """The merge commit once merged; before that None (GitHub's trial merge is not a fact)."""


class Delivery(_Fact):
    """One attempt of GitHub to deliver a webhook, from the App's delivery log."""

    id: int
    guid: str
    event: str
    action: str | None = None
    delivered_at: Instant
    redelivery: bool = False
    status_code: int
    """The answer that GitHub saw; 0 when there was none."""
    installation_id: int | None = None


class Page(_Fact, Generic[T]):
    """One page of a list, with the number of the next one."""

    items: list[T]
    next_page: int | None = None


class GitHubSettings(_Fact):
    """Where GitHub is and who we are there.

    `web_url` is what people's browsers open and `api_url` the REST root; it must equal
    the scheme and host that GitHub writes into its `url` fields.
    """

    web_url: str = "https://github.com"
    api_url: str = "https://api.github.com"
    app_id: int
    app_slug: str
    app_key: SecretStr
    """The App's private key, PEM."""
    client_id: str
    client_secret: SecretStr
    webhook_secret: SecretStr
    retries: int = Field(default=2, ge=0)
    """Further attempts after a failed read; writes are never repeated here."""
    seconds_between_requests: float | None = None
    seconds_between_writes: float | None = 1.0
    """GitHub asks for one second between writes; None for none."""
    timeout: int = Field(default=15, gt=0)
    """Seconds that one call may take once its turn has come, its repeats included."""


class GitHub(Protocol):
    """GitHub, as `PyGithubAdapter` (client.py) speaks to it."""

    def authorize_url(
        self, *, state: str, code_challenge: str, redirect_uri: str, login: str | None = None
    ) -> str:
        """Return the page where a person signs in (PKCE, method S256)."""
        ...

    def install_url(self, account_id: int | None = None) -> str:
        """Return the page where the App is installed, on that account if given."""
        ...

    async def exchange_code(self, code: str, code_verifier: str, redirect_uri: str) -> UserToken:
        """Turn a sign-in code into the person's token.

        Raises:
            InvalidInput: The code is wrong, used or expired, or the verifier is wrong;
                begin the sign-in again.
            Unauthenticated: GitHub refuses our client id or secret.
        """
        ...

    async def user(self, token: SecretStr) -> GitHubUser:
        """Return whom this token belongs to."""
        ...

    async def organizations(self, token: SecretStr) -> list[GitHubAccount]:
        """Return the organizations of the token's owner with their role; not the own account."""
        ...

    async def user_installations(self, token: SecretStr) -> list[Installation]:
        """Return the App's installations that the token's owner can reach."""
        ...

    async def installations(self) -> list[Installation]:
        """Return every installation of the App."""
        ...

    async def installation_for(self, account_login: str) -> Installation:
        """Return the installation on this account.

        Raises:
            NotFound: The App is not installed there; show `install_url`.
        """
        ...

    async def installation_token(
        self,
        installation_id: int,
        *,
        repository_ids: list[int] | None,
        permissions: dict[str, str],
    ) -> InstallationToken:
        """Mint a token for exactly these permissions and repositories (None: all); not cached.

        Raises:
            InvalidInput: Nothing was asked for, or more than the installation has.
        """
        ...

    async def repositories(self, installation_id: int, page: int = 1) -> Page[Repository]:
        """Return a page (100) of the repositories that the installation can see."""
        ...

    async def repository(self, installation_id: int, repository_id: int) -> Repository:
        """Return one repository by its id, under its present name."""
        ...

    async def branches(
        self, installation_id: int, repository_id: int, page: int = 1
    ) -> Page[Branch]:
        """Return a page (100) of the branches."""
        ...

    async def pull_requests(
        self,
        installation_id: int,
        repository_id: int,
        *,
        state: Literal["open", "closed", "all"] = "open",
        page: int = 1,
    ) -> Page[PullRequest]:
        """Return a page (100) of the pull requests, the most recently updated first."""
        ...

    async def pull_request(
        self, installation_id: int, repository_id: int, number: int
    ) -> PullRequest:
        """Return one pull request."""
        ...

    async def permission(
        self, installation_id: int, repository_id: int, login: str
    ) -> PermissionLevel:
        """Return what this person may do in the repository; `none` for a stranger."""
        ...

    async def find_pull_request(
        self, token: SecretStr, repository_id: int, head_owner_login: str, head_ref: str
    ) -> PullRequest | None:
        """Return the open pull request of this branch of the same repository, never a fork's."""
        ...

    async def create_pull_request(
        self,
        token: SecretStr,
        repository_id: int,
        *,
        head: str,
        base: str,
        title: str,
        body: str,
        draft: bool = False,
    ) -> PullRequest:
        """Open a pull request as the token's owner; the open one if there is one already.

        Raises:
            InvalidInput: GitHub refuses it (no commits between the branches, no such
                branch); its reasons are in the context.
        """
        ...

    async def update_pull_request(
        self,
        token: SecretStr,
        repository_id: int,
        number: int,
        *,
        title: str | None = None,
        body: str | None = None,
        base: str | None = None,
        draft: bool | None = None,
    ) -> PullRequest:
        """Change what is given and return the pull request as it then is."""
        ...

    async def app_slug(self) -> str:
        """Return the App's name in URLs as GitHub knows it; proves that its key works."""
        ...

    async def deliveries(self, cursor: str | None = None) -> tuple[list[Delivery], str | None]:
        """Return a page of the App's delivery log, newest first, and the next page's cursor."""
        ...

    async def redeliver(self, delivery_id: int) -> None:
        """Ask GitHub to deliver this again; the GUID stays the same."""
        ...

    async def configure_webhook(self, url: str) -> None:
        """Tell GitHub where the App's webhooks go (its secret is ours)."""
        ...

    async def aclose(self) -> None:
        """End the connections and threads; the port cannot be used afterwards."""
        ...
