"""REST: the GitHub App, its installations and their tokens."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from foundry_ray.testing.forge import shapes
from foundry_ray.testing.forge.auth import AsInstallation, granted
from foundry_ray.testing.forge.directory import ACCESS
from foundry_ray.testing.forge.records import Account, App, Installation, Repository
from foundry_ray.testing.forge.repositories import listed
from foundry_ray.testing.forge.web import (
    ApiError,
    Call,
    answer,
    listing,
    not_found,
    nothing,
    route,
    wrapped,
)


def _shape(call: Call, installation: Installation) -> dict[str, Any]:
    directory = call.forge.directory
    app = directory.app(installation.app_id)
    assert app is not None, "an installation belongs to an App"
    suspender = (
        None if installation.suspended_by is None else directory.known(installation.suspended_by)
    )
    holder = directory.known(installation.account_id)
    return shapes.installation(call.forge.at, installation, holder, app.slug, suspender)


async def me(call: Call) -> Response:
    """GET the App behind the JWT."""
    app = call.app().app
    owner = call.forge.directory.known(app.owner_id)
    count = len(call.forge.directory.installations(app.id))
    return answer(shapes.app(call.forge.at, app, owner, installations=count))


# -- installations --------------------------------------------------------------


async def installations(call: Call) -> Response:
    """GET the App's installations."""
    found = call.forge.directory.installations(call.app().app.id)
    return listing(call, found, lambda one: _shape(call, one))


def _installation(call: Call, app: App) -> Installation:
    found = call.forge.directory.installation(call.number("installation_id"))
    if found is None or found.app_id != app.id:
        not_found()
    return found


async def get_installation(call: Call) -> Response:
    """GET one installation of the App."""
    return answer(_shape(call, _installation(call, call.app().app)))


def _on(call: Call, account: Account | None, repository: Repository | None = None) -> Response:
    app = call.app().app
    if account is None:
        not_found()
    found = call.forge.directory.installed_on(app.id, account.id)
    if found is None or (
        repository is not None and not call.forge.directory.covers(found, repository)
    ):
        not_found()
    return answer(_shape(call, found))


async def organization_installation(call: Call) -> Response:
    """GET the App's installation on an organization."""
    return _on(call, call.forge.directory.account(call.part("org")))


async def user_installation(call: Call) -> Response:
    """GET the App's installation on an account."""
    return _on(call, call.forge.directory.account(call.part("login")))


async def repository_installation(call: Call) -> Response:
    """GET the App's installation that reaches a repository."""
    call.app()
    repository = call.forge.directory.repository(call.part("owner"), call.part("repo"))
    if repository is None:
        not_found()
    return _on(call, call.forge.directory.known(repository.owner_id), repository)


async def my_installations(call: Call) -> Response:
    """GET the installations that a person reaches through the App that gave the token."""
    caller = call.user()
    if caller.token.app_id is None:
        raise ApiError(403, "You must authenticate with an access token authorized to a GitHub App")
    found = [
        installation
        for installation in call.forge.directory.installations(caller.token.app_id)
        if any(
            call.forge.directory.access(caller.user.id, repository)
            for repository in call.forge.directory.covered(installation)
        )
        or call.forge.directory.role(installation.account_id, caller.user.id)
    ]
    return wrapped(call, "installations", found, lambda one: _shape(call, one))


async def my_installation_repositories(call: Call) -> Response:
    """GET the repositories that a person reaches through one installation."""
    caller = call.user()
    installation = call.forge.directory.installation(call.number("installation_id"))
    if installation is None or installation.app_id != caller.token.app_id:
        not_found()
    found = [
        repository
        for repository in call.forge.directory.covered(installation)
        if call.forge.directory.access(caller.user.id, repository)
    ]
    return wrapped(call, "repositories", found, lambda one: listed(call, one))


async def installation_repositories(call: Call) -> Response:
    """GET the repositories that an installation token reaches."""
    caller = call.principal
    if not isinstance(caller, AsInstallation):
        raise ApiError(403, "Must authenticate with an installation access token")
    if not granted(caller.token.permission_map, "metadata", "read"):
        raise ApiError(403, "Resource not accessible by integration")
    found = [
        repository
        for repository in call.forge.directory.covered(caller.installation)
        if call.forge.gate.sees(caller, repository)
        and (caller.token.repositories is None or repository.id in caller.token.repositories)
    ]
    selection = "all" if caller.token.repositories is None else "selected"
    return wrapped(
        call,
        "repositories",
        found,
        lambda one: listed(call, one),
        repository_selection=selection,
    )


async def delete_installation(call: Call) -> Response:
    """DELETE an installation: its tokens end and the App is told."""
    app = call.app().app
    installation = _installation(call, app)
    with call.forge.store.transaction():
        uninstall(call, installation, call.forge.directory.known(app.owner_id))
    return nothing()


def uninstall(call: Call, installation: Installation, sender: Account) -> None:
    """Remove an installation within the caller's transaction."""
    directory, store = call.forge.directory, call.forge.store
    holder = directory.known(installation.account_id)
    names = [shapes.repository_name(one, holder) for one in directory.covered(installation)]
    call.forge.webhooks.emit_installation(
        "installation", "deleted", installation, {"repositories": names}, sender
    )
    store.run("DELETE FROM tokens WHERE installation_id = ?", installation.id)
    store.run("DELETE FROM installation_repositories WHERE installation_id = ?", installation.id)
    store.run("DELETE FROM installations WHERE id = ?", installation.id)


async def suspend(call: Call) -> Response:
    """PUT an installation out of service: its tokens are refused until it is back."""
    return _suspension(call, suspended=True)


async def unsuspend(call: Call) -> Response:
    """DELETE the suspension of an installation."""
    return _suspension(call, suspended=False)


def _suspension(call: Call, *, suspended: bool) -> Response:
    app = call.app().app
    installation = _installation(call, app)
    now = call.forge.store.now()
    sender = call.forge.directory.known(app.owner_id)
    with call.forge.store.transaction():
        call.forge.store.update(
            "installations",
            installation.id,
            suspended_at=now if suspended else None,
            suspended_by=sender.id if suspended else None,
            updated_at=now,
        )
        action = "suspend" if suspended else "unsuspend"
        fresh = call.forge.directory.installation(installation.id)
        assert fresh is not None, "just changed"
        call.forge.webhooks.emit_installation("installation", action, fresh, {}, sender)
    return nothing()


# -- tokens ---------------------------------------------------------------------


async def create_token(call: Call) -> Response:
    """POST a token for an hour, as narrow as it is asked for."""
    installation = _installation(call, call.app().app)
    if installation.suspended_at is not None:
        raise ApiError(403, "This installation has been suspended")
    permissions = _permissions(call, installation)
    chosen = _chosen(call, installation)
    ids = None if chosen is None else [repository.id for repository in chosen]
    token, expires_at = call.forge.gate.installation_token(installation, permissions, ids)
    body: dict[str, Any] = {
        "token": token,
        "expires_at": expires_at,
        "permissions": permissions,
        "repository_selection": installation.selection if chosen is None else "selected",
    }
    if chosen is not None:
        body["repositories"] = [
            shapes.repository(
                call.forge.at, one, call.forge.directory.known(one.owner_id), open_pulls=0
            )
            for one in chosen
        ]
    return answer(body, 201)


def _permissions(call: Call, installation: Installation) -> dict[str, str]:
    own = installation.permission_map
    asked = call.body.get("permissions") or own  # an empty map is everything, as on GitHub
    if not isinstance(asked, dict):
        raise ApiError(422, "Invalid request.\n\n'permissions' is not an object.")
    for name, level in asked.items():
        if level not in ("read", "write", "admin"):
            raise ApiError(422, f"Invalid request.\n\n{level!r} is not a level of {name}.")
        if not granted(own, name, level):
            raise ApiError(422, "The permissions requested are not granted to this installation.")
    narrowed = {str(name): str(level) for name, level in asked.items()}
    if "metadata" in own and ACCESS[narrowed.get("metadata")] < ACCESS["read"]:
        narrowed["metadata"] = "read"
    return narrowed


def _chosen(call: Call, installation: Installation) -> list[Repository] | None:
    ids, names = call.body.get("repository_ids"), call.body.get("repositories")
    if ids is None and names is None:
        return None
    reach = call.forge.directory.covered(installation)
    by_key: dict[Any, Repository] = {one.id: one for one in reach}
    by_key |= {one.name.lower(): one for one in reach}
    wanted = [*(ids or []), *(str(name).lower() for name in names or [])]
    if not all(key in by_key for key in wanted):
        raise ApiError(
            422,
            "There is at least one repository that does not exist or is not accessible to the"
            " parent installation.",
        )
    return list({by_key[key].id: by_key[key] for key in wanted}.values())


async def revoke_token(call: Call) -> Response:
    """DELETE the installation token that asks."""
    if not isinstance(call.principal, AsInstallation):
        raise ApiError(401, "Requires authentication")
    call.forge.store.run("DELETE FROM tokens WHERE digest = ?", call.principal.token.digest)
    return nothing()


_ONE = "/app/installations/{installation_id}"
ROUTES = [
    route("GET", "/app", me),
    route("GET", "/app/installations", installations),
    route("GET", _ONE, get_installation),
    route("DELETE", _ONE, delete_installation),
    route("PUT", f"{_ONE}/suspended", suspend),
    route("DELETE", f"{_ONE}/suspended", unsuspend),
    route("POST", f"{_ONE}/access_tokens", create_token),
    route("GET", "/orgs/{org}/installation", organization_installation),
    route("GET", "/users/{login}/installation", user_installation),
    route("GET", "/repos/{owner}/{repo}/installation", repository_installation),
    route("GET", "/user/installations", my_installations),
    route(
        "GET", "/user/installations/{installation_id}/repositories", my_installation_repositories
    ),
    route("GET", "/installation/repositories", installation_repositories),
    route("DELETE", "/installation/token", revoke_token),
]
