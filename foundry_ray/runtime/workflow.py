"""Workflows as data: a run is rows; after each step a pure function names the next.

Steps run beside the turns of their entity. Claim and result are commits of their
own, so a step may run twice and its outside effect must be idempotent. Nothing
is replayed. Step names are stored and never get another meaning.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, get_type_hints

from pydantic import BaseModel, SecretStr

from foundry_ray.core.errors import FoundryError, WorkflowUnknown
from foundry_ray.core.messages import Message, Value
from foundry_ray.core.retry import RetryPolicy

if TYPE_CHECKING:
    from foundry_ray.runtime.turn import Turn

S = TypeVar("S")
I = TypeVar("I", bound=BaseModel)  # noqa: E741 - input
R = TypeVar("R", bound=BaseModel)


class Nothing(Value):
    """A step's or a workflow's empty input or result."""


class StepContext(Protocol):
    """What a step knows about itself and may use besides its adapters.

    Attributes:
        key: The entity whose step this is.
        run_id: The run; with the step's name the idempotency key of the effect.
        attempt: From 1.
    """

    key: str
    run_id: str
    attempt: int

    async def secret(self, secret_id: str) -> SecretStr:
        """Open the secret row with this id; NotFound when it is gone or expired."""

    def seal(self, secret: SecretStr | str, secret_id: str) -> str:
        """Encrypt a secret so that it can leave the step in a result."""

    async def hand(self, key: str, message: Message) -> Any:
        """Give a message directly to an entity and return its answer (see Waker.hand)."""


@dataclass(frozen=True)
class Step(Generic[I, R]):
    """One outside call or one local change, with its patience.

    Attributes:
        name: Stored for ever, in kebab case.
        work: ``async (tools, input, context) -> result``.
        timeout: Deadline of one attempt.
        undo: What takes it back, given the same input; it looks before it acts, since the
            step may never have happened.
    """

    name: str
    work: Callable[[Any, I, StepContext], Awaitable[R]]
    input_type: type[I]
    result_type: type[R]
    timeout: timedelta
    retry: RetryPolicy
    undo: Step[Any, Any] | None = None


def step(
    name: str,
    *,
    timeout: timedelta,
    retry: RetryPolicy | None = None,
    undo: Step[Any, Any] | None = None,
) -> Callable[[Callable[[Any, I, StepContext], Awaitable[R]]], Step[I, R]]:
    """Make a step of an async function; its name, time and patience are said beside the work."""

    def decorate(work: Callable[[Any, I, StepContext], Awaitable[R]]) -> Step[I, R]:
        hints = get_type_hints(work)
        parameters = list(inspect.signature(work).parameters)
        if undo is not None and undo.input_type is not hints[parameters[1]]:
            raise TypeError(f"{undo.name} cannot undo {name}: its input is another one")
        return Step(
            name=name,
            work=work,
            input_type=hints[parameters[1]],
            result_type=hints["return"],
            timeout=timeout,
            retry=retry or RetryPolicy(),
            undo=undo,
        )

    return decorate


@dataclass(frozen=True)
class Go:
    """Next, do this step."""

    step: Step[Any, Any]
    input: BaseModel


@dataclass(frozen=True)
class Wait:
    """Next, wait until a message's handler continues the run."""


@dataclass(frozen=True)
class Done:
    """The run is over."""


Next = Go | Wait | Done


@dataclass
class Run:
    """What a workflow sees of its run.

    Attributes:
        input: As the workflow's ``input_type``; as stored if nobody here knows that.
        error: Code of the error for which it is parked.
        version: The workflow's, when the run began; it ends by the same one.
        undo: What takes back the steps that may have happened, the last one last: the name
            of a step, and its input.
        undoing: The run was given up, and goes its way back.
    """

    id: str
    kind: str
    input: Any
    step: str
    attempt: int
    reported: bool = False
    step_input: dict[str, Any] = field(default_factory=dict)
    parked: bool = False
    error: str = ""
    version: int = 1
    undo: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    undoing: bool = False

    @property
    def work(self) -> str:
        """The name of this work in issues: to undo it is another work than to do it."""
        return f"{self.kind}.undo" if self.undoing else self.kind


class Workflow(ABC, Generic[S]):
    """The order of steps of one kind of run, for entities whose state is ``S``.

    Methods are pure: they decide, change the state they are given, and say what
    leaves by the turn; they do nothing outside.

    Attributes:
        version: Rises when a run that is under way could not go on by the new order; the
            old class stays, besides the new one, until no run of it is left.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    input_type: ClassVar[type[BaseModel]] = Nothing
    steps: ClassVar[tuple[Step[Any, Any], ...]]

    @abstractmethod
    def begin(self, state: S, run: Run, turn: Turn) -> Next:
        """Name the first step."""

    @abstractmethod
    def next(self, state: S, run: Run, result: Any, turn: Turn) -> Next:
        """Take the result of ``run.step`` and name what comes next."""

    @abstractmethod
    def on_error(self, state: S, run: Run, error: FoundryError, turn: Turn) -> None:
        """Make the failure visible: the step's attempts are used up and the run is parked (S28).

        The kernel itself reports the runtime issue and tells the parent in the same commit.
        """

    def on_retry(self, state: S, run: Run, error: FoundryError, turn: Turn) -> None:
        """Show that an attempt failed and another one follows; by default nothing is shown."""

    def undone(self, state: S, run: Run, turn: Turn) -> None:
        """Say that all is undone: the run, which was given up, is over. By default nothing."""

    def on_undo_error(self, state: S, run: Run, error: FoundryError, turn: Turn) -> None:
        """Show that an undo's attempts are used up: the run is parked. By default nothing.

        The kernel reports the issue, as for every step.
        """

    def step_named(self, name: str) -> Step[Any, Any]:
        """Return the step, or the undo of a step, with this stored name.

        Raises:
            WorkflowUnknown: No step of this workflow is called so.
        """
        for known in self.steps:
            for found in (known, known.undo):
                if found is not None and found.name == name:
                    return found
        raise unknown(self.kind, self.version, name)


def unknown(kind: str, version: int, step: str = "") -> WorkflowUnknown:
    """Return the error that says that nobody here knows how a run goes on."""
    what = f"version {version} of {kind}" + (f" with a step {step!r}" if step else "")
    return WorkflowUnknown(
        f"This release does not know {what}.",
        hint="Run a release that knows it, then wake the actor.",
        workflow=kind,
        version=version,
        step=step,
    )


class Workflows:
    """The workflows of one kind of entity: the newest of each, and older versions.

    A run goes on by the version with which it began, whatever release it meets.
    """

    def __init__(self, classes: Iterable[type[Workflow[Any]]]) -> None:
        self._known = {(each.kind, each.version): each() for each in classes}

    def newest(self, kind: str) -> Workflow[Any]:
        """Return the workflow by which a new run of this kind begins."""
        return self._known[max(known for known in self._known if known[0] == kind)]

    def of(self, run: Run) -> Workflow[Any]:
        """Return the workflow by which *run* goes on.

        Raises:
            WorkflowUnknown: This release does not know that version.
        """
        found = self._known.get((run.kind, run.version))
        if found is None:
            raise unknown(run.kind, run.version)
        return found
