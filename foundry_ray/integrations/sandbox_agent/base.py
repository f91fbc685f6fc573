"""The port of sandbox-agent: everything that happens inside one sandbox (S33).

Agents speak the Agent Client Protocol (ACP) behind a shim that journals both directions
(see ``shim.py``). The journal is the truth of what an agent was told and what it said;
its records have consecutive numbers from 1 and never change.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict

RUN_TIMEOUT = timedelta(seconds=30)
MAX_OUTPUT = 1024 * 1024  # bytes of each stream of a command that are kept

AGENT_SLOTS: Mapping[str, str] = {
    # sandbox-agent refuses agent names that it does not know; its ``mock`` slot is free.
    "scripted": "mock",
    "claude": "claude",
    "codex": "codex",
    "opencode": "opencode",
}


class RunResult(BaseModel):
    """What became of one command.

    Attributes:
        exit_code: None when it was ended by a signal or by the time limit.
        stdout: What it wrote; undecodable bytes are replaced.
        stderr: What it wrote about its trouble.
        timed_out: It was ended because its time was up.
        truncated: More was written than was kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exit_code: int | None
    stdout: str
    stderr: str
    timed_out: bool
    truncated: bool = False


class ProcessFacts(BaseModel):
    """A process that sandbox-agent manages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    status: Literal["running", "exited"]
    exit_code: int | None = None
    pid: int | None = None


class Entry(BaseModel):
    """One entry of a directory; *size* in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str
    kind: Literal["file", "directory"]
    size: int


class AgentSession(BaseModel):
    """An ACP session as the agent described it when it was opened.

    Attributes:
        session_id: The agent's own name of the session.
        modes: ACP ``modes`` (available and current), if the agent has any.
        models: ACP ``models``, if the agent tells any.
        config_options: ACP ``configOptions``, if the agent has any.
        can_load: The agent can take this session up again after it was started anew; known to
            the client that opened the agent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: str
    modes: dict[str, Any] | None = None
    models: dict[str, Any] | None = None
    config_options: list[Any] | None = None
    can_load: bool = False


class JournalRecord(BaseModel):
    """One line of the journal.

    Attributes:
        seq: Consecutive number from 1 per server id.
        at_ms: Sandbox clock, milliseconds since 1970.
        direction: ``in`` went to the agent, ``out`` came from it, ``end`` is the shim's word
            that the turn of *message_id* is over, ``note`` is the shim's word on its own life.
        message_id: Foundry's message id: on the prompt (``in``) and on its ``end``.
        payload: The ACP envelope (``in``, ``out``); of an ``end``
            ``{"stop_reason": ...}`` or ``{"error": {"code": ..., "message": ...}}``;
            of a ``note`` ``{"event": ...}`` with details.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: int
    at_ms: int
    direction: Literal["in", "out", "end", "note"]
    message_id: str | None = None
    payload: dict[str, Any]


class SandboxAgent(Protocol):
    """The sandbox-agent of one sandbox; close it with ``aclose()`` or ``async with``.

    Every method raises ``Unavailable`` (retryable) when the sandbox cannot be reached and
    ``SandboxStartFailed`` when it refuses the token. Paths are absolute.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def aclose(self) -> None:
        """Let go of the connections; what runs in the sandbox goes on."""
        ...

    async def health(self) -> None:
        """Return if sandbox-agent answers and accepts the token."""
        ...

    # -- commands and processes ------------------------------------------------

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        environment: Mapping[str, str] | None = None,
        timeout: timedelta = RUN_TIMEOUT,
        max_output: int = MAX_OUTPUT,
    ) -> RunResult:
        """Run a command to its end, with its children killed when *timeout* is over.

        A program that does not exist gives exit code 127.

        Raises:
            NotFound: There is no such directory.
            InvalidInput: *timeout* is longer than an hour.
        """
        ...

    async def start_process(
        self, argv: Sequence[str], *, cwd: str, environment: Mapping[str, str] | None = None
    ) -> ProcessFacts:
        """Start a process that outlives this call.

        Raises:
            NotFound: There is no such program or directory.
            Busy: There are too many processes already.
        """
        ...

    async def process(self, process_id: str) -> ProcessFacts:
        """Return the state of a process; ``NotFound`` if it is unknown."""
        ...

    async def list_processes(self) -> list[ProcessFacts]:
        """Return every process that was started and not deleted."""
        ...

    async def process_log(self, process_id: str, tail: int = 20) -> str:
        """Return the last *tail* pieces of output; ``NotFound`` if it is unknown."""
        ...

    async def stop_process(self, process_id: str) -> ProcessFacts:
        """Ask a process to end (TERM); ``NotFound`` if it is unknown."""
        ...

    async def kill_process(self, process_id: str) -> ProcessFacts:
        """End a process (KILL); ``NotFound`` if it is unknown."""
        ...

    async def delete_process(self, process_id: str) -> None:
        """End a process if it runs and forget it; harmless if it is unknown."""
        ...

    # -- files -----------------------------------------------------------------

    async def read_file(self, path: str) -> bytes:
        """Return a file's content; ``NotFound`` if there is none."""
        ...

    async def write_file(self, path: str, content: bytes) -> None:
        """Write a whole file of at most about 2 MiB, making its directories.

        Raises:
            TooLarge: It is more than sandbox-agent takes in one request.
        """
        ...

    async def list_directory(self, path: str) -> list[Entry]:
        """Return the entries of a directory; ``NotFound`` if there is none."""
        ...

    async def make_directory(self, path: str) -> None:
        """Make a directory and those above it; harmless if it is there."""
        ...

    async def delete_path(self, path: str) -> None:
        """Remove a file or a whole directory; harmless if there is none."""
        ...

    # -- agents ----------------------------------------------------------------

    async def open_agent(self, server_id: str, agent: str) -> bool:
        """See to it that *agent* runs under *server_id*; return whether it can load sessions.

        Harmless on a live one. One whose processes died is opened again: its sessions are
        then to be loaded or made anew.

        Raises:
            InvalidInput: *agent* is not a name of ``AGENT_SLOTS``.
            AgentMissing: The agent is not installed in the sandbox.
            AgentExited: It ended at once; context ``stderr`` has its last words.
        """
        ...

    async def new_session(self, server_id: str, cwd: str) -> AgentSession:
        """Open a session that works in *cwd*.

        Raises:
            AgentExited: The agent is gone; ``open_agent`` first, then this again.
            AgentRefused: The agent said no; context ``agent_error`` has its words.
        """
        ...

    async def load_session(self, server_id: str, session_id: str, cwd: str) -> AgentSession:
        """Take up a session of an earlier life of the agent; errors as ``new_session``.

        Harmless on one that is open: it stays as it is. What the agent tells again of the
        session's past is in the journal as ``note``, never as ``out``.

        Raises:
            NotFound: The agent does not know the session, or cannot load: open a new one.
        """
        ...

    async def set_mode(self, server_id: str, session_id: str, mode: str) -> None:
        """Choose one of the session's modes; errors as ``new_session``."""
        ...

    async def set_option(self, server_id: str, session_id: str, option: str, value: str) -> None:
        """Choose the value of one of the session's options; errors as ``new_session``."""
        ...

    async def prompt(
        self, server_id: str, session_id: str, message_id: str, blocks: Sequence[dict[str, Any]]
    ) -> None:
        """Give the agent a message and return once the journal holds it, not at turn's end.

        The same *message_id* again is harmless, whatever became of the first: an agent is
        never given a message twice. How the turn ends is the journal's ``end`` record.

        Raises:
            DeliveryUnknown: The journal could not be asked; call again with the same id.
            AgentExited: The agent that had the session is gone, and the message was not given:
                ``open_agent`` and ``load_session`` (or ``new_session``) first.
            TooLarge: It is more than fits into one request (about 2 MiB).
        """
        ...

    async def cancel(self, server_id: str, session_id: str) -> None:
        """Ask the agent to end the running turn; harmless if none runs."""
        ...

    async def answer(self, server_id: str, rpc_id: str | int, result: dict[str, Any]) -> None:
        """Answer a request of the agent; a second answer to one request is dropped.

        Raises:
            AgentExited: The agent that asked is gone, and so is its question.
        """
        ...

    async def close_agent(self, server_id: str) -> None:
        """End the agent of *server_id*; harmless if there is none. Its journal stays."""
        ...

    # -- the journal -----------------------------------------------------------

    async def journal(
        self, server_id: str, from_seq: int, limit: int = 1000
    ) -> list[JournalRecord]:
        """Return complete records from number *from_seq* on, in order, at most *limit*.

        An agent that never spoke has none. Works without a live agent.
        """
        ...

    def follow(self, server_id: str, from_seq: int) -> AsyncGenerator[list[JournalRecord], None]:
        """Yield the records from number *from_seq* on in batches, in order and without gaps.

        Close it (``contextlib.aclosing``) when leaving early.

        Raises:
            AgentExited: The shim is gone and everything it wrote was yielded.
        """
        ...
