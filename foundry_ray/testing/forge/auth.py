"""Who is asking, and what the credential allows: App, installation, person, or nobody."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import jwt

from foundry_ray.testing.forge.directory import ACCESS, Directory
from foundry_ray.testing.forge.records import Account, App, Installation, Repository, Token
from foundry_ray.testing.forge.store import instant

INSTALLATION_TOKEN_LIFE = timedelta(hours=1)
JWT_LIFE = 600  # seconds: GitHub refuses an App's JWT that lives longer
JWT_LEEWAY = 30  # seconds by which clocks may differ


class BadCredentials(Exception):
    """The credential is unknown, expired or malformed; the text says which."""


class Suspended(Exception):
    """The installation was suspended."""


@dataclass(frozen=True)
class AsApp:
    """An App that showed a JWT of its own."""

    app: App


@dataclass(frozen=True)
class AsInstallation:
    """An App acting on one account with an installation token."""

    token: Token
    installation: Installation
    bot: Account


@dataclass(frozen=True)
class AsUser:
    """A person, through an App's user token (`app_id`) or a token of their own."""

    token: Token
    user: Account


Principal = AsApp | AsInstallation | AsUser


def digest(secret: str) -> str:
    """Return what is kept of a token or a code."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Gate:
    """Hands out tokens and recognizes them."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.store = directory.store

    # -- handing out ------------------------------------------------------------

    def user_token(self, user: Account, *, app: App | None, scopes: str = "") -> str:
        """Return a new token of a person: ``ghu_`` through an App, ``ghp_`` without."""
        token = ("ghu_" if app else "ghp_") + secrets.token_hex(20)
        self.store.insert(
            "tokens",
            digest=digest(token),
            kind="user" if app else "personal",
            user_id=user.id,
            app_id=None if app is None else app.id,
            installation_id=None,
            scopes=scopes,
            permissions=app.permissions if app else "{}",
            repository_ids=None,
            expires_at=None,
        )
        return token

    def installation_token(
        self,
        installation: Installation,
        permissions: Mapping[str, str],
        repositories: Iterable[int] | None,
    ) -> tuple[str, str]:
        """Return a new installation token (longer than 40 characters) and when it ends."""
        token = "ghs_" + secrets.token_hex(24)
        expires_at = instant(self.store.clock.now() + INSTALLATION_TOKEN_LIFE)
        self.store.insert(
            "tokens",
            digest=digest(token),
            kind="installation",
            user_id=None,
            app_id=installation.app_id,
            installation_id=installation.id,
            scopes="",
            permissions=json.dumps(dict(permissions)),
            repository_ids=None if repositories is None else json.dumps(sorted(repositories)),
            expires_at=expires_at,
        )
        return token, expires_at

    # -- recognizing ------------------------------------------------------------

    def recognize(self, authorization: str) -> Principal | None:
        """Return who stands behind an ``Authorization`` header; none for an empty one.

        Raises:
            BadCredentials: Nobody does.
            Suspended: The token's installation was suspended.
        """
        if not authorization:
            return None
        scheme, _, value = authorization.partition(" ")
        value = value.strip()
        if scheme.lower() == "basic":
            try:
                name, _, word = base64.b64decode(value, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError) as trouble:
                raise BadCredentials("Bad credentials") from trouble
            value = name if word in ("", "x-oauth-basic") else word
        elif scheme.lower() not in ("bearer", "token"):
            raise BadCredentials("Bad credentials")
        if value.count(".") == 2:
            return AsApp(self._app_of(value))
        return self._holder(value)

    def _holder(self, secret: str) -> AsInstallation | AsUser:
        token = self.store.one(Token, "SELECT * FROM tokens WHERE digest = ?", digest(secret))
        if token is None or (token.expires_at is not None and token.expires_at <= self.store.now()):
            raise BadCredentials("Bad credentials")
        if token.user_id is not None:
            return AsUser(token, self.directory.known(token.user_id))
        installation = self.directory.installation(token.installation_id or 0)
        app = self.directory.app(token.app_id or 0)
        if installation is None or app is None:
            raise BadCredentials("Bad credentials")
        if installation.suspended_at is not None:
            raise Suspended
        return AsInstallation(token, installation, self.directory.known(app.bot_id))

    def _app_of(self, text: str) -> App:
        """Return the App that signed a JWT.

        Raises:
            BadCredentials: It is not one, or is expired, or lives too long, or is not signed so.
        """
        try:
            unchecked = jwt.decode(text, options={"verify_signature": False})
            issuer = str(unchecked.get("iss", ""))
            app = self.directory.app_by_client(issuer)
            if app is None and issuer.isdigit():
                app = self.directory.app(int(issuer))
            if app is None:
                raise BadCredentials("Integration not found")
            claims = jwt.decode(
                text,
                app.public_key,
                algorithms=["RS256"],
                leeway=JWT_LEEWAY,
                options={"require": ["exp", "iat"], "verify_iss": False},
            )
        except jwt.ExpiredSignatureError as trouble:
            raise BadCredentials(
                "'Expiration time' claim ('exp') must be a numeric value representing the future"
                " time at which the assertion expires"
            ) from trouble
        except jwt.PyJWTError as trouble:
            raise BadCredentials("A JSON web token could not be decoded") from trouble
        if claims["exp"] - self.store.clock.now().timestamp() > JWT_LIFE + JWT_LEEWAY:
            raise BadCredentials("'Expiration time' claim ('exp') is too far in the future")
        return app

    # -- what they may do -------------------------------------------------------

    def sees(self, principal: Principal | None, repository: Repository) -> bool:
        """Tell whether *principal* may know that this repository exists."""
        if not repository.private:
            return True
        if isinstance(principal, AsInstallation):
            return self._within(principal, repository)
        if isinstance(principal, AsUser):
            return (
                self._app_reaches(principal, repository)
                and self.directory.access(principal.user.id, repository) is not None
            )
        return False

    def may(
        self, principal: Principal | None, repository: Repository, permission: str, level: str
    ) -> bool:
        """Tell whether *principal* may do this (``read``, ``write`` or ``admin``) there.

        Args:
            permission: A repository permission of GitHub Apps, such as ``contents``.
        """
        if isinstance(principal, AsInstallation):
            if not self._within(principal, repository):
                return not repository.private and level == "read"
            return granted(principal.token.permission_map, permission, level)
        if isinstance(principal, AsUser):
            own = self.directory.access(principal.user.id, repository)
            if ACCESS[own] < ACCESS[level]:
                return False
            if not repository.private and level == "read":
                return True
            return self._app_reaches(principal, repository) and (
                principal.token.app_id is None
                or granted(principal.token.permission_map, permission, level)
            )
        return principal is None and not repository.private and level == "read"

    def may_propose(self, principal: Principal | None, repository: Repository) -> bool:
        """Tell whether *principal* may open a pull request: a person needs only to read."""
        if isinstance(principal, AsUser):
            permissions = principal.token.permission_map
            return principal.token.app_id is None or granted(permissions, "pull_requests", "write")
        return self.may(principal, repository, "pull_requests", "write")

    def _within(self, principal: AsInstallation, repository: Repository) -> bool:
        chosen = principal.token.repositories
        return self.directory.covers(principal.installation, repository) and (
            chosen is None or repository.id in chosen
        )

    def _app_reaches(self, principal: AsUser, repository: Repository) -> bool:
        """A person's token through an App reaches only where the App is installed."""
        if principal.token.app_id is None:
            return True
        installation = self.directory.installed_on(principal.token.app_id, repository.owner_id)
        return (
            installation is not None
            and installation.suspended_at is None
            and self.directory.covers(installation, repository)
        )


def granted(permissions: Mapping[str, str], permission: str, level: str) -> bool:
    """Tell whether a map of permissions holds this one at this level or above."""
    return ACCESS.get(permissions.get(permission), 0) >= ACCESS[level]
