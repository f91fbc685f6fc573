"""Organization: coordinator and index of one organization (S1, S12, S29).

Key ``org/<org>``. It supervises everything below it and keeps the runtime issues.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from foundry_ray.actors.github_state.messages import ConnectGitHub
from foundry_ray.actors.history.messages import RecordEvent
from foundry_ray.actors.organization.messages import (
    ClearIssues,
    ConnectOrganization,
    RepositoryIndexed,
    TaskIndexed,
)
from foundry_ray.actors.organization.tables import (
    Organization,
    OrganizationRepository,
    OrganizationState,
    OrganizationTask,
)
from foundry_ray.core import keys, topics
from foundry_ray.core.messages import IssueReported, IssueResolved
from foundry_ray.runtime.actor import Actor, handles
from foundry_ray.runtime.turn import Turn
from foundry_ray.store.engine import Transaction


class OrganizationActor(Actor[OrganizationState]):
    """Keeps the index and the incidents of one organization."""

    actor_type = "organization"
    idle_after = timedelta(minutes=30)
    supervises = True
    tables = (Organization, OrganizationRepository, OrganizationTask)

    @classmethod
    async def load(cls, transaction: Transaction, key: str) -> OrganizationState:
        """Read the state of one organization."""
        return await OrganizationState.load(transaction, key)

    @handles
    def connect(self, command: ConnectOrganization, turn: Turn) -> None:
        """Know the account, and let GitHub state mirror it."""
        row, account = self.state.row, command.account
        if row is None:
            row = Organization(
                actor_key=self.key,
                revision=0,
                created_at=turn.now,
                updated_at=turn.now,
                id=account.id,
                login=account.login,
                kind=account.kind,
                settings={},
            )
            self.state.row = row
        row.login = account.login
        row.display_name = account.name or account.login
        row.avatar_url = account.avatar_url
        turn.put(row)
        turn.tell(
            keys.github(row.id),
            ConnectGitHub(
                account=account,
                installation_id=command.installation_id,
                suspended=command.suspended,
            ),
        )

    @handles
    def repository_indexed(self, event: RepositoryIndexed, turn: Turn) -> None:
        """Keep the index of repositories; tasks of one that is gone stay in theirs."""
        known = self.state.repositories.get(event.repository_id)
        if not event.full_name:
            if known is not None:
                turn.delete(known)
                del self.state.repositories[event.repository_id]
                turn.withdraw(
                    topics.organization(self.key), "repository", event.repository_id,
                    known.revision + 1,
                )  # fmt: skip
            return
        if known is None:
            known = OrganizationRepository(
                actor_key=self.key,
                revision=0,
                created_at=turn.now,
                updated_at=turn.now,
                repository_id=event.repository_id,
                full_name="",
            )
            self.state.repositories[event.repository_id] = known
        if known.full_name != event.full_name:
            known.full_name = event.full_name
            turn.put(known)

    @handles
    def task_indexed(self, event: TaskIndexed, turn: Turn) -> None:
        """Keep the index of tasks."""
        row = OrganizationTask(
            actor_key=self.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            task_id=event.task_id,
            repository_id=event.repository_id,
            title=event.title,
            sandbox_key=event.sandbox_key,
        )
        self.state.tasks[row.task_id] = row
        turn.put(row)

    # -- runtime issues ----------------------------------------------------------------

    @handles
    def issue_reported(self, event: IssueReported, turn: Turn) -> None:
        """Count a failure (S28)."""
        self.state.issues.report(event.failure, self.state.title_of(event.failure.entity), turn)
        self._badge(turn)

    @handles
    def issue_resolved(self, event: IssueResolved, turn: Turn) -> None:
        """Work goes on again (J06)."""
        self.state.issues.resolve(event.entity, event.workflow, turn)
        self._badge(turn)

    @handles
    def clear_issues(self, command: ClearIssues, turn: Turn) -> dict[str, Any]:
        """Clear one issue or all; audit and histories say who did it (S30)."""
        cleared = self.state.issues.clear(command.issue_id, command.by, turn)
        for issue in cleared:
            for repository_id, task_id in self.state.places_of(issue):
                turn.tell(
                    keys.history(keys.repository(keys.organization_id(self.key), repository_id)),
                    RecordEvent(
                        actor=command.by,
                        what="issue_cleared",
                        task_id=task_id,
                        summary=f"cleared runtime issue {issue.code}",
                        data={"issue": issue.id},
                    ),
                )
        self._badge(turn)
        return {"cleared": len(cleared)}

    def _badge(self, turn: Turn) -> None:
        count = self.state.issues.open_count()
        row = self.state.row
        if row is None:
            return
        turn.put(row)
        turn.publish(
            topics.organization(self.key),
            "runtime",
            row.id,
            row.revision,
            {"status": "error" if count else "healthy", "error_count": count},
        )
