"""What others may say to an organization's GitHub state."""

from __future__ import annotations

from typing import Any, Literal

from foundry_ray.core.facts import AccountFacts
from foundry_ray.core.messages import Command, Event, Person


class ConnectGitHub(Command):
    """Mirror this account through this installation; without one nothing can be read."""

    kind: Literal["github_state.connect"] = "github_state.connect"
    account: AccountFacts
    installation_id: str | None = None
    suspended: bool = False


class SyncGitHub(Command):
    """Read everything again, in small steps."""

    kind: Literal["github_state.sync"] = "github_state.sync"


class ReceiveDelivery(Event):
    """A verified webhook delivery."""

    kind: Literal["github_state.delivery"] = "github_state.delivery"
    guid: str
    event: str
    action: str | None = None
    payload: dict[str, Any]


class SignInUser(Command):
    """Exchange an OAuth code and say who it is (``app/github`` only)."""

    kind: Literal["github_state.sign_in"] = "github_state.sign_in"
    state: str
    sealed_code: str
    redirect_uri: str


class RecoverDeliveries(Command):
    """Ask GitHub for deliveries that failed while Foundry was away (``app/github`` only)."""

    kind: Literal["github_state.recover_deliveries"] = "github_state.recover_deliveries"


class MintCredential(Command):
    """Make a short-lived git credential for one repository, if the person may.

    Answered to ``reply_to`` with the id of the sealed secret, or with a refusal.
    """

    kind: Literal["github_state.mint_credential"] = "github_state.mint_credential"
    repository_id: str
    access: Literal["read", "write"]
    person: Person
    reply_to: str
    purpose: str


class PublishPullRequest(Command):
    """Create or update the one pull request of a branch, as the person."""

    kind: Literal["github_state.publish_pull_request"] = "github_state.publish_pull_request"
    task_key: str
    repository_id: str
    head: str
    base: str
    title: str | None
    body: str | None
    default_title: str
    default_body: str
    draft: bool | None
    person: Person
