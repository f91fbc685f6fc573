"""Application: who is signed in, and which organizations there are (S9).

Key ``app``; it never passivates. Everything that needs GitHub it tells ``app/github`` (S19).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from foundry_ray.actors.app_shell.messages import (
    BeginSignIn,
    ClearAppIssues,
    CompleteSignIn,
    CreateToken,
    DeleteToken,
    InstallationSeen,
    SignInFailed,
    SignInSucceeded,
    SignOut,
)
from foundry_ray.actors.app_shell.tables import (
    AppShellAccount,
    AppShellMembership,
    AppShellSession,
    AppShellSignIn,
    AppShellToken,
    AppState,
)
from foundry_ray.actors.github_state.messages import SignInUser
from foundry_ray.actors.organization.messages import ConnectOrganization
from foundry_ray.core import keys
from foundry_ray.core.errors import FoundryError, Internal, InvalidInput, family
from foundry_ray.core.facts import ConnectedAccount
from foundry_ray.core.ids import new_id
from foundry_ray.core.messages import IssueReported, IssueResolved
from foundry_ray.core.secrets import fingerprint
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.store.engine import Transaction

SIGN_IN_LIFE = timedelta(minutes=10)
SESSION_LIFE = timedelta(days=30)
SIGN_INS_AT_ONCE = 500


class AppShellOrganization(Actor[AppState]):
    """Sign-in, app sessions, API tokens, and the directory of organizations."""

    actor_type = "app_shell"
    idle_after = None
    supervises = True
    tables = (
        AppShellSession,
        AppShellToken,
        AppShellSignIn,
        AppShellAccount,
        AppShellMembership,
    )

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> AppState:
        """Read the application's state."""
        return await AppState.load(transaction, key)

    # -- sign-in ------------------------------------------------------------------------

    @handles
    def begin_sign_in(self, command: BeginSignIn, turn: Turn) -> None:
        """Remember a sign-in under way; old ones are forgotten."""
        for old in [s for s in self.state.sign_ins.values() if s.expires_at < turn.now]:
            self._forget(old, turn)
        if len(self.state.sign_ins) >= SIGN_INS_AT_ONCE:
            self._forget(min(self.state.sign_ins.values(), key=lambda s: s.expires_at), turn)
        row = AppShellSignIn(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            state_hash=command.state_hash,
            return_to=command.return_to,
            expires_at=turn.now + SIGN_IN_LIFE,
        )
        self.state.sign_ins[row.state_hash] = row
        turn.put(row)

    def _forget(self, row: AppShellSignIn, turn: Turn) -> None:
        del self.state.sign_ins[row.state_hash]
        turn.delete(row)

    @handles
    def complete_sign_in(self, command: CompleteSignIn, turn: Turn) -> None:
        """Let GitHub say who it is; answered when that is known."""
        row = self.state.sign_ins.get(fingerprint(command.state))
        if row is None or row.expires_at < turn.now or row.session_hash is not None:
            raise InvalidInput("This sign-in is unknown or too old.", hint="Sign in again.")
        row.session_hash = command.session_hash
        row.command_id = turn.defer()
        turn.put(row)
        turn.tell(
            keys.APP_GITHUB,
            SignInUser(
                state=command.state,
                sealed_code=command.sealed_code,
                redirect_uri=command.redirect_uri,
            ),
        )

    @handles
    def sign_in_failed(self, event: SignInFailed, turn: Turn) -> None:
        """Tell the browser that it did not work."""
        row = self.state.sign_ins.get(event.state_hash)
        if row is None:
            return
        self._forget(row, turn)
        error: FoundryError = family().get(event.code, Internal)(event.message)
        if row.command_id:
            turn.refuse(error, command_id=row.command_id)

    @handles
    def sign_in_succeeded(self, event: SignInSucceeded, turn: Turn) -> None:
        """Begin an app session, and know the person's organizations."""
        row = self.state.sign_ins.get(event.state_hash)
        if row is None or row.session_hash is None:
            return
        self._forget(row, turn)
        user_id = event.user_id
        for connected in event.accounts:
            self._know(connected, turn)
            self._member(user_id, connected, turn)
        seen = {connected.account.id for connected in event.accounts}
        for (member, organization), lost in list(self.state.memberships.items()):
            if member == user_id and organization not in seen:
                del self.state.memberships[(member, organization)]
                turn.delete(lost)
        organizations = [c.account.id for c in event.accounts if c.account.kind == "organization"]
        session = AppShellSession(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            id=new_id(),
            token_hash=row.session_hash,
            user_id=user_id,
            active_organization_id=organizations[0] if organizations else user_id,
            expires_at=turn.now + SESSION_LIFE,
        )
        turn.put(session)
        if row.command_id:
            turn.reply(
                {"session_id": session.id, "return_to": row.return_to},
                command_id=row.command_id,
            )

    def _know(self, connected: ConnectedAccount, turn: Turn) -> None:
        account = connected.account
        row = self.state.organizations.get(account.id)
        if row is None:
            row = AppShellAccount(
                actor_key=self.key,
                revision=0,
                created_at=turn.now,
                updated_at=turn.now,
                id=account.id,
                login=account.login,
                kind=account.kind,
            )
            self.state.organizations[account.id] = row
        row.login, row.name, row.avatar_url = account.login, account.name, account.avatar_url
        turn.put(row)
        turn.tell(
            keys.organization(account.id),
            ConnectOrganization(
                account=account,
                installation_id=connected.installation_id,
                suspended=connected.suspended,
            ),
        )

    def _member(self, user_id: str, connected: ConnectedAccount, turn: Turn) -> None:
        place = (user_id, connected.account.id)
        row = self.state.memberships.get(place)
        if row is None:
            row = AppShellMembership(
                actor_key=self.key,
                revision=0,
                created_at=turn.now,
                updated_at=turn.now,
                user_id=user_id,
                organization_id=connected.account.id,
                role="",
            )
            self.state.memberships[place] = row
        row.role = connected.account.role
        turn.put(row)

    @handles
    def installation_seen(self, event: InstallationSeen, turn: Turn) -> None:
        """Know an account because the App was installed on it."""
        self._know(
            ConnectedAccount(
                account=event.account,
                installation_id=event.installation_id,
                suspended=event.suspended,
            ),
            turn,
        )

    @handles
    def sign_out(self, command: SignOut, turn: Turn) -> None:
        """End an app session at once."""
        turn.drop(AppShellSession, actor_key=self.key, id=command.session_id)

    # -- API tokens -----------------------------------------------------------------------

    @handles
    def create_token(self, command: CreateToken, turn: Turn) -> dict[str, Any]:
        """Keep the hash of an API token."""
        row = AppShellToken(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            id=command.id,
            token_hash=command.token_hash,
            user_id=command.user_id,
            name=command.name,
            expires_at=command.expires_at,
        )
        turn.put(row)
        return {"id": row.id}

    @handles
    def delete_token(self, command: DeleteToken, turn: Turn) -> None:
        """Make an API token worthless; the door has checked whose it is."""
        turn.drop(AppShellToken, actor_key=self.key, id=command.id)

    # -- runtime issues ---------------------------------------------------------------------

    @handles
    def issue_reported(self, event: IssueReported, turn: Turn) -> None:
        """Count a failure below the application (S28)."""
        entity = event.failure.entity
        who = {"kind": keys.kind_of(entity), "id": entity, "title": entity}
        self.state.issues.report(event.failure, who, turn)

    @handles
    def issue_resolved(self, event: IssueResolved, turn: Turn) -> None:
        """Work goes on again."""
        self.state.issues.resolve(event.entity, event.workflow, turn)

    @handles
    def clear_issues(self, command: ClearAppIssues, turn: Turn) -> dict[str, Any]:
        """Clear one issue or all; the audit log says who did it (S30)."""
        return {"cleared": len(self.state.issues.clear(command.issue_id, command.by, turn))}
