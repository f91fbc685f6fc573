"""Speaks to the sandbox-agent of one sandbox over HTTP."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import httpx

from foundry_ray.core.errors import (
    AgentExited,
    AgentMissing,
    AgentRefused,
    Busy,
    DeliveryUnknown,
    FoundryError,
    InvalidInput,
    NotFound,
    Timeout,
    Unavailable,
)
from foundry_ray.core.ids import new_id
from foundry_ray.integrations.sandbox_agent.base import (
    AGENT_SLOTS,
    MAX_OUTPUT,
    RUN_TIMEOUT,
    AgentSession,
    Entry,
    JournalRecord,
    ProcessFacts,
    RunResult,
)
from foundry_ray.integrations.sandbox_agent.install import JOURNALS
from foundry_ray.integrations.sandbox_agent.journal import EXITED, RECONNECT, Follower, Journal
from foundry_ray.integrations.sandbox_agent.transport import Wire, problem_of

ANSWER_PATIENCE = 90.0  # seconds for an agent to start or to open a session; some are slow
PROMPT_PATIENCE = 15.0  # seconds for the shim to write a prompt down
CLOSE_PATIENCE = 0.5  # seconds; the answer to a DELETE comes only when the agent is gone
WATCH_AFTER = 1.0  # seconds after which a request is suspected to wait for a dead shim
KILL_AFTER = 1  # seconds between TERM and KILL of a command whose time is up
RUN_MARGIN = 5.0  # seconds that sandbox-agent waits longer than the command's own time limit
LONGEST_RUN = timedelta(hours=1)
_TIMED_OUT = {124, 137}  # what ``timeout`` exits with after TERM, and after KILL


class SandboxAgentClient:
    """Everything that happens inside one sandbox; see the port for what each method promises.

    Args:
        url: Where sandbox-agent answers.
        token: Its bearer token.
        home: ``$HOME`` inside the sandbox.
        headers: What a proxy in between asks for.
    """

    def __init__(
        self, url: str, *, token: str, home: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._wire = Wire(url, token=token, headers=headers or {})
        self._home = home.rstrip("/")
        self._can_load: dict[str, bool] = {}
        self._longest_run = timedelta()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connections; what runs in the sandbox goes on."""
        await self._wire.aclose()

    async def health(self) -> None:
        """Return if sandbox-agent answers and accepts the token."""
        await self._wire.send("GET", "/v1/health")

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
        """Run a command to its end, with its children killed when *timeout* is over."""
        if timeout > LONGEST_RUN:
            raise InvalidInput("A command may run for an hour; use a process for longer work.")
        seconds = timeout.total_seconds()
        await self._allow_runs_of(timeout + timedelta(seconds=RUN_MARGIN))
        answer = await self._wire.send(
            "POST",
            "/v1/processes/run",
            body={
                # sandbox-agent's own limit ends the direct child only, and waits for the rest.
                "command": "timeout",
                "args": ["-k", str(KILL_AFTER), f"{seconds:.3f}", *argv],
                "cwd": cwd,
                "env": dict(environment or {}),
                "timeoutMs": int((seconds + RUN_MARGIN) * 1000),
                "maxOutputBytes": max_output,
            },
            read=seconds + 2 * RUN_MARGIN,
        )
        if answer.is_error:
            raise _refused(answer, NotFound(f"The command cannot run in {cwd}."))
        told = answer.json()
        code = told.get("exitCode")
        is_late = code in _TIMED_OUT and told["durationMs"] >= seconds * 1000
        return RunResult(
            exit_code=None if is_late else code,
            stdout=told["stdout"],
            stderr=told["stderr"],
            timed_out=told["timedOut"] or is_late,
            truncated=told["stdoutTruncated"] or told["stderrTruncated"],
        )

    async def start_process(
        self, argv: Sequence[str], *, cwd: str, environment: Mapping[str, str] | None = None
    ) -> ProcessFacts:
        """Start a process that outlives this call."""
        body = {"command": argv[0], "args": list(argv[1:]), "cwd": cwd}
        answer = await self._wire.send(
            "POST", "/v1/processes", body={**body, "env": dict(environment or {})}
        )
        if answer.status_code == httpx.codes.CONFLICT:
            raise Busy("There are too many processes in the sandbox.")
        if answer.is_error:
            raise _refused(answer, NotFound(f"{argv[0]} cannot run in {cwd}."))
        return _process(answer.json())

    async def process(self, process_id: str) -> ProcessFacts:
        """Return the state of a process."""
        return _process(await self._process_call("GET", process_id))

    async def list_processes(self) -> list[ProcessFacts]:
        """Return every process that was started and not deleted."""
        answer = await self._wire.send("GET", "/v1/processes")
        return [_process(told) for told in answer.json()["processes"]]

    async def process_log(self, process_id: str, tail: int = 20) -> str:
        """Return the last *tail* pieces of output."""
        told = await self._process_call("GET", process_id, "/logs", {"tail": tail})
        pieces = (base64.b64decode(entry["data"]) for entry in told["entries"])
        return b"".join(pieces).decode(errors="replace")

    async def stop_process(self, process_id: str) -> ProcessFacts:
        """Ask a process to end (TERM)."""
        return _process(await self._process_call("POST", process_id, "/stop"))

    async def kill_process(self, process_id: str) -> ProcessFacts:
        """End a process (KILL)."""
        return _process(await self._process_call("POST", process_id, "/kill"))

    async def delete_process(self, process_id: str) -> None:
        """End a process if it runs and forget it."""
        answer = await self._wire.send("DELETE", f"/v1/processes/{process_id}")
        if answer.status_code == httpx.codes.CONFLICT:  # it runs
            await self.kill_process(process_id)
            answer = await self._wire.send("DELETE", f"/v1/processes/{process_id}")
        if answer.is_error and answer.status_code != httpx.codes.NOT_FOUND:
            raise _refused(answer, Unavailable("The process could not be deleted."))

    async def _process_call(
        self, method: str, process_id: str, rest: str = "", params: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        answer = await self._wire.send(method, f"/v1/processes/{process_id}{rest}", params=params)
        if answer.is_error:
            raise _refused(answer, NotFound(f"There is no process {process_id}."))
        told: dict[str, Any] = answer.json()
        return told

    async def _allow_runs_of(self, time: timedelta) -> None:
        """Raise sandbox-agent's limit on a command's time, if it is below *time*."""
        if time <= self._longest_run:
            return
        answer = await self._wire.send("GET", "/v1/processes/config")
        config = answer.json()
        allowed = timedelta(milliseconds=config["maxRunTimeoutMs"])
        if allowed < time:
            allowed = LONGEST_RUN + timedelta(seconds=RUN_MARGIN)
            config["maxRunTimeoutMs"] = int(allowed.total_seconds() * 1000)
            answer = await self._wire.send("POST", "/v1/processes/config", body=config)
            if answer.is_error:
                raise _refused(answer, Unavailable("Commands cannot run as long as asked for."))
        self._longest_run = allowed

    # -- files -----------------------------------------------------------------

    async def read_file(self, path: str) -> bytes:
        """Return a file's content."""
        answer = await self._wire.send("GET", "/v1/fs/file", params={"path": path})
        if answer.is_error:
            raise _refused(answer, NotFound(f"There is no file {path}."))
        return answer.content

    async def write_file(self, path: str, content: bytes) -> None:
        """Write a whole file, making its directories."""
        answer = await self._wire.send("PUT", "/v1/fs/file", params={"path": path}, content=content)
        if answer.is_error:
            raise _refused(answer, InvalidInput(f"{path} cannot be written."))

    async def list_directory(self, path: str) -> list[Entry]:
        """Return the entries of a directory."""
        answer = await self._wire.send("GET", "/v1/fs/entries", params={"path": path})
        if answer.is_error:
            raise _refused(answer, NotFound(f"There is no directory {path}."))
        return [
            Entry(name=told["name"], path=told["path"], kind=told["entryType"], size=told["size"])
            for told in answer.json()
        ]

    async def make_directory(self, path: str) -> None:
        """Make a directory and those above it."""
        answer = await self._wire.send("POST", "/v1/fs/mkdir", params={"path": path})
        if answer.is_error:
            raise _refused(answer, InvalidInput(f"{path} cannot be made."))

    async def delete_path(self, path: str) -> None:
        """Remove a file or a whole directory."""
        params = {"path": path, "recursive": "true"}
        answer = await self._wire.send("DELETE", "/v1/fs/entry", params=params)
        if answer.is_error:
            stat = await self._wire.send("GET", "/v1/fs/stat", params={"path": path})
            if not stat.is_error:
                raise _refused(answer, Unavailable(f"{path} could not be removed."))

    # -- agents ----------------------------------------------------------------

    async def open_agent(self, server_id: str, agent: str) -> bool:
        """See to it that *agent* runs under *server_id*; return whether it can load sessions."""
        if agent not in AGENT_SLOTS:
            raise InvalidInput(f"There is no agent {agent!r}.", hint=f"One of {[*AGENT_SLOTS]}.")
        params = {
            "protocolVersion": 1,
            "clientCapabilities": {
                "fs": {"readTextFile": False, "writeTextFile": False},
                "terminal": False,
            },
            "clientInfo": {"name": "foundry", "version": "1"},
            "_meta": {"foundry": {"server_id": server_id}},
        }
        slot = AGENT_SLOTS[agent]
        try:
            about = await self._request(server_id, "initialize", params, slot=slot)
        except AgentExited as gone:
            if "shim" not in gone.context:
                raise
            await self.close_agent(server_id)
            try:
                about = await self._request(server_id, "initialize", params, slot=slot)
            except AgentExited as error:
                if "shim" not in error.context:
                    raise
                raise AgentMissing(
                    f"The launcher of agent {agent!r} does not run in the sandbox.",
                    **error.context,
                ) from error
        capabilities = about.get("agentCapabilities") or {}
        self._can_load[server_id] = bool(capabilities.get("loadSession"))
        return self._can_load[server_id]

    async def new_session(self, server_id: str, cwd: str) -> AgentSession:
        """Open a session that works in *cwd*."""
        told = await self._request(server_id, "session/new", {"cwd": cwd, "mcpServers": []})
        return self._session(server_id, told["sessionId"], told)

    async def load_session(self, server_id: str, session_id: str, cwd: str) -> AgentSession:
        """Take up a session of an earlier life of the agent, or the one that is open."""
        params = {"sessionId": session_id, "cwd": cwd, "mcpServers": []}
        try:
            told = await self._request(server_id, "session/load", params)
        except AgentRefused as error:
            raise NotFound(
                "The agent cannot take this session up again.", **error.context
            ) from error
        return self._session(server_id, session_id, told)

    async def set_mode(self, server_id: str, session_id: str, mode: str) -> None:
        """Choose one of the session's modes."""
        params = {"sessionId": session_id, "modeId": mode}
        await self._request(server_id, "session/set_mode", params)

    async def set_option(self, server_id: str, session_id: str, option: str, value: str) -> None:
        """Choose the value of one of the session's options."""
        params = {"sessionId": session_id, "configId": option, "value": value}
        await self._request(server_id, "session/set_config_option", params)

    async def prompt(
        self, server_id: str, session_id: str, message_id: str, blocks: Sequence[dict[str, Any]]
    ) -> None:
        """Give the agent a message and return once the journal holds it."""
        meta = {"foundry_message_id": message_id, "foundry_reply": "journalled"}
        params = {"sessionId": session_id, "prompt": list(blocks), "_meta": meta}
        try:
            await self._request(server_id, "session/prompt", params, patience=PROMPT_PATIENCE)
        except Unavailable as error:
            if error.context.get("sent", True):
                raise DeliveryUnknown(hint="Send it again with the same id.") from error
            raise

    async def cancel(self, server_id: str, session_id: str) -> None:
        """Ask the agent to end the running turn."""
        body = {"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": session_id}}
        await self._post(server_id, body)

    async def answer(self, server_id: str, rpc_id: str | int, result: dict[str, Any]) -> None:
        """Answer a request of the agent; the shim drops a second answer."""
        await self._post(server_id, {"jsonrpc": "2.0", "id": rpc_id, "result": result})

    async def close_agent(self, server_id: str) -> None:
        """End the agent of *server_id*; its journal stays."""
        self._can_load.pop(server_id, None)
        with contextlib.suppress(Unavailable):
            # It answers only when the agent is gone, which our hanging up brings about.
            await self._wire.send("DELETE", f"/v1/acp/{server_id}", read=CLOSE_PATIENCE)

    def _session(self, server_id: str, session_id: str, told: dict[str, Any]) -> AgentSession:
        return AgentSession(
            session_id=session_id,
            modes=told.get("modes"),
            models=told.get("models"),
            config_options=told.get("configOptions"),
            can_load=self._can_load.get(server_id, False),
        )

    # -- the journal -----------------------------------------------------------

    async def journal(
        self, server_id: str, from_seq: int, limit: int = 1000
    ) -> list[JournalRecord]:
        """Return complete records from number *from_seq* on, in order, at most *limit*."""
        return await self._journal(server_id).read(from_seq, limit)

    def follow(self, server_id: str, from_seq: int) -> AsyncGenerator[list[JournalRecord], None]:
        """Yield the records from number *from_seq* on in batches, in order and without gaps."""
        journal = self._journal(server_id)
        return Follower(self._wire, journal, f"/v1/acp/{server_id}", from_seq).batches()

    def _journal(self, server_id: str) -> Journal:
        return Journal(self._wire, f"{self._home}/{JOURNALS}/{server_id}")

    # -- ACP over HTTP ---------------------------------------------------------

    async def _request(
        self,
        server_id: str,
        method: str,
        params: dict[str, Any],
        *,
        slot: str | None = None,
        patience: float = ANSWER_PATIENCE,
    ) -> dict[str, Any]:
        """Return the agent's result, or raise what its error means."""
        envelope = {"jsonrpc": "2.0", "id": new_id(), "method": method, "params": params}
        post = asyncio.create_task(self._post(server_id, envelope, slot=slot, patience=patience))
        watch: asyncio.Task[None] | None = None
        try:
            await asyncio.wait({post}, timeout=WATCH_AFTER)
            if not post.done():
                # sandbox-agent does not answer a request whose agent died; its events say so.
                watch = asyncio.create_task(self._until_shim_gone(server_id))
                await asyncio.wait({post, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch is not None and watch.done() and not post.done():
                await watch
                raise AgentExited("The agent's shim ended.", shim="exited")
            answer = await post
        finally:
            for task in (post, watch):
                if task is not None and not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
        if "error" in answer:
            raise _agent_error(answer["error"])
        result: dict[str, Any] = answer.get("result") or {}
        return result

    async def _post(
        self,
        server_id: str,
        envelope: dict[str, Any],
        *,
        slot: str | None = None,
        patience: float = PROMPT_PATIENCE,
    ) -> dict[str, Any]:
        params = {"agent": slot} if slot else None
        answer = await self._wire.send(
            "POST", f"/v1/acp/{server_id}", params=params, body=envelope, read=patience
        )
        if not answer.is_error:
            told: dict[str, Any] = answer.json() if answer.content else {}
            return told
        kind, problem = problem_of(answer)
        if kind == "agent_not_installed":
            raise AgentMissing(f"The agent {problem.get('agent')} is not installed.")
        if kind == "conflict":
            raise InvalidInput("Another agent runs under this server id.")
        if kind == "timeout":
            raise Timeout("The agent did not answer in time.")
        if kind == "agent_process_exited" or (kind == "stream_error" and problem):
            raise AgentExited("The agent's shim is gone.", shim=problem.get("details"))
        raise _refused(answer, AgentExited("Nothing runs under this server id."))

    async def _until_shim_gone(self, server_id: str) -> None:
        """Return when sandbox-agent says that the shim exited."""
        while True:
            # If it cannot be asked, the request itself fails and says so.
            with contextlib.suppress(Unavailable):
                async with self._wire.events(f"/v1/acp/{server_id}", "0") as events:
                    if events is not None:
                        async for event in events:
                            if event.get("method") == EXITED:
                                return
            await asyncio.sleep(RECONNECT)


def _refused(answer: httpx.Response, otherwise: FoundryError) -> FoundryError:
    """Return *otherwise* with what sandbox-agent said about it."""
    otherwise.context.update(status=answer.status_code, problem=problem_of(answer)[1])
    return otherwise


def _agent_error(error: dict[str, Any]) -> FoundryError:
    data = error.get("data")
    data = data if isinstance(data, dict) else {}
    words = str(error.get("message", ""))
    facts = {key: data[key] for key in ("exit_code", "stderr") if key in data}
    match data.get("code"):
        case "agent_missing":
            return AgentMissing(**facts)
        case "agent_exited" | "session_not_open":
            return AgentExited(words, hint="Open the agent and its session again.", **facts)
        case "unavailable":
            return Unavailable(words, sent=False)
        case _:
            return AgentRefused(
                f"The agent refused: {words}", agent_error={**error, "message": words}
            )


def _process(told: dict[str, Any]) -> ProcessFacts:
    return ProcessFacts(
        id=told["id"],
        status=told["status"],
        exit_code=told.get("exitCode"),
        pid=told.get("pid"),
    )
