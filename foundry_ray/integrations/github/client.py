"""The adapter: GitHub through PyGithub, in threads, in the port's words.

A repository is always addressed by its id (``/repositories/{id}``), because names
change. Pages are read through PyGithub's requester, since its lists hide whether
there is a next page; objects are used for what they do.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote, urlencode

from github import Github, GithubObject
from github.Repository import Repository as RepositoryObject
from pydantic import SecretStr

from foundry_ray.core.clock import Clock, SystemClock
from foundry_ray.core.errors import InvalidInput, NotFound, PermissionDenied
from foundry_ray.integrations.github import wire
from foundry_ray.integrations.github.app_auth import PAGE_SIZE, READ_PERMISSIONS, mint
from foundry_ray.integrations.github.base import (
    Branch,
    Delivery,
    GitHubAccount,
    GitHubSettings,
    GitHubUser,
    Installation,
    InstallationToken,
    Page,
    PermissionLevel,
    PullRequest,
    Repository,
    UserToken,
)
from foundry_ray.integrations.github.lines import Lines
from foundry_ray.integrations.github.oauth import OAuth
from foundry_ray.integrations.github.pages import (
    every,
    get,
    get_page,
    items_of,
    next_page,
    next_value,
)


class PyGithubAdapter:
    """GitHub, or a server of its shape, at the addresses of *settings*.

    Belongs to one event loop; close it with `aclose`.
    """

    def __init__(self, settings: GitHubSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._lines = Lines(settings, clock or SystemClock())
        self._oauth = OAuth(settings, clock or SystemClock())

    async def aclose(self) -> None:
        """End the connections and threads; the adapter cannot be used afterwards."""
        await self._oauth.aclose()
        await self._lines.aclose()

    # -- sign-in ---------------------------------------------------------------

    def authorize_url(
        self, *, state: str, code_challenge: str, redirect_uri: str, login: str | None = None
    ) -> str:
        """Return the page where a person signs in (PKCE, method S256)."""
        return self._oauth.authorize_url(
            state=state, code_challenge=code_challenge, redirect_uri=redirect_uri, login=login
        )

    def install_url(self, account_id: int | None = None) -> str:
        """Return the page where the App is installed, on that account if given."""
        web = self._settings.web_url.rstrip("/")
        url = f"{web}/apps/{quote(self._settings.app_slug, safe='')}/installations/new"
        if account_id is None:
            return url
        return f"{url}/permissions?{urlencode({'target_id': account_id})}"

    async def exchange_code(self, code: str, code_verifier: str, redirect_uri: str) -> UserToken:
        """Turn a sign-in code into the person's token."""
        return await self._oauth.exchange_code(code, code_verifier, redirect_uri)

    # -- what a person can see -------------------------------------------------

    async def user(self, token: SecretStr) -> GitHubUser:
        """Return whom this token belongs to."""
        return await self._lines.as_user(
            token.get_secret_value(), lambda github: wire.user(get(github, "/user")[1])
        )

    async def organizations(self, token: SecretStr) -> list[GitHubAccount]:
        """Return the organizations of the token's owner with their role; not the own account."""

        def memberships(github: Github) -> list[GitHubAccount]:
            found = every(github, "/user/memberships/orgs", state="active")
            return [wire.membership(item) for item in found]

        def without_role(github: Github) -> list[GitHubAccount]:
            return [wire.account(item, kind="Organization") for item in every(github, "/user/orgs")]

        try:
            return await self._lines.as_user(token.get_secret_value(), memberships)
        except (PermissionDenied, NotFound):
            # The App may lack the right to read members; then roles are not known.
            return await self._lines.as_user(token.get_secret_value(), without_role)

    async def user_installations(self, token: SecretStr) -> list[Installation]:
        """Return the App's installations that the token's owner can reach."""
        return await self._lines.as_user(
            token.get_secret_value(),
            lambda github: [
                wire.installation(item)
                for item in every(github, "/user/installations", "installations")
            ],
        )

    # -- the App ---------------------------------------------------------------

    async def installations(self) -> list[Installation]:
        """Return every installation of the App."""
        return await self._lines.as_app(
            lambda app: [wire.installation(item) for item in every(app, "/app/installations")]
        )

    async def installation_for(self, account_login: str) -> Installation:
        """Return the installation on this account, an organization or a person."""
        login = quote(account_login, safe="")
        try:
            return await self._lines.as_app(
                lambda app: wire.installation(get(app, f"/orgs/{login}/installation")[1])
            )
        except NotFound:
            return await self._lines.as_app(
                lambda app: wire.installation(get(app, f"/users/{login}/installation")[1])
            )

    async def installation_token(
        self,
        installation_id: int,
        *,
        repository_ids: list[int] | None,
        permissions: dict[str, str],
    ) -> InstallationToken:
        """Mint a token for exactly these permissions and repositories; not cached."""
        return await self._lines.as_app(
            lambda app: mint(
                app, installation_id, repository_ids=repository_ids, permissions=permissions
            )
        )

    async def app_slug(self) -> str:
        """Return the App's name in URLs as GitHub knows it; proves that its key works."""
        return await self._lines.as_app(lambda app: wire.slug(get(app, "/app")[1]))

    async def deliveries(self, cursor: str | None = None) -> tuple[list[Delivery], str | None]:
        """Return a page of the App's delivery log, newest first, and the next page's cursor."""

        def read(app: Github) -> tuple[list[Delivery], str | None]:
            parameters = {"per_page": PAGE_SIZE} | ({"cursor": cursor} if cursor else {})
            headers, data = get(app, "/app/hook/deliveries", **parameters)
            return [wire.delivery(item) for item in items_of(data, None)], next_value(
                headers, "cursor"
            )

        return await self._lines.as_app(read)

    async def redeliver(self, delivery_id: int) -> None:
        """Ask GitHub to deliver this again; the GUID stays the same."""
        await self._lines.as_app(
            lambda app: app.requester.requestJsonAndCheck(
                "POST", f"/app/hook/deliveries/{delivery_id}/attempts"
            )
        )

    async def configure_webhook(self, url: str) -> None:
        """Tell GitHub where the App's webhooks go; their secret is that of the settings."""
        config = {
            "url": url,
            "content_type": "json",
            "insecure_ssl": "0",
            "secret": self._settings.webhook_secret.get_secret_value(),
        }
        await self._lines.as_app(
            lambda app: app.requester.requestJsonAndCheck("PATCH", "/app/hook/config", input=config)
        )

    # -- what an installation can see ------------------------------------------

    async def repositories(self, installation_id: int, page: int = 1) -> Page[Repository]:
        """Return a page (100) of the repositories that the installation can see."""

        def read(github: Github) -> Page[Repository]:
            headers, data = get_page(github, "/installation/repositories", page)
            return Page[Repository](
                items=[wire.repository(item) for item in items_of(data, "repositories")],
                next_page=next_page(headers),
            )

        return await self._lines.as_installation(installation_id, READ_PERMISSIONS, read)

    async def repository(self, installation_id: int, repository_id: int) -> Repository:
        """Return one repository by its id, under its present name."""
        return await self._lines.as_installation(
            installation_id,
            READ_PERMISSIONS,
            lambda github: wire.repository(github.get_repo(repository_id).raw_data),
        )

    async def branches(
        self, installation_id: int, repository_id: int, page: int = 1
    ) -> Page[Branch]:
        """Return a page (100) of the branches."""

        def read(github: Github) -> Page[Branch]:
            headers, data = get_page(github, f"/repositories/{repository_id}/branches", page)
            return Page[Branch](
                items=[wire.branch(item) for item in items_of(data, None)],
                next_page=next_page(headers),
            )

        return await self._lines.as_installation(installation_id, READ_PERMISSIONS, read)

    async def pull_requests(
        self,
        installation_id: int,
        repository_id: int,
        *,
        state: Literal["open", "closed", "all"] = "open",
        page: int = 1,
    ) -> Page[PullRequest]:
        """Return a page (100) of the pull requests, the most recently updated first."""

        def read(github: Github) -> Page[PullRequest]:
            path = f"/repositories/{repository_id}/pulls"
            order = {"state": state, "sort": "updated", "direction": "desc"}
            headers, data = get_page(github, path, page, **order)
            return Page[PullRequest](
                items=[wire.pull_request(item, repository_id) for item in items_of(data, None)],
                next_page=next_page(headers),
            )

        return await self._lines.as_installation(installation_id, READ_PERMISSIONS, read)

    async def pull_request(
        self, installation_id: int, repository_id: int, number: int
    ) -> PullRequest:
        """Return one pull request."""
        return await self._lines.as_installation(
            installation_id,
            READ_PERMISSIONS,
            lambda github: _pull_request(github.get_repo(repository_id), repository_id, number),
        )

    async def permission(
        self, installation_id: int, repository_id: int, login: str
    ) -> PermissionLevel:
        """Return what this person may do in the repository; `none` for a stranger."""

        def read(github: Github) -> PermissionLevel:
            return _level(github.get_repo(repository_id).get_collaborator_permission(login))

        try:
            return await self._lines.as_installation(installation_id, READ_PERMISSIONS, read)
        except NotFound:
            # Either no such person, or no such repository: the second raises here.
            await self.repository(installation_id, repository_id)
            return "none"

    # -- what a person does ----------------------------------------------------

    async def find_pull_request(
        self, token: SecretStr, repository_id: int, head_owner_login: str, head_ref: str
    ) -> PullRequest | None:
        """Return the open pull request of this branch of the same repository, never a fork's."""
        head = f"{head_owner_login}:{head_ref}"
        return await self._lines.as_user(
            token.get_secret_value(),
            lambda github: _open_of_branch(github, repository_id, head),
        )

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
        """Open a pull request as the token's owner; the open one if there is one already."""

        def create(github: Github) -> PullRequest:
            made = github.get_repo(repository_id).create_pull(
                base=base, head=head, title=title, body=body, draft=draft
            )
            return wire.pull_request(made.raw_data, repository_id)

        def existing(github: Github) -> PullRequest | None:
            owner, _, ref = head.rpartition(":")
            if not owner:
                owner = wire.repository(github.get_repo(repository_id).raw_data).owner_login
            return _open_of_branch(github, repository_id, f"{owner}:{ref}", base=base)

        secret = token.get_secret_value()
        try:
            return await self._lines.as_user(secret, create)
        except InvalidInput as error:
            refusal = error
        # GitHub says in words only that there is one already; looking is surer.
        found = await self._lines.as_user(secret, existing)
        if found is None:
            raise refusal
        return found

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

        def update(github: Github) -> PullRequest:
            repo = github.get_repo(repository_id)
            pull = repo.get_pull(number)
            if any(value is not None for value in (title, body, base)):
                pull.edit(title=_given(title), body=_given(body), base=_given(base))
            if draft is not None and pull.draft != draft:  # GraphQL only
                _ = pull.convert_to_draft() if draft else pull.mark_ready_for_review()
            return _pull_request(repo, repository_id, number)

        return await self._lines.as_user(token.get_secret_value(), update)


# -- reading (in a thread) -----------------------------------------------------


def _pull_request(repo: RepositoryObject, repository_id: int, number: int) -> PullRequest:
    return wire.pull_request(repo.get_pull(number).raw_data, repository_id)


def _open_of_branch(
    github: Github, repository_id: int, head: str, base: str | None = None
) -> PullRequest | None:
    """Return the open pull request from *head* (``owner:ref``), unless it is a fork's."""
    only = {"state": "open", "head": head} | ({"base": base} if base else {})
    _, data = get_page(github, f"/repositories/{repository_id}/pulls", 1, **only)
    found = (wire.pull_request(item, repository_id) for item in items_of(data, None))
    ref = head.partition(":")[2]
    return next(
        (p for p in found if p.head_repository_id == repository_id and p.head_ref == ref), None
    )


def _level(written: str) -> PermissionLevel:
    """Return GitHub's level; its finer roles (maintain, triage) come as write and read."""
    levels: dict[str, PermissionLevel] = {
        "admin": "admin",
        "maintain": "write",
        "write": "write",
        "triage": "read",
        "read": "read",
    }
    return levels.get(written, "none")


def _given(value: str | None) -> Any:
    return GithubObject.NotSet if value is None else value
