"""Sign-in with GitHub: the OAuth web flow with PKCE, over httpx.

PyGithub knows neither PKCE nor GitHub's way to refuse (status 200 with `error`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
from pydantic import SecretStr

from foundry_ray.core.clock import Clock
from foundry_ray.core.errors import (
    FoundryError,
    GitHubUnavailable,
    InvalidInput,
    Unauthenticated,
)
from foundry_ray.integrations.github.app_auth import USER_AGENT
from foundry_ray.integrations.github.base import GitHubSettings, UserToken
from foundry_ray.integrations.github.errors import of_answer, redact

_OUR_FAULT = frozenset({"incorrect_client_credentials", "application_suspended"})


class OAuth:
    """The two steps of the flow that Foundry takes part in."""

    def __init__(self, settings: GitHubSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._http = httpx.AsyncClient(
            timeout=settings.timeout,
            headers={"Accept": "application/json", "User-Agent": USER_AGENT},
        )

    def authorize_url(
        self, *, state: str, code_challenge: str, redirect_uri: str, login: str | None = None
    ) -> str:
        """Return the page where a person signs in; *login* suggests the account."""
        query = {
            "client_id": self._settings.client_id,
            "redirect_uri": redirect_uri,
            "state": state,
            "code_challenge": code_challenge,
            "code_challenge_method": "S256",
        }
        if login is not None:
            query["login"] = login
        return f"{self._web}/login/oauth/authorize?{urlencode(query)}"

    async def exchange_code(self, code: str, code_verifier: str, redirect_uri: str) -> UserToken:
        """Turn a sign-in code into the person's token; see the port for its errors."""
        secret = self._settings.client_secret.get_secret_value()
        form = {
            "client_id": self._settings.client_id,
            "client_secret": secret,
            "code": code,
            "code_verifier": code_verifier,
            "redirect_uri": redirect_uri,
        }
        outcome = await self._post(form)
        if isinstance(outcome, FoundryError):
            raise outcome
        if refusal := outcome.get("error"):
            raise self._refused(str(refusal), outcome, secrets=(secret, code, code_verifier))
        return self._token(outcome)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @property
    def _web(self) -> str:
        return self._settings.web_url.rstrip("/")

    async def _post(self, form: dict[str, str]) -> dict[str, Any] | FoundryError:
        """Post the form; errors are returned, so that none is chained to the request."""
        try:
            answer = await self._http.post(f"{self._web}/login/oauth/access_token", data=form)
            data = answer.json()
        except httpx.HTTPError as error:
            return GitHubUnavailable(reason=type(error).__name__)
        except ValueError:  # not JSON
            data = None
        if answer.status_code == 404:
            return self._unknown_app("client id unknown")
        if answer.status_code >= 400 and not (isinstance(data, dict) and data.get("error")):
            return of_answer(
                answer.status_code,
                answer.headers,
                data,
                now=self._clock.now(),
                secrets=form.values(),
            )
        if not isinstance(data, dict):
            return GitHubUnavailable("GitHub's answer was not understood.")
        return data

    def _refused(
        self, refusal: str, data: dict[str, Any], secrets: tuple[str, ...]
    ) -> FoundryError:
        if refusal in _OUR_FAULT:
            return self._unknown_app(refusal)
        said = redact(str(data.get("error_description") or ""), secrets)
        return InvalidInput(
            "GitHub refused the sign-in.",
            hint="Begin the sign-in again.",
            reason=redact(refusal, secrets),
            github=said,
        )

    def _unknown_app(self, reason: str) -> Unauthenticated:
        return Unauthenticated(
            "GitHub does not accept Foundry's client id or secret.",
            hint="Check the GitHub settings of this Foundry.",
            reason=reason,
        )

    def _token(self, data: dict[str, Any]) -> UserToken:
        access, refresh = data.get("access_token"), data.get("refresh_token")
        if not isinstance(access, str) or not access:
            raise GitHubUnavailable("GitHub's answer was not understood.")
        lasts = data.get("expires_in")
        scopes = str(data.get("scope") or "")
        return UserToken(
            access_token=SecretStr(access),
            expires_at=self._clock.now() + timedelta(seconds=int(lasts)) if lasts else None,
            refresh_token=SecretStr(refresh) if isinstance(refresh, str) and refresh else None,
            scopes=[scope for scope in scopes.replace(",", " ").split() if scope],
        )
