"""User GitHub data: one user's identity and tokens (S10, S20).

Key ``app/user/<id>``, by GitHub's numeric id: logins change.
"""

from __future__ import annotations

from datetime import timedelta

from foundry_ray.actors.app_shell.messages import SignInSucceeded
from foundry_ray.actors.user_github_data.messages import IdentityObtained
from foundry_ray.actors.user_github_data.tables import UserGitHubData, UserState
from foundry_ray.core import keys
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.store.engine import Transaction


class UserGitHubDataActor(Actor[UserState]):
    """Keeps who a user is on GitHub."""

    actor_type = "user_github_data"
    idle_after = timedelta(minutes=5)
    tables = (UserGitHubData,)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> UserState:
        """Read one user."""
        return await UserState.load(transaction, key)

    @handles
    def identity_obtained(self, event: IdentityObtained, turn: Turn) -> None:
        """Take over what GitHub said at sign-in, then let the sign-in go on."""
        row = self.state.row
        if row is None:
            row = UserGitHubData(
                actor_key=self.key,
                revision=0,
                created_at=turn.now,
                updated_at=turn.now,
                id=event.person.id,
                login=event.person.login,
                scopes=[],
                organization_ids=[],
            )
            self.state.row = row
        row.login, row.name = event.person.login, event.person.name
        row.email, row.avatar_url = event.person.email, event.avatar_url
        row.token_secret_id = event.token_secret_id
        row.token_expires_at = event.token_expires_at
        row.scopes = event.scopes
        row.organization_ids = [connected.account.id for connected in event.accounts]
        turn.put(row)
        turn.tell(
            keys.APP,
            SignInSucceeded(state_hash=event.state_hash, user_id=row.id, accounts=event.accounts),
        )
