"""Runs the shim as a process, as sandbox-agent would, with a tiny agent behind it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from foundry_ray.core.ids import new_id
from foundry_ray.integrations.sandbox_agent import shim

AGENT = Path(__file__).with_name("tiny_agent.py")
LIMIT = 64 * 1024 * 1024  # bytes of the longest line


class Rig:
    """One life of the shim; ``told`` holds everything that it said."""

    def __init__(self, folder: Path, *options: str, agent: list[str] | None = None) -> None:
        self.folder = folder
        self.witness = folder / "witness.jsonl"
        self._options = options
        self._agent = agent or [sys.executable, "-I", "-S", str(AGENT), str(self.witness)]
        self.told: list[dict[str, Any]] = []
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Rig:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-B", shim.__file__),
            *("--journal", str(self.folder / "journal"), *self._options, "--", *self._agent),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LIMIT,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hang_up()

    async def hang_up(self) -> None:
        """Close its input, as sandbox-agent does, and wait until it is gone."""
        assert self._process.stdin
        self._process.stdin.close()
        await asyncio.wait_for(self._process.communicate(), 10)

    async def kill(self) -> None:
        """End the shim as a crash does."""
        self._process.kill()
        await self._process.wait()

    async def send(self, **message: Any) -> None:
        """Give it a line."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        await self._process.stdin.drain()

    async def hear(self) -> dict[str, Any]:
        """Return its next line."""
        assert self._process.stdout
        line = await asyncio.wait_for(self._process.stdout.readline(), 10)
        message: dict[str, Any] = json.loads(line)
        self.told.append(message)
        return message

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request and return its answer."""
        return await self.answer_to(await self.request(method, **params))

    async def request(self, method: str, **params: Any) -> str:
        """Send a request and return its id."""
        rpc_id = new_id()
        await self.send(id=rpc_id, method=method, params=params)
        return rpc_id

    async def answer_to(self, rpc_id: str) -> dict[str, Any]:
        """Return the answer to a request, perhaps heard already."""
        for message in self.told:
            if message.get("id") == rpc_id and "method" not in message:
                return message
        while (message := await self.hear()).get("id") != rpc_id or "method" in message:
            pass
        return message

    async def hear_method(self, method: str) -> dict[str, Any]:
        """Return the next line with this method."""
        while (message := await self.hear()).get("method") != method:
            pass
        return message

    async def open(self, server_id: str = "srv") -> None:
        """Initialize, and open the session ``s1``."""
        answer = await self.initialize(server_id)
        assert answer["result"] == {"agentCapabilities": {"loadSession": True}}
        assert "result" in await self.ask("session/new", cwd="/", mcpServers=[])

    async def initialize(self, server_id: str = "srv") -> dict[str, Any]:
        """Initialize, and return the answer."""
        return await self.ask(
            "initialize", protocolVersion=1, _meta={"foundry": {"server_id": server_id}}
        )

    def prompt_params(self, text: str, message_id: str, **meta: Any) -> dict[str, Any]:
        """Return the parameters of a prompt."""
        return {
            "sessionId": "s1",
            "prompt": [{"type": "text", "text": text}],
            "_meta": {"foundry_message_id": message_id, **meta},
        }

    async def prompt(self, text: str, message_id: str, **meta: Any) -> dict[str, Any]:
        """Give the agent a prompt and return its answer."""
        return await self.ask("session/prompt", **self.prompt_params(text, message_id, **meta))

    async def begin(self, text: str, message_id: str) -> str:
        """Give the agent a prompt and return the request's id once it reached the agent."""
        seen = len(self.seen())
        rpc_id = await self.request("session/prompt", **self.prompt_params(text, message_id))
        while len(self.seen()) == seen:
            await asyncio.sleep(0.01)
        return rpc_id

    def seen(self) -> list[str]:
        """Return the texts that reached an agent."""
        if not self.witness.exists():
            return []
        lines = self.witness.read_text().splitlines()
        return [json.loads(line)["prompt"][0]["text"] for line in lines]

    def segments(self, server_id: str = "srv") -> list[Path]:
        """Return the files of a journal."""
        return sorted((self.folder / "journal" / server_id).glob("*.jsonl"))

    def journal(self, server_id: str = "srv") -> list[dict[str, Any]]:
        """Return the records of a journal."""
        content = b"".join(path.read_bytes() for path in self.segments(server_id))
        return [json.loads(line) for line in content.splitlines()]

    def ends(self) -> dict[str, Any]:
        """Return the payload of each end record, by message id."""
        ends = [record for record in self.journal() if record["direction"] == "end"]
        assert len({record["message_id"] for record in ends}) == len(ends)
        return {record["message_id"]: record["payload"] for record in ends}

    def agent_pid(self) -> int:
        """Return the process id of the last agent."""
        notes = [record["payload"] for record in self.journal() if record["direction"] == "note"]
        return [int(note["pid"]) for note in notes if note["event"] == "agent_started"][-1]


def runs(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False
    return stat.rpartition(b")")[2].split()[0] != b"Z" and os.path.exists(f"/proc/{pid}")
