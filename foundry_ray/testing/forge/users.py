"""REST: people, organizations and who belongs to them."""

from __future__ import annotations

from starlette.responses import Response

from foundry_ray.testing.forge import shapes
from foundry_ray.testing.forge.auth import AsApp, AsInstallation, AsUser, granted
from foundry_ray.testing.forge.records import Account
from foundry_ray.testing.forge.web import (
    ApiError,
    Call,
    answer,
    invalid,
    listing,
    not_found,
    nothing,
    route,
)


def _public_repositories(call: Call, account: Account) -> int:
    return sum(not one.private for one in call.forge.directory.repositories_of(account.id))


def _organization(call: Call) -> Account:
    """Return the organization in the path, else 404."""
    found = call.forge.directory.account(call.part("org"))
    if found is None or found.kind != "Organization":
        not_found()
    return found


def _reads_members(call: Call, org: Account) -> bool:
    """Tell whether the caller may read the memberships of an organization."""
    match call.principal:
        case AsInstallation(token, installation, _):
            return installation.account_id == org.id and granted(
                token.permission_map, "members", "read"
            )
        case AsUser(token, user):
            if call.forge.directory.role(org.id, user.id) is None:
                return False
            return token.app_id is None or granted(token.permission_map, "members", "read")
        case _:
            return False


# -- people ---------------------------------------------------------------------


async def me(call: Call) -> Response:
    """GET the person behind the token."""
    user = call.user().user
    count = _public_repositories(call, user)
    return answer(shapes.profile(call.forge.at, user, repositories=count, private=True))


async def my_emails(call: Call) -> Response:
    """GET the person's addresses."""
    user = call.user().user
    found = [] if user.email is None else [user.email]
    return listing(
        call,
        found,
        lambda email: {
            "email": email,
            "primary": True,
            "verified": True,
            "visibility": "public",
        },
    )


def _profile(call: Call, account: Account | None) -> Response:
    if account is None:
        not_found()
    count = _public_repositories(call, account)
    return answer(shapes.profile(call.forge.at, account, repositories=count))


async def user_by_login(call: Call) -> Response:
    """GET an account by its login; an organization answers too."""
    return _profile(call, call.forge.directory.account(call.part("login")))


async def user_by_id(call: Call) -> Response:
    """GET an account by its id, which never changes."""
    return _profile(call, call.forge.directory.account_by_id(call.number("id")))


# -- organizations --------------------------------------------------------------


def _organization_profile(call: Call, org: Account | None) -> Response:
    if org is None or org.kind != "Organization":
        not_found()
    count = _public_repositories(call, org)
    return answer(shapes.organization_profile(call.forge.at, org, repositories=count))


async def organization(call: Call) -> Response:
    """GET an organization by its login."""
    return _organization_profile(call, _organization(call))


async def organization_by_id(call: Call) -> Response:
    """GET an organization by its id, which never changes."""
    return _organization_profile(call, call.forge.directory.account_by_id(call.number("id")))


async def my_organizations(call: Call) -> Response:
    """GET the organizations that the person belongs to."""
    found = call.forge.directory.memberships(call.user().user.id)
    return listing(call, found, lambda pair: shapes.organization(call.forge.at, pair[0]))


async def my_memberships(call: Call) -> Response:
    """GET the person's memberships with the role in each."""
    user = call.user().user
    found = call.forge.directory.memberships(user.id)
    if call.query("state") == "pending":  # nobody has to accept an invitation here
        found = []
    return listing(
        call, found, lambda pair: shapes.membership(call.forge.at, pair[0], user, pair[1])
    )


async def my_membership(call: Call) -> Response:
    """GET the person's own membership of one organization."""
    return _membership(call, _organization(call), call.user().user)


async def members(call: Call) -> Response:
    """GET the members of an organization, by role; strangers see none of them."""
    org, role = _organization(call), call.query("role", "all")
    if role not in ("all", "admin", "member"):
        invalid({"resource": "Organization", "field": "role", "code": "invalid"})
    if not _reads_members(call, org):
        if isinstance(call.principal, AsInstallation | AsApp):
            raise ApiError(403, "Resource not accessible by integration")
        return listing(call, [], dict)
    found = [user for user, has in call.forge.directory.members(org.id) if role in ("all", has)]
    return listing(call, found, lambda user: shapes.account(call.forge.at, user))


async def is_member(call: Call) -> Response:
    """GET 204 if a person belongs to an organization, else 404."""
    org = _organization(call)
    user = call.forge.directory.account(call.part("login"))
    if user is None or call.forge.directory.role(org.id, user.id) is None:
        not_found()
    if not _reads_members(call, org):
        not_found()
    return nothing()


async def membership(call: Call) -> Response:
    """GET a person's membership of an organization; 404 for somebody who has none."""
    org = _organization(call)
    login = call.part("login")
    if not _reads_members(call, org):
        if isinstance(call.principal, AsUser):
            raise ApiError(
                403,
                f"You must be a member of {org.login} to see membership information for {login}.",
            )
        raise ApiError(403, "Resource not accessible by integration")
    user = call.forge.directory.account(login)
    if user is None:
        not_found()
    return _membership(call, org, user)


def _membership(call: Call, org: Account, user: Account) -> Response:
    role = call.forge.directory.role(org.id, user.id)
    if role is None:
        not_found()
    return answer(shapes.membership(call.forge.at, org, user, role))


ROUTES = [
    route("GET", "/user", me),
    route("GET", "/user/emails", my_emails),
    route("GET", "/user/orgs", my_organizations),
    route("GET", "/user/memberships/orgs", my_memberships),
    route("GET", "/user/memberships/orgs/{org}", my_membership),
    route("GET", "/user/{id:int}", user_by_id),
    route("GET", "/users/{login}", user_by_login),
    route("GET", "/organizations/{id:int}", organization_by_id),
    route("GET", "/orgs/{org}", organization),
    route("GET", "/orgs/{org}/members", members),
    route("GET", "/orgs/{org}/members/{login}", is_member),
    route("GET", "/orgs/{org}/memberships/{login}", membership),
]
