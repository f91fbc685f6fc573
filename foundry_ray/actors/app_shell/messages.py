"""What others may say to the application."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from foundry_ray.core.facts import AccountFacts, ConnectedAccount
from foundry_ray.core.messages import Command, Event, Person


class BeginSignIn(Command):
    """Remember that a browser was sent to GitHub with a state."""

    kind: Literal["app_shell.begin_sign_in"] = "app_shell.begin_sign_in"
    state_hash: str
    return_to: str


class CompleteSignIn(Command):
    """A browser came back from GitHub; answered when the session exists.

    ``session_hash`` is of the cookie that the browser gets if this succeeds.
    """

    kind: Literal["app_shell.complete_sign_in"] = "app_shell.complete_sign_in"
    state: str
    sealed_code: str
    redirect_uri: str
    session_hash: str


class SignInSucceeded(Event):
    """GitHub said who it is and what they may see; their own data are kept already."""

    kind: Literal["app_shell.sign_in_succeeded"] = "app_shell.sign_in_succeeded"
    state_hash: str
    user_id: str
    accounts: list[ConnectedAccount]


class SignInFailed(Event):
    """GitHub refused, or did not answer."""

    kind: Literal["app_shell.sign_in_failed"] = "app_shell.sign_in_failed"
    state_hash: str
    code: str
    message: str


class SignOut(Command):
    """End an app session at once."""

    kind: Literal["app_shell.sign_out"] = "app_shell.sign_out"
    session_id: str
    user_id: str


class CreateToken(Command):
    """Keep the hash of an API token that the caller made."""

    kind: Literal["app_shell.create_token"] = "app_shell.create_token"
    id: str
    user_id: str
    name: str
    token_hash: str
    expires_at: datetime | None


class DeleteToken(Command):
    """Make an API token worthless at once."""

    kind: Literal["app_shell.delete_token"] = "app_shell.delete_token"
    id: str
    user_id: str


class InstallationSeen(Event):
    """The App was installed on, or removed from, an account."""

    kind: Literal["app_shell.installation_seen"] = "app_shell.installation_seen"
    account: AccountFacts
    installation_id: str | None
    suspended: bool = False


class ClearAppIssues(Command):
    """Clear one runtime issue of the application, or all (S30)."""

    kind: Literal["app_shell.clear_issues"] = "app_shell.clear_issues"
    by: Person
    issue_id: str | None = None
