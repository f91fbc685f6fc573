"""What a case is made of: entities, rows that are there before, and what a turn commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from sqlmodel import SQLModel

from foundry_ray.core import keys
from foundry_ray.core.facts import AccountFacts, RepositoryFacts, Trouble
from foundry_ray.core.messages import ChildFailed, Failure, Message, Person
from foundry_ray.runtime.tables import RtFeed, RtInboxSeen, RtIssue, RtMailbox, RtRun
from foundry_ray.runtime.workflow import Step, Workflow
from foundry_ray.store.columns import StateRow
from foundry_ray.testing.clock import START

# -- one entity of each kind ------------------------------------------------------------

APP, APP_GITHUB, USER = keys.APP, keys.APP_GITHUB, keys.user(41)
ORG, GITHUB = keys.organization(500), keys.github(500)
REPO = keys.repository(500, 9001)
HISTORY, TASK = keys.history(REPO), keys.task(REPO, "t1")
SESSION = keys.session(TASK, "s1")
SYNC = keys.status_sync(SESSION)
SANDBOX = keys.sandbox(500, "local", "b1")
ENTITIES = {
    keys.kind_of(key): key
    for key in (APP, USER, ORG, GITHUB, REPO, HISTORY, TASK, SESSION, SYNC, SANDBOX)
}

ADA = Person(kind="user", id="41", login="ada", name="Ada", email="ada@example.org")
ACME = AccountFacts(id="500", login="acme", kind="organization", role="admin")
DEMO = RepositoryFacts(
    id="9001",
    full_name="acme/demo",
    name="demo",
    default_branch="main",
    private=True,
    archived=False,
    clone_url="https://github.test/acme/demo.git",
    html_url="https://github.test/acme/demo",
)
TROUBLE = Trouble(code="unavailable", message="It does not answer.")

T = TypeVar("T", bound=StateRow)


def kept(table: type[T], key: str, /, **values: Any) -> T:
    """Return a row that an entity wrote before."""
    return table(actor_key=key, revision=1, created_at=START, updated_at=START, **values)


def run_row(entity: str, run_id: str, workflow: type[Workflow[Any]], **values: Any) -> RtRun:
    """Return a run that is under way."""
    given = {"input": {}, "step": "", "step_input": {}, "version": workflow.version}
    return RtRun(
        id=run_id,
        entity_key=entity,
        kind=workflow.kind,
        created_at=START,
        updated_at=START,
        **{**given, **values},
    )


def asked_before(key: str, command_id: str) -> RtInboxSeen:
    """Return a command whose answer was left to a later turn."""
    return RtInboxSeen(
        command_id=command_id,
        scope="a browser",
        external_id=command_id,
        request_hash="",
        target=key,
        created_at=START,
        expires_at=START + timedelta(hours=1),
    )


def failure(of: str) -> Failure:
    """Return a failure of an entity's work."""
    return Failure(
        fingerprint="sandbox_instance.provision:create-sandbox:unavailable",
        code="unavailable",
        message="It does not answer.",
        entity=of,
        workflow="sandbox_instance.provision",
        step="create-sandbox",
        attempt=5,
        will_retry=False,
    )


def issue_row(root: str, of: str) -> RtIssue:
    """Return an open incident that affects one entity."""
    told = failure(of)
    return kept(
        RtIssue,
        root,
        id="i1",
        fingerprint=told.fingerprint,
        code=told.code,
        message=told.message,
        entity=of,
        workflow=told.workflow,
        count=1,
        affected={of: {"kind": "task", "id": "t1", "title": "Say hello", "since": None}},
        first_seen_at=START,
        last_seen_at=START,
    )


# -- what a turn commits ----------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """One change of a row in the turn's transaction.

    Attributes:
        gone: The row was deleted; else it became so, and was not so before.
        values: What its columns hold; inside JSON the named members; ``...`` is any value.
    """

    table: str
    values: dict[str, Any]
    gone: bool = False

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.values.items())
        return f"{self.table}({told}){' is gone' if self.gone else ''}"

    def made_by(self, change: Change) -> bool:
        """Return whether *change* is this effect."""
        if change.table != self.table:
            return False
        old, new = change.old, change.new
        if self.gone:
            return new is None and _fits(self.values, old)
        if new is None or not _fits(self.values, new):
            return False
        if old is None or not _fits(self.values, old):
            return True
        return any(old[name] != new[name] for name, value in self.values.items() if value is ...)


@dataclass(frozen=True)
class Change:
    """One row as it was, and as it is, in one transaction."""

    table: str
    old: dict[str, Any] | None
    new: dict[str, Any] | None


def _fits(wanted: Any, found: Any) -> bool:
    if wanted is ...:
        return found is not None
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(name in found and _fits(value, found[name]) for name, value in wanted.items())
    return bool(wanted == found)


def name_of(table: type[SQLModel]) -> str:
    return str(table.__tablename__)


def row(table: type[SQLModel], /, **values: Any) -> Effect:
    """A row is there, or has become so."""
    return Effect(name_of(table), values)


def gone(table: type[SQLModel], /, **values: Any) -> Effect:
    """A row is not there any more."""
    return Effect(name_of(table), values, gone=True)


def mail(target: Any, message: type[Message], /, **body: Any) -> Effect:
    """A message lies in a mailbox."""
    kind = message.model_fields["kind"].default
    return Effect(name_of(RtMailbox), {"target": target, "kind": kind, "body": body})


def run(workflow: type[Workflow[Any]], step: Step[Any, Any] | None = None, **more: Any) -> Effect:
    """A run stands at a step, or waits without one."""
    assert step is None or step in (*workflow.steps, *(known.undo for known in workflow.steps))
    at = {"state": "waiting"} if step is None else {"state": "pending", "step": step.name}
    return Effect(name_of(RtRun), {"kind": workflow.kind, **at, **more})


def feed(topic: str, kind: str, /, **data: Any) -> Effect:
    """People who watch a topic see an item."""
    return Effect(name_of(RtFeed), {"topic": topic, "kind": kind, "data": data})


def withdrawn(topic: str, kind: str, item_id: str) -> Effect:
    """People who watch a topic see that an item is gone."""
    return Effect(name_of(RtFeed), {"topic": topic, "kind": kind, "item_id": item_id, "data": None})


def replied(status: int = 200, body: Any = None, command_id: Any = ...) -> Effect:
    """A command has its answer."""
    reply = {"status": status, "body": body}
    return Effect(name_of(RtInboxSeen), {"command_id": command_id, "reply": reply})


# -- a case -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A message to an entity, and what must be committed with its consumption.

    Attributes:
        effects: Empty when the message asks for nothing: then its turn only consumes it.
        rows: What is there before the entity wakes.
        before: What it is told before.
        way: ``tell`` puts it in the mailbox; ``ask`` too, and awaits the answer; ``hand``
            gives it to the activation directly.
        key: The entity, if it is not the kind's usual one.
    """

    kind: str
    message: Message
    effects: tuple[Effect, ...] = ()
    rows: tuple[SQLModel, ...] = ()
    before: tuple[Message, ...] = ()
    way: str = "tell"
    key: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.message.kind}"

    @property
    def entity(self) -> str:
        """Return the key of the entity."""
        return self.key or ENTITIES[self.kind]


def unheeded(kind: str) -> Case:
    """Return the case of a child's failure that its parent need do nothing about."""
    below = (key for key in ENTITIES.values() if keys.parent_of(key) == ENTITIES[kind])
    child = next(below, f"{ENTITIES[kind]}/child")
    return Case(kind, ChildFailed(child=child, failure=failure(child)))
