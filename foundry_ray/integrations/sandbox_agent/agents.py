"""Agents in a sandbox: ACP over HTTP, through the shim."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from foundry_ray.core.errors import (
    AgentExited,
    AgentMissing,
    AgentRefused,
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
    AgentSession,
    JournalRecord,
)
from foundry_ray.integrations.sandbox_agent.install import JOURNALS
from foundry_ray.integrations.sandbox_agent.journal import EXITED, RECONNECT, Follower, Journal
from foundry_ray.integrations.sandbox_agent.transport import Wire, problem_of, refused

ANSWER_PATIENCE = 90.0  # seconds for an agent to start or to open a session; some are slow
PROMPT_PATIENCE = 15.0  # seconds for the shim to write a prompt down
CLOSE_PATIENCE = 0.5  # seconds; the answer to a DELETE comes only when the agent is gone
WATCH_AFTER = 1.0  # seconds after which a request is suspected to wait for a dead shim


class Agents:
    """Opens agents, prompts them and reads their journals; see the port.

    Args:
        wire: To the sandbox.
        home: ``$HOME`` inside it.
    """

    def __init__(self, wire: Wire, home: str) -> None:
        self._wire = wire
        self._home = home.rstrip("/")
        self._can_load: dict[str, bool] = {}

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
        with contextlib.suppress(AgentExited):  # then its turn is over, too
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
        raise refused(answer, AgentExited("Nothing runs under this server id."))

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
