"""Runtime issues as incidents: one cause, one issue, everybody it affects (S28-S30).

The root of a tree (an organization, or the app) keeps the book; it is the source of
truth for the error badges that people see.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from foundry_ray.core import keys
from foundry_ray.core.errors import NotFound
from foundry_ray.core.ids import new_id
from foundry_ray.core.messages import Failure, Person
from foundry_ray.runtime import audit
from foundry_ray.runtime.tables import RtIssue
from foundry_ray.runtime.turn import REPORTED, Turn
from foundry_ray.store.engine import Transaction

# A resolved issue stays visible this many at most; older ones are forgotten.
RESOLVED_KEPT = 50


async def troubled(transaction: Transaction, entity: str) -> set[str]:
    """Return the workflows of an entity that have an open issue, or one on its way there."""
    rows = await transaction.fetch(
        "SELECT workflow FROM rt_issue WHERE actor_key = %(root)s AND resolved_at IS NULL"
        " AND affected -> %(entity)s ->> 'id' IS NOT NULL"
        " AND affected -> %(entity)s ->> 'since' IS NULL"
        " UNION SELECT body -> 'failure' ->> 'workflow' FROM rt_mailbox"
        " WHERE target = %(root)s AND kind = %(reported)s AND parked_at IS NULL"
        " AND body -> 'failure' ->> 'entity' = %(entity)s",
        {"root": keys.root_of(entity), "entity": entity, "reported": REPORTED},
    )
    return {row["workflow"] for row in rows}


@dataclass
class IssueBook:
    """The issues below one root."""

    topic: str
    issues: dict[str, RtIssue] = field(default_factory=dict)

    @classmethod
    async def load(cls, transaction: Transaction, root: str, topic: str) -> IssueBook:
        """Read the book of one root."""
        rows = await transaction.owned(RtIssue, root, "ORDER BY id")
        return cls(topic, {row.id: row for row in rows})

    def report(self, failure: Failure, who: dict[str, str], turn: Turn) -> RtIssue:
        """Count a failure under its fingerprint; open a new issue if there is none."""
        for issue in self.issues.values():
            if issue.fingerprint == failure.fingerprint and issue.resolved_at is None:
                break
        else:
            issue = RtIssue(
                actor_key=turn.key,
                revision=0,
                created_at=turn.now,
                updated_at=turn.now,
                id=new_id(),
                fingerprint=failure.fingerprint,
                code=failure.code,
                message=failure.message,
                entity=failure.entity,
                workflow=failure.workflow,
                affected={},
                first_seen_at=turn.now,
                last_seen_at=turn.now,
            )
            self.issues[issue.id] = issue
        issue.count += 1
        issue.message, issue.hint = failure.message, failure.hint
        issue.step, issue.attempt = failure.step, failure.attempt
        issue.will_retry = failure.will_retry
        issue.last_seen_at = turn.now
        issue.affected = {**issue.affected, failure.entity: {**who, "since": None}}
        self._show(issue, turn)
        return issue

    def resolve(self, entity: str, workflow: str, turn: Turn) -> None:
        """The entity's work succeeded: an issue without anybody affected resolves itself (N8)."""
        for issue in self.issues.values():
            who = issue.affected.get(entity)
            if issue.workflow != workflow or issue.resolved_at or who is None or who["since"]:
                continue
            issue.affected = {**issue.affected, entity: {**who, "since": turn.now.isoformat()}}
            if all(one["since"] for one in issue.affected.values()):
                issue.resolved_at = turn.now
            self._show(issue, turn)
        resolved = sorted(
            (i for i in self.issues.values() if i.resolved_at), key=lambda i: str(i.resolved_at)
        )
        for old in resolved[:-RESOLVED_KEPT]:
            self._drop(old, turn)

    def clear(self, issue_id: str | None, by: Person, turn: Turn) -> list[RtIssue]:
        """Forget one issue, or all, and keep in the audit log who did it (S30).

        Returns:
            What was forgotten.

        Raises:
            NotFound: There is no such issue.
        """
        cleared = [i for i in self.issues.values() if issue_id in (None, i.id)]
        if issue_id is not None and not cleared:
            raise NotFound("There is no such runtime issue.")
        for issue in cleared:
            data = {"id": issue.id, "code": issue.code, "count": issue.count}
            turn.insert(audit.entry(turn.key, by, "issue_cleared", data, turn.now))
            self._drop(issue, turn)
        return cleared

    def open_count(self) -> int:
        """Return how many issues are not resolved."""
        return sum(1 for issue in self.issues.values() if issue.resolved_at is None)

    def _show(self, issue: RtIssue, turn: Turn) -> None:
        turn.put(issue)
        turn.publish(self.topic, "runtime_issue", issue.id, issue.revision, issue.represent())

    def _drop(self, issue: RtIssue, turn: Turn) -> None:
        del self.issues[issue.id]
        turn.delete(issue)
        turn.withdraw(self.topic, "runtime_issue", issue.id, issue.revision + 1)
