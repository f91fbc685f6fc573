"""Commands and processes in a sandbox."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import httpx

from foundry_ray.core.errors import Busy, InvalidInput, NotFound, Unavailable
from foundry_ray.integrations.sandbox_agent.base import (
    MAX_OUTPUT,
    RUN_TIMEOUT,
    ProcessFacts,
    RunResult,
)
from foundry_ray.integrations.sandbox_agent.transport import Wire, refused

KILL_AFTER = 1  # seconds between TERM and KILL of a command whose time is up
RUN_MARGIN = 5.0  # seconds that sandbox-agent waits longer than the command's own time limit
LONGEST_RUN = timedelta(hours=1)
_TIMED_OUT = {124, 137}  # what ``timeout`` exits with after TERM, and after KILL


class Commands:
    """Runs commands and processes; see the port for what each method promises."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._longest_run = timedelta()

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
            raise refused(answer, NotFound(f"The command cannot run in {cwd}."))
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
            raise refused(answer, NotFound(f"{argv[0]} cannot run in {cwd}."))
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
            raise refused(answer, Unavailable("The process could not be deleted."))

    async def _process_call(
        self, method: str, process_id: str, rest: str = "", params: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        answer = await self._wire.send(method, f"/v1/processes/{process_id}{rest}", params=params)
        if answer.is_error:
            raise refused(answer, NotFound(f"There is no process {process_id}."))
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
                raise refused(answer, Unavailable("Commands cannot run as long as asked for."))
        self._longest_run = allowed


def _process(told: dict[str, Any]) -> ProcessFacts:
    return ProcessFacts(
        id=told["id"],
        status=told["status"],
        exit_code=told.get("exitCode"),
        pid=told.get("pid"),
    )
