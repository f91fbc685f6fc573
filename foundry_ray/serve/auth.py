"""Who is calling, and whether they may: every route names the right that it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from foundry_ray.actors.app_shell import read_models as app_shell
from foundry_ray.core.errors import NotFound, PermissionDenied, Unauthenticated, Unavailable
from foundry_ray.core.messages import Person
from foundry_ray.core.secrets import fingerprint
from foundry_ray.serve.services import Services, services_of
from foundry_ray.store.engine import Transaction

COOKIE = "foundry_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
Right = Literal["user", "organization.member"]


@dataclass(frozen=True)
class Principal:
    """A person with a session or an API token.

    Attributes:
        id: The session's or the token's id.
        token_hash: Under which it is stored; the stream looks again by it.
        role: In the organization that was asked for; None for a stranger.
    """

    via: Literal["session", "token"]
    id: str
    token_hash: str
    person: Person
    avatar_url: str
    active_organization_id: str | None
    role: str | None

    @property
    def scope(self) -> str:
        """Return the name under which this person's commands are kept."""
        return f"user/{self.person.id}:"


async def identify(
    connection: HTTPConnection, transaction: Transaction, organization_id: str | None = None
) -> Principal | None:
    """Return who calls, or None: a bearer token counts before a cookie.

    Raises:
        Unauthenticated: A token was given, and it is worthless.
        Unavailable: The person's own data are missing: the session came before them.
    """
    services = services_of(connection)
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    via: Literal["session", "token"]
    if scheme:
        via, secret = "token", token.strip()
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated("Only bearer tokens are accepted.")
    else:
        via, secret = "session", connection.cookies.get(COOKIE, "")
        if not secret:
            return None
    token_hash = fingerprint(secret)
    row = await app_shell.get_principal(
        transaction, via, token_hash, services.clock.now(), organization_id
    )
    if row is None:
        if via == "token":
            raise Unauthenticated("This API token is not valid, or has expired.")
        return None
    if row["login"] is None:
        raise Unavailable("Your account is being read from GitHub.", hint="Try again at once.")
    return Principal(
        via=via,
        id=row["id"],
        token_hash=token_hash,
        person=Person(
            kind="user",
            id=row["user_id"],
            login=row["login"],
            name=row["name"] or "",
            email=row["email"] or "",
        ),
        avatar_url=row["avatar_url"] or "",
        active_organization_id=row["active_organization_id"],
        role=row["role"],
    )


def check_origin(connection: HTTPConnection, method: str, services: Services) -> None:
    """Refuse what another site made a browser send: cookies travel by themselves.

    Raises:
        PermissionDenied: An unsafe request with a cookie whose origin is not Foundry's.
    """
    if method in SAFE_METHODS:
        return
    said = connection.headers.get("origin") or connection.headers.get("referer") or ""
    ours = {urlsplit(services.settings.public_url).netloc, connection.headers.get("host", "")}
    if urlsplit(said).netloc not in ours - {""}:
        raise PermissionDenied(
            "This request does not come from Foundry's own pages.",
            hint=f"Send the header Origin: {services.settings.public_url}, or use an API token.",
        )


async def visitor(request: Request) -> Principal | None:
    """Return who calls; None for an anonymous caller, who may be here too."""
    async with services_of(request).database.transaction() as transaction:
        return await identify(request, transaction)


def right(needed: Right) -> Callable[[Request], Awaitable[Principal]]:
    """Return the dependency that lets in who has a right.

    ``user``: who is signed in. ``organization.member``: a member of ``{org}`` in the path;
    for anybody else the organization does not exist.
    """

    async def check(request: Request) -> Principal:
        services = services_of(request)
        organization_id = request.path_params.get("org")
        async with services.database.transaction() as transaction:
            principal = await identify(request, transaction, organization_id)
        if principal is None:
            raise Unauthenticated
        if principal.via == "session":
            check_origin(request, request.method, services)
        if needed == "organization.member" and principal.role is None:
            raise NotFound
        return principal

    return check


User = Annotated[Principal, Depends(right("user"))]
Member = Annotated[Principal, Depends(right("organization.member"))]
Visitor = Annotated[Principal | None, Depends(visitor)]
