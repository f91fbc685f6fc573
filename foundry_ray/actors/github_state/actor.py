"""GitHub state: the mirror of one organization's GitHub (S2, S19).

Keys ``org/<org>/github`` and ``app/github``. The only caller of the GitHub API and the
only receiver of webhooks; the rest of the tree hears from it by tell.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from foundry_ray.actors.app_shell.messages import InstallationSeen
from foundry_ray.actors.github_state.messages import (
    ConnectGitHub,
    MintCredential,
    PublishPullRequest,
    ReceiveDelivery,
    RecoverDeliveries,
    SignInUser,
    SyncGitHub,
)
from foundry_ray.actors.github_state.steps import (
    CodeInput,
    account_facts,
    pull_request_facts,
    repository_facts,
)
from foundry_ray.actors.github_state.tables import (
    GitHubState,
    GitHubStateDelivery,
    GitHubStatePullRequest,
    GitHubStateRepository,
    MirrorState,
)
from foundry_ray.actors.github_state.workflows import (
    Mint,
    Minting,
    Publishing,
    PublishPull,
    Recover,
    SignIn,
    Sync,
    keep_pull_request,
    keep_repository,
    repository_key,
    show,
)
from foundry_ray.actors.repository.messages import RefsChanged, RepositoryDescribed
from foundry_ray.actors.sandbox_instance.messages import CredentialRefused
from foundry_ray.actors.task.messages import PublishFailed
from foundry_ray.core import keys
from foundry_ray.core.errors import InvalidInput, PermissionDenied, WrongState
from foundry_ray.core.facts import RefFacts, Trouble
from foundry_ray.core.messages import Person
from foundry_ray.integrations.github import webhook
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Nothing
from foundry_ray.store.engine import Transaction

HEADS = "refs/heads/"


class GitHubStateActor(Actor[MirrorState]):
    """Mirrors GitHub, and does on GitHub what people ask for."""

    actor_type = "github_state"
    idle_after = timedelta(minutes=10)
    tables = (
        GitHubState,
        GitHubStateRepository,
        GitHubStatePullRequest,
        GitHubStateDelivery,
    )
    workflows = (Sync, SignIn, Mint, PublishPull, Recover)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> MirrorState:
        """Read the mirror of one organization."""
        return await MirrorState.load(transaction, key)

    # -- installation and sync ---------------------------------------------------------

    @handles
    def connect(self, command: ConnectGitHub, turn: Turn) -> None:
        """Mirror this account; a first or changed installation begins a sync."""
        row = self.state.row
        if row is None:
            row = GitHubState(
                actor_key=self.key,
                revision=0,
                created_at=turn.now,
                updated_at=turn.now,
                account={},
            )
            self.state.row = row
        row.account = command.account.model_dump(mode="json", exclude={"role"})
        if command.installation_id is not None:
            fresh = row.installation_id != command.installation_id
            row.installation_id = command.installation_id
            row.installation_status = "suspended" if command.suspended else "connected"
            if (fresh or row.last_sync_at is None) and not command.suspended:
                self._sync(turn)
        show(self.state, turn)

    @handles
    def sync(self, command: SyncGitHub, turn: Turn) -> None:
        """Read everything again; askers while it runs share one more."""
        row = self.state.row
        if row is None or row.installation_status != "connected":
            raise WrongState(
                "Foundry's GitHub App is not installed on this account.",
                hint="Install it; the organization shows the link.",
            )
        self._sync(turn)
        show(self.state, turn)
        turn.reply(row.represent(""), status=202)

    def _sync(self, turn: Turn) -> None:
        row = self.state.mirror
        if turn.run(row.sync_run_id) is not None:
            row.sync_wanted = True
        else:
            row.sync_run_id = turn.start(Sync.kind, Nothing())

    # -- people -----------------------------------------------------------------------

    @handles
    def sign_in(self, command: SignInUser, turn: Turn) -> None:
        """Exchange an OAuth code and say who it is."""
        turn.start(
            SignIn.kind,
            CodeInput(
                state=command.state,
                sealed_code=command.sealed_code,
                redirect_uri=command.redirect_uri,
            ),
        )

    @handles
    def recover_deliveries(self, command: RecoverDeliveries, turn: Turn) -> None:
        """Ask GitHub for deliveries that never arrived."""
        turn.start(Recover.kind, Nothing())

    @handles
    def mint_credential(self, command: MintCredential, turn: Turn) -> None:
        """Make a git credential for one repository, if the person may."""
        if self._connected() and command.repository_id in self.state.repositories:
            given = command.model_dump(exclude={"kind"})
            turn.start(Mint.kind, Minting.model_validate(given))
            return
        refusal = PermissionDenied(
            "Foundry's GitHub App cannot reach this repository.",
            hint="Check the App's installation on GitHub.",
        )
        turn.tell(
            command.reply_to,
            CredentialRefused(purpose=command.purpose, error=Trouble.of(refusal)),
        )

    @handles
    def publish_pull_request(self, command: PublishPullRequest, turn: Turn) -> None:
        """Create or update the pull request of a branch, as the person."""
        facts = self.state.repository(command.repository_id) if self._connected() else None
        if facts is None:
            refusal = PermissionDenied("Foundry's GitHub App cannot reach this repository.")
            turn.tell(command.task_key, PublishFailed(error=Trouble.of(refusal)))
            return
        turn.start(
            PublishPull.kind,
            Publishing(
                task_key=command.task_key,
                repository_id=int(command.repository_id),
                owner_login=facts.full_name.split("/")[0],
                head=command.head,
                base=command.base,
                title=command.title,
                body=command.body,
                default_title=command.default_title,
                default_body=command.default_body,
                draft=command.draft,
                user_id=command.person.id,
                person=command.person,
            ),
        )

    def _connected(self) -> bool:
        row = self.state.row
        return row is not None and row.installation_status == "connected"

    # -- webhooks -----------------------------------------------------------------------

    @handles
    def delivery(self, event: ReceiveDelivery, turn: Turn) -> None:
        """Take over what a webhook says; what it does not know is recorded and ignored."""
        take = {
            "installation": self._installation,
            "installation_repositories": self._installation_repositories,
            "repository": self._repository,
            "push": self._pushed,
            "delete": self._deleted,
            "pull_request": self._pull_request,
        }.get(event.event)
        outcome = "ignored"
        if take is not None and (self.state.row is not None or event.event == "installation"):
            try:
                outcome = take(event, turn)
            except InvalidInput as odd:
                outcome = f"ignored: {odd.message}"
        turn.insert(
            GitHubStateDelivery(
                actor_key=self.key,
                guid=event.guid,
                event=event.event,
                action=event.action,
                received_at=turn.now,
                outcome=outcome,
            )
        )
        row = self.state.row
        if row is not None:
            row.last_webhook_at = turn.now
            row.last_webhook_event = ".".join(filter(None, (event.event, event.action)))
            show(self.state, turn)

    def _installation(self, event: ReceiveDelivery, turn: Turn) -> str:
        found = webhook.installation_of(event.payload)
        gone = event.action == "deleted"
        row = self.state.row
        if row is None:
            turn.tell(
                keys.APP,
                InstallationSeen(
                    account=account_facts(found.account),
                    installation_id=None if gone else str(found.id),
                    suspended=event.action == "suspend",
                ),
            )
            return "passed on"
        if gone:
            row.installation_id, row.installation_status = None, "install_required"
        elif event.action == "suspend":
            row.installation_status = "suspended"
        else:
            row.installation_id, row.installation_status = str(found.id), "connected"
            self._sync(turn)
        return "applied"

    def _installation_repositories(self, event: ReceiveDelivery, turn: Turn) -> str:
        if not self._connected():
            return "ignored"
        self._sync(turn)
        return "sync"

    def _repository(self, event: ReceiveDelivery, turn: Turn) -> str:
        facts = repository_facts(webhook.repository_of(event.payload))
        if event.action in ("deleted", "transferred"):
            row = self.state.repositories.pop(facts.id, None)
            if row is None:
                return "ignored"
            turn.delete(row)
            turn.tell(repository_key(self.state, facts.id), RepositoryDescribed(facts=None))
        else:
            keep_repository(self.state, facts, turn)
        return "applied"

    def _pushed(self, event: ReceiveDelivery, turn: Turn) -> str:
        facts = webhook.push_of(event.payload)
        if not facts.ref.startswith(HEADS):
            return "ignored"
        ref = RefFacts(name=facts.ref.removeprefix(HEADS), sha="" if facts.deleted else facts.after)
        return self._refs(str(facts.repository_id), ref, event, turn)

    def _deleted(self, event: ReceiveDelivery, turn: Turn) -> str:
        if event.payload.get("ref_type") != "branch":
            return "ignored"
        repository = webhook.repository_of(event.payload)
        ref = RefFacts(name=str(event.payload.get("ref")), sha="")
        return self._refs(str(repository.id), ref, event, turn)

    def _refs(self, repository_id: str, ref: RefFacts, event: ReceiveDelivery, turn: Turn) -> str:
        if repository_id not in self.state.repositories:
            return "ignored"
        turn.tell(
            repository_key(self.state, repository_id),
            RefsChanged(refs=[ref], guid=event.guid, by=_sender(event.payload)),
        )
        return "applied"

    def _pull_request(self, event: ReceiveDelivery, turn: Turn) -> str:
        facts = pull_request_facts(webhook.pull_request_of(event.payload))
        if facts.repository_id not in self.state.repositories:
            return "ignored"
        news = keep_pull_request(
            self.state,
            facts,
            turn,
            action=event.action or "",
            guid=event.guid,
            by=_sender(event.payload),
        )
        return "applied" if news else "known"


def _sender(payload: dict[str, Any]) -> Person:
    sender = payload.get("sender") or {}
    return Person(kind="github", id=str(sender.get("id", "")), login=str(sender.get("login", "")))
