"""The App's own credentials: its signed JWT, and tokens of its installations.

PyGithub mints an installation token without naming repositories, and with every
permission unless told otherwise; here both are always said.
"""

from __future__ import annotations

from datetime import timedelta

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from github import Auth, Github
from urllib3 import Retry

from foundry_ray.core.errors import InvalidInput, Unauthenticated
from foundry_ray.integrations.github import wire
from foundry_ray.integrations.github.base import GitHubSettings, InstallationToken

USER_AGENT = "foundry"
PAGE_SIZE = 100  # the most that GitHub gives

RENEW_BEFORE = timedelta(minutes=5)
"""A kept installation token is used until this long before it ends."""

READ_PERMISSIONS = {"contents": "read", "metadata": "read", "pull_requests": "read"}
"""All that reading repositories, branches, pull requests and members' rights needs."""


def connect(settings: GitHubSettings, auth: Auth.Auth, *, mints: bool = False) -> Github:
    """Return a PyGithub client for one identity; it is lazy and never sleeps for a rate limit.

    Args:
        settings: Where GitHub is.
        auth: Who calls.
        mints: The client only mints tokens and manages the webhook; these are not the
            writes between which GitHub wants pauses.
    """
    retries = settings.retries
    return Github(
        auth=auth,
        base_url=settings.api_url,
        timeout=settings.timeout,
        user_agent=USER_AGENT,
        per_page=PAGE_SIZE,
        # A plain Retry: PyGithub's own sleeps through rate limits inside the thread.
        retry=Retry(
            total=retries,
            connect=retries,
            read=min(retries, 1),  # a kept connection that the other side just closed
            status=retries,
            other=0,
            allowed_methods=frozenset({"GET"}),
            status_forcelist=(500, 502, 503, 504),
            backoff_factor=0.2,
            raise_on_status=False,
            respect_retry_after_header=False,
        ),
        seconds_between_requests=settings.seconds_between_requests,
        seconds_between_writes=None if mints else settings.seconds_between_writes,
        lazy=True,
    )


def app_auth(settings: GitHubSettings) -> Auth.AppAuth:
    """Return the App's identity; it signs a new JWT (RS256, 5 minutes) for each request.

    Raises:
        Unauthenticated: The key of the settings is not a private RSA key in PEM.
    """
    pem = settings.app_key.get_secret_value()
    try:
        usable = isinstance(load_pem_private_key(pem.encode(), None), RSAPrivateKey)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        usable = False
    if not usable:
        raise Unauthenticated(
            "The GitHub App's private key cannot be used.",
            hint="Give the PEM file that GitHub made for this App.",
        )
    return Auth.AppAuth(settings.app_id, pem)


def mint(
    app: Github,
    installation_id: int,
    *,
    repository_ids: list[int] | None,
    permissions: dict[str, str],
) -> InstallationToken:
    """Ask GitHub for a token with these permissions only (blocking).

    Raises:
        InvalidInput: No permission or an empty list of repositories was given, which
            GitHub would read as "everything".
    """
    if not permissions:
        raise InvalidInput("Say which permissions the installation token needs.")
    body: dict[str, object] = {"permissions": permissions}
    if repository_ids is not None:
        if not repository_ids:
            raise InvalidInput("Say which repositories the installation token is for.")
        body["repository_ids"] = repository_ids
    _, answer = app.requester.requestJsonAndCheck(
        "POST", f"/app/installations/{installation_id}/access_tokens", input=body
    )
    return wire.installation_token(answer)
