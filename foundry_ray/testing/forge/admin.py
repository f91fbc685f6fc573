"""The test-only part below ``/-/``: what on GitHub a person does in the browser.

Every request but the health check needs the header ``X-Forge-Admin`` with the secret of the
forge's directory.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foundry_ray.testing.forge import making, shapes
from foundry_ray.testing.forge.context import Forge
from foundry_ray.testing.forge.records import Account, App
from foundry_ray.testing.forge.web import ApiError, not_found

LOOPBACK = ("127.0.0.1", "::1")
log = logging.getLogger("foundry.forge")

AdminHandler = Callable[[Forge, Request, dict[str, Any]], Awaitable[Any]]


def _route(method: str, path: str, handler: AdminHandler) -> Route:
    async def endpoint(request: Request) -> Response:
        forge: Forge = request.app.state.forge
        shown = request.headers.get("x-forge-admin", "")
        local = request.client is not None and request.client.host in LOOPBACK
        if not local or not hmac.compare_digest(shown.encode(), forge.admin_secret.encode()):
            return JSONResponse({"message": "Forbidden"}, 403)
        try:
            raw = await request.body()
            body = json.loads(raw) if raw else {}
            if not isinstance(body, dict):
                raise ApiError(400, "Body should be a JSON object")
            return JSONResponse(await handler(forge, request, body))
        except json.JSONDecodeError:
            return JSONResponse({"message": "Problems parsing JSON"}, 400)
        except ApiError as trouble:
            return JSONResponse(trouble.body, trouble.status)

    return Route(f"/-{path}", endpoint, methods=[method])


async def health(request: Request) -> Response:
    """Answer that the forge serves."""
    return JSONResponse({"status": "ok"})


def _text_map(value: Any) -> dict[str, str]:
    """Return a JSON object of texts, else 422."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ApiError(422, f"Invalid request.\n\n{json.dumps(value)[:100]} is not a map of texts.")
    return value


def _account(forge: Forge, request: Request, part: str, kind: str) -> Account:
    found = forge.directory.account(request.path_params[part])
    if found is None or found.kind != kind:
        not_found()
    return found


def _owner(forge: Forge, org: Account) -> Account:
    """Return who acts for an organization: its first owner."""
    owners = [user for user, role in forge.directory.members(org.id) if role == "admin"]
    return owners[0] if owners else org


async def state(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """GET what there is, with the git directory of each repository."""
    directory = forge.directory
    accounts = forge.store.all(Account, "SELECT * FROM accounts ORDER BY id")
    apps = forge.store.all(App, "SELECT * FROM apps ORDER BY id")
    return {
        "url": forge.at.base,
        "accounts": [
            {"id": one.id, "login": one.login, "kind": one.kind, "email": one.email}
            for one in accounts
        ],
        "organizations": {
            one.login: {user.login: role for user, role in directory.members(one.id)}
            for one in accounts
            if one.kind == "Organization"
        },
        "repositories": [
            {
                "id": one.id,
                "full_name": f"{directory.known(one.owner_id).login}/{one.name}",
                "git_dir": str(forge.git(one).path),
                "open_pulls": directory.open_pulls(one.id),
            }
            for one in directory.all_repositories()
        ],
        "apps": [
            {
                "id": app.id,
                "slug": app.slug,
                "client_id": app.client_id,
                "webhook_url": app.webhook_url,
                "installations": [
                    {"id": one.id, "account": directory.known(one.account_id).login}
                    for one in directory.installations(app.id)
                ],
            }
            for app in apps
        ],
        "deliveries": {
            "recorded": forge.store.value("SELECT count(*) FROM deliveries"),
            "waiting": forge.webhooks.waiting(),
            "paused": forge.webhooks.paused,
        },
        "rate_limit": forge.limits.limit,
    }


async def add_repository(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """POST a repository: ``name``, and ``files`` (path to text), ``private``, ``description``."""
    org = _account(forge, request, "org", "Organization")
    sender = _owner(forge, org)
    files = _text_map(body.get("files", {"README.md": f"# {body.get('name')}\n"}))
    made = await making.build(
        forge,
        org,
        str(body.get("name", "")),
        description=body.get("description"),
        private=body.get("private", True) is True,
        history=[("First commit\n", sender, files)] if files else [],
        default_branch=str(body.get("default_branch", "main")),
    )
    with forge.store.transaction():
        making.tell_created(forge, made, sender)
    return shapes.repository(forge.at, made, org) | {"git_dir": str(forge.git(made).path)}


async def put_member(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """PUT a person into an organization with a ``role``: admin or member."""
    org = _account(forge, request, "org", "Organization")
    user = _account(forge, request, "login", "User")
    role = body.get("role", "member")
    if role not in ("admin", "member"):
        raise ApiError(422, "role is admin or member")
    with forge.store.transaction():
        before = forge.directory.role(org.id, user.id)
        forge.store.run(
            "INSERT OR REPLACE INTO members (org_id, user_id, role) VALUES (?, ?, ?)",
            org.id,
            user.id,
            role,
        )
        if before is None:
            _tell_membership(forge, "member_added", org, user, role)
    return {"login": user.login, "role": role}


async def remove_member(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """DELETE a person from an organization."""
    org = _account(forge, request, "org", "Organization")
    user = _account(forge, request, "login", "User")
    with forge.store.transaction():
        role = forge.directory.role(org.id, user.id)
        if role is None:
            not_found()
        forge.store.run("DELETE FROM members WHERE org_id = ? AND user_id = ?", org.id, user.id)
        _tell_membership(forge, "member_removed", org, user, role)
    return {"login": user.login, "role": None}


def _tell_membership(forge: Forge, action: str, org: Account, user: Account, role: str) -> None:
    membership = shapes.membership(forge.at, org, user, role)
    del membership["organization"]  # webhooks carry it beside the membership
    forge.webhooks.emit(
        "organization", action, {"membership": membership}, owner=org, sender=_owner(forge, org)
    )


async def add_user(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """POST a person: ``login``, and ``name``, ``email``."""
    return _add_account(forge, body, "User")


async def add_organization(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """POST an organization: ``login``, and ``name``, ``email``, ``owner`` (a person's login)."""
    owner = forge.directory.account(str(body.get("owner", "")))
    with forge.store.transaction():
        made = _add_account(forge, body, "Organization")
        if owner is not None and owner.kind == "User":
            forge.store.insert("members", org_id=made["id"], user_id=owner.id, role="admin")
    return made


def _add_account(forge: Forge, body: dict[str, Any], kind: str) -> dict[str, Any]:
    login = str(body.get("login", ""))
    if not login or not all(letter.isalnum() or letter == "-" for letter in login):
        raise ApiError(422, "login has letters, digits and hyphens only")
    if forge.directory.account(login) is not None:
        raise ApiError(422, "login is already taken")
    email = body.get("email", f"{login}@forge.invalid")
    made = forge.directory.add_account(login, kind, body.get("name"), email)
    return shapes.account(forge.at, made)


async def add_token(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """POST a personal token of a person, to act as that person from a script."""
    user = _account(forge, request, "login", "User")
    scopes = str(body.get("scopes", "repo, read:org, user:email"))
    return {"token": forge.gate.user_token(user, app=None, scopes=scopes)}


async def install(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """POST an App's installation: ``app`` (slug), and ``repositories`` to select some by name."""
    holder = forge.directory.account(request.path_params["login"])
    app = forge.directory.app_by_slug(str(body.get("app", "")))
    if holder is None or app is None:
        not_found()
    if forge.directory.installed_on(app.id, holder.id) is not None:
        raise ApiError(422, "It is installed there already")
    names, now = body.get("repositories"), forge.store.now()
    sender = _owner(forge, holder) if holder.kind == "Organization" else holder
    with forge.store.transaction():
        made = forge.store.insert(
            "installations",
            app_id=app.id,
            account_id=holder.id,
            selection="all" if names is None else "selected",
            permissions=app.permissions,
            events=app.events,
            created_at=now,
            updated_at=now,
        )
        for name in names or []:
            repository = forge.directory.repository(holder.login, str(name))
            if repository is None:
                not_found()
            forge.store.insert(
                "installation_repositories", installation_id=made, repository_id=repository.id
            )
        installation = forge.directory.installation(made)
        assert installation is not None, "just inserted"
        covered = forge.directory.covered(installation)
        payload = {"repositories": [shapes.repository_name(one, holder) for one in covered]}
        forge.webhooks.emit_installation("installation", "created", installation, payload, sender)
    return shapes.installation(forge.at, installation, holder, app.slug, None)


async def pause(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """POST: from now on the webhook's receiver counts as unreachable."""
    forge.webhooks.pause(True)
    return {"paused": True}


async def resume(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """POST: the webhook's receiver is reachable again; what failed stays failed."""
    forge.webhooks.pause(False)
    return {"paused": False}


async def rate_limit(forge: Forge, request: Request, body: dict[str, Any]) -> Any:
    """POST the ``limit`` of requests in an hour and count anew."""
    limit = body.get("limit")
    if not isinstance(limit, int) or limit < 0:
        raise ApiError(422, "limit is a number of requests")
    forge.limits.set_limit(limit)
    return {"limit": limit}


ROUTES = [
    Route("/-/healthz", health, methods=["GET"]),
    _route("GET", "/state", state),
    _route("POST", "/users", add_user),
    _route("POST", "/users/{login}/tokens", add_token),
    _route("POST", "/orgs", add_organization),
    _route("POST", "/orgs/{org}/repositories", add_repository),
    _route("PUT", "/orgs/{org}/members/{login}", put_member),
    _route("DELETE", "/orgs/{org}/members/{login}", remove_member),
    _route("POST", "/accounts/{login}/installations", install),
    _route("POST", "/deliveries/pause", pause),
    _route("POST", "/deliveries/resume", resume),
    _route("POST", "/rate-limit", rate_limit),
]
