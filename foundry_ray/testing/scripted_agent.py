"""A real ACP agent that does what the prompt says, line by line, without a model.

Run as ``python -m foundry_ray.testing.scripted_agent``. Lines of a prompt:

===================  =========================================================
``say TEXT``         a message
``stream N MS``      N message chunks, MS milliseconds apart
``stream N MS PATH`` the same; fewer, once there is a file at PATH
``tool NAME``        a tool call that starts and completes
``write PATH TEXT``  writes a file of the work tree
``run ARGV...``      runs a command in the work tree and tells its output
``commit MSG``       commits everything in the work tree
``ask QUESTION``     asks for permission and tells the outcome
``hang``             works until it is cancelled
``fail MSG``         answers the prompt with an error
``exit CODE``        ends the process
===================  =========================================================

Anything else is answered with a short echo. A turn can be cancelled at any time.

It writes every message id that it receives to ``~/.foundry/witness.jsonl``, so that a test
can see how often each arrived, and its sessions to ``~/.foundry/scripted/``, so that
``session/load`` works. If ``~/.foundry/exit-on-new-session`` exists, it exits with code 7
when a session is opened.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import acp
from acp import helpers, schema

from foundry_ray import __version__
from foundry_ray.core.ids import new_id

ECHO = 80  # characters of an unknown line that are said back
MODES = ("default", "plan")
STDOUT_LIMIT = 64 * 1024  # characters of a command's output that are told


class ScriptedAgent:
    """Does what prompts say.

    Args:
        folder: ``~/.foundry``: where the witness and the sessions are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client: acp.Client
        self._turns: dict[str, asyncio.Task[None]] = {}

    def on_connect(self, conn: acp.Client) -> None:
        """Remember whom to talk to."""
        self._client = conn

    async def initialize(self, protocol_version: int, **_: Any) -> schema.InitializeResponse:
        """Say what this agent can do."""
        return schema.InitializeResponse(
            protocol_version=min(protocol_version, acp.PROTOCOL_VERSION),
            agent_capabilities=schema.AgentCapabilities(load_session=True),
            agent_info=schema.Implementation(name="scripted", version=__version__),
        )

    async def new_session(self, cwd: str, **_: Any) -> schema.NewSessionResponse:
        """Open a session that works in *cwd*."""
        if (self._folder / "exit-on-new-session").exists():
            sys.stderr.write("told to exit when a session is opened\n")
            sys.stderr.flush()
            os._exit(7)
        session_id = new_id()
        self._save(session_id, {"cwd": cwd, "mode": MODES[0], "past": []})
        return schema.NewSessionResponse(session_id=session_id, modes=_modes(MODES[0]))

    async def load_session(self, cwd: str, session_id: str, **_: Any) -> schema.LoadSessionResponse:
        """Take a session up again and tell its past."""
        session = self._load(session_id)
        self._save(session_id, {**session, "cwd": cwd})
        for text in session["past"]:
            await self._tell(session_id, helpers.update_user_message_text(text))
        return schema.LoadSessionResponse(modes=_modes(session["mode"]))

    async def set_session_mode(
        self, session_id: str, mode_id: str, **_: Any
    ) -> schema.SetSessionModeResponse:
        """Change the mode, which changes nothing else."""
        if mode_id not in MODES:
            raise acp.RequestError.invalid_params({"mode": mode_id})
        self._save(session_id, {**self._load(session_id), "mode": mode_id})
        await self._tell(session_id, helpers.update_current_mode(mode_id))
        return schema.SetSessionModeResponse()

    async def prompt(
        self, session_id: str, prompt: list[Any], **meta: Any
    ) -> schema.PromptResponse:
        """Do what the text of *prompt* says."""
        session = self._load(session_id)
        text = "\n".join(block.text for block in prompt if block.type == "text")
        self._witness(meta.get("foundry_message_id"), session_id)
        self._save(session_id, {**session, "past": [*session["past"], text]})
        turn = asyncio.create_task(self._play(session_id, Path(session["cwd"]), text))
        self._turns[session_id] = turn
        try:
            await turn
        except asyncio.CancelledError:
            return schema.PromptResponse(stop_reason="cancelled")
        finally:
            del self._turns[session_id]
        return schema.PromptResponse(stop_reason="end_turn")

    async def cancel(self, session_id: str, **_: Any) -> None:
        """End the running turn, if there is one."""
        if turn := self._turns.get(session_id):
            turn.cancel()

    # -- what lines do ---------------------------------------------------------

    async def _play(self, session_id: str, cwd: Path, text: str) -> None:
        for line in text.splitlines():
            verb, _, rest = line.strip().partition(" ")
            match verb:
                case "":
                    continue
                case "say":
                    await self._say(session_id, rest)
                case "stream":
                    count, pause, *until = rest.split()
                    for number in range(int(count)):
                        if until and (cwd / until[0]).exists():
                            break
                        await self._say(session_id, f"chunk {number}\n")
                        await asyncio.sleep(float(pause) / 1000)
                case "tool":
                    await self._tool(session_id, rest, "other", f"{rest} done")
                case "write":
                    await self._write(session_id, cwd, *rest.partition(" ")[::2])
                case "run":
                    await self._run(session_id, cwd, shlex.split(rest))
                case "commit":
                    await self._commit(session_id, cwd, rest)
                case "ask":
                    await self._ask(session_id, rest)
                case "hang":
                    await asyncio.Event().wait()
                case "fail":
                    raise acp.RequestError(-32603, rest or "told to fail")
                case "exit":
                    sys.stdout.flush()
                    os._exit(int(rest or 0))
                case _:
                    await self._say(session_id, f"You said: {line.strip()[:ECHO]}")

    async def _say(self, session_id: str, text: str) -> None:
        await self._tell(session_id, helpers.update_agent_message_text(text))

    async def _tool(self, session_id: str, title: str, kind: Any, output: str) -> None:
        call = new_id()
        await self._tell(
            session_id, helpers.start_tool_call(call, title, kind=kind, status="in_progress")
        )
        content = [helpers.tool_content(helpers.text_block(output))]
        await self._tell(
            session_id, helpers.update_tool_call(call, status="completed", content=content)
        )

    async def _write(self, session_id: str, cwd: Path, name: str, text: str) -> None:
        path = cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
        await self._tool(session_id, f"Write {name}", "edit", text)

    async def _run(self, session_id: str, cwd: Path, argv: list[str]) -> None:
        code, output = await _command(cwd, argv)
        await self._tool(session_id, shlex.join(argv), "execute", f"{output}\nexit code {code}")

    async def _commit(self, session_id: str, cwd: Path, words: str) -> None:
        known, _ = await _command(cwd, ["git", "config", "--get", "user.email"])
        author = ["-c", "user.name=Scripted", "-c", "user.email=scripted@localhost"]
        for argv in (
            ["git", "add", "--all"],
            ["git", *(author if known else []), "commit", "--quiet", "--message", words],
        ):
            code, output = await _command(cwd, argv)
            if code:
                raise acp.RequestError(-32603, f"{shlex.join(argv)}: {output}")
        await self._tool(session_id, f"Commit {words}", "execute", words)

    async def _ask(self, session_id: str, question: str) -> None:
        answer = await self._client.request_permission(
            session_id=session_id,
            tool_call=schema.ToolCallUpdate(tool_call_id=new_id(), title=question),
            options=[
                schema.PermissionOption(option_id="allow", name="Allow", kind="allow_once"),
                schema.PermissionOption(option_id="reject", name="Reject", kind="reject_once"),
            ],
        )
        outcome = answer.outcome
        chosen = outcome.option_id if outcome.outcome == "selected" else "cancelled"
        await self._say(session_id, f"outcome {chosen}")

    async def _tell(self, session_id: str, update: Any) -> None:
        await self._client.session_update(session_id=session_id, update=update)

    # -- what outlives the process ---------------------------------------------

    def _witness(self, message_id: str | None, session_id: str) -> None:
        line = json.dumps({"message_id": message_id, "session_id": session_id}) + "\n"
        with (self._folder / "witness.jsonl").open("ab", buffering=0) as witness:
            size = os.fstat(witness.fileno()).st_size
            if witness.write(line.encode()) != len(line):
                witness.truncate(size)  # a full disk took half of it
                raise acp.RequestError.internal_error({"reason": "the disk is full"})

    def _path(self, session_id: str) -> Path:
        return self._folder / "scripted" / f"{session_id}.json"

    def _load(self, session_id: str) -> dict[str, Any]:
        try:
            session: dict[str, Any] = json.loads(self._path(session_id).read_text())
        except FileNotFoundError:
            raise acp.RequestError.resource_not_found(session_id) from None
        return session

    def _save(self, session_id: str, session: dict[str, Any]) -> None:
        path = self._path(session_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(session))
        draft.replace(path)


def _modes(current: str) -> schema.SessionModeState:
    modes = [schema.SessionMode(id=mode, name=mode.title()) for mode in MODES]
    return schema.SessionModeState(current_mode_id=current, available_modes=modes)


async def _command(cwd: Path, argv: list[str]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace")[-STDOUT_LIMIT:]


def main() -> None:
    """Speak ACP on standard input and output until the input ends."""
    folder = Path.home() / ".foundry"
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(acp.run_agent(ScriptedAgent(folder)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
