"""The ACP shim: stands between sandbox-agent and a coding agent, and writes everything down.

Shipped into sandboxes as one file that needs only Python 3.9 and its standard library; it
runs in sandbox-agent's launcher slot as ``python -I -S -B shim.py --journal DIR [--keep-meta]
-- AGENT ARGV...`` and speaks newline-delimited JSON-RPC on both sides.

*Journal.* Every line of both directions is appended, numbered, before it is passed on, to
``DIR/<server id>/<first number, 8 digits>.jsonl``. The server id is ``params._meta.foundry.
server_id`` of the first ``initialize``. The lines that follow a record go out with a key
``_foundry`` that says where it stands, so that a reader of the stream knows what it missed;
records that are no line of the agent go out as notifications ``_foundry/record``.

*Delivery.* A ``session/prompt`` with ``params._meta.foundry_message_id`` reaches an agent at
most once, ever. The same id again is answered from the journal or joins the running turn.
With ``_meta.foundry_reply`` set to ``journalled`` the answer comes at once and says how far
the message is: ``given``, ``running`` or ``ended``; else it comes at the end of the turn.
If the agent that took a message is gone, the turn's end is ``agent_exited``.

*Life.* When the agent exits, its open requests are answered with an error whose data has the
code ``agent_exited``, and so is every later one until ``initialize`` starts it again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

Message = dict[str, Any]

SEGMENT_LINES = 1_000
SEGMENT_BYTES = 1024 * 1024  # a reader gets whole files only, so they stay small
CHUNK = 1024 * 1024  # bytes per read
HIGH_WATER = 16 * 1024 * 1024  # bytes waiting for sandbox-agent above which the agent waits
STDERR_TAIL = 4096  # bytes of the agent's last words that are kept
LOCK_PATIENCE = 5.0  # seconds for an earlier shim of the same journal to end
SILENCE_LOOK = 200  # milliseconds between looks at an agent that closed its output
SILENCE_PATIENCE = 2.0  # seconds that such an agent has to exit; it can never answer again
FULL_PAUSE = 0.2  # seconds between two tries to write to a full disk
CLOSE_PATIENCE = (0.3, 1.0)  # seconds after end of input, and after TERM
PERMISSION = "session/request_permission"
PING = "_foundry/ping"  # arriving is all that it is for
AGENT_GONE = -32000
METHOD_NOT_FOUND = -32601
INVALID = -32602

_SERVER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HEAD = (
    rb'^\{"seq":(\d+),"at_ms":\d+,"direction":"(in|out|end)",'
    rb'"message_id":("(?:[^"\\]|\\.)*"),"payload":(.*)\}$'
)
_NAMED_RECORD = re.compile(_HEAD, re.MULTILINE)


class Place(NamedTuple):
    """Where a record stands: in which segment, and at which byte it ends."""

    seq: int
    at_ms: int
    segment: int
    end: int


class Journal:
    """Numbered records in segment files, written by one shim at a time."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.directory = directory
        self.last = 0
        self.ended: dict[str, Message] = {}  # by message id: the payload of its end
        self.open: set[str] = set()  # message ids that an agent was given and has not ended
        self._file = -1
        self._segment = self._lines = self._size = 0
        self._lock = os.open(os.path.join(directory, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        self._wait_for_lock()
        self._end_forgotten_agent()
        self._recall()

    def append(self, direction: str, payload: bytes, message_id: str | None = None) -> Place:
        """Write one record with one write; *payload* is a JSON object without line breaks."""
        if self._file < 0 or self._lines >= SEGMENT_LINES or self._size >= SEGMENT_BYTES:
            self._roll()
        seq, at_ms = self.last + 1, time.time_ns() // 1_000_000
        head = '{"seq":%d,"at_ms":%d,"direction":"%s","message_id":%s,"payload":'
        named = head % (seq, at_ms, direction, json.dumps(message_id))
        line = b"".join((named.encode(), payload, b"}\n"))
        view = memoryview(line)
        while view:
            view = view[_with_room(os.write, self._file, view) :]
        self.last, self._lines, self._size = seq, self._lines + 1, self._size + len(line)
        return Place(seq, at_ms, self._segment, self._size)

    def remember_agent(self, pid: int) -> None:
        """Note who works for this journal, so that the next shim can end a forgotten agent."""
        os.ftruncate(self._lock, 0)
        _with_room(os.pwrite, self._lock, f"{pid} {_start_ticks(pid)}".encode(), 0)

    def _wait_for_lock(self) -> None:
        until = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def _end_forgotten_agent(self) -> None:
        """Kill an agent whose shim was killed: two must not work in one tree."""
        words = os.pread(self._lock, 64, 0).split()
        if len(words) == 2 and _start_ticks(int(words[0])) == words[1].decode():
            _signal_group(int(words[0]), signal.SIGKILL)

    def _recall(self) -> None:
        names = sorted(name for name in os.listdir(self.directory) if name.endswith(".jsonl"))
        for name in names:
            with open(os.path.join(self.directory, name), "rb+") as file:
                content = file.read()
                whole = content.rfind(b"\n") + 1
                if whole < len(content):  # torn by a crash, so never passed on
                    file.truncate(whole)
                    content = content[:whole]
            self._segment, self._lines = int(name[:-6]), content.count(b"\n")
            self._size, self.last = whole, self._segment + self._lines - 1
            for match in _NAMED_RECORD.finditer(content):
                self._recall_named(match[2], json.loads(match[3]), match[4])
        if names:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(os.path.join(self.directory, names[-1]), flags)

    def _recall_named(self, direction: bytes, message_id: str, payload: bytes) -> None:
        if direction == b"in":
            self.open.add(message_id)
        elif direction == b"end":
            self.open.discard(message_id)
            self.ended[message_id] = json.loads(payload)
        elif message_id in self.open:  # the agent's answer; its end may not have been written
            self.ended[message_id] = end_of(json.loads(payload))

    def _roll(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._segment, self._lines, self._size = self.last + 1, 0, 0
        path = os.path.join(self.directory, f"{self._segment:08d}.jsonl")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = _with_room(os.open, path, flags, 0o600)


def _with_room(call: Callable[..., int], *arguments: Any) -> int:
    """Make a system call, again and again while the disk is full; the agent waits meanwhile."""
    while True:
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            time.sleep(FULL_PAUSE)


class Agent:
    """One life of the agent process, and what it was asked and told in it."""

    def __init__(self, argv: list[str]) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("SANDBOX_AGENT_") and name != "RUST_LOG"
        }
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.stdin = self.process.stdin.fileno()
        self.stdout = self.process.stdout.fileno()
        self.stderr = self.process.stderr.fileno()
        for descriptor in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(descriptor, False)
        self.inbox = bytearray()
        self.lines = Lines()
        self.last_words = b""
        self.stderr_ended = False
        self.silent_since: float | None = None  # when it closed its output, if it did
        self.about: Message | None = None  # its answer to initialize
        self.sessions: dict[str, Message] = {}  # how each session that it has open began
        self.loading: dict[Any, str] = {}  # session by the id of its session/load
        self.pending: dict[Any, Message] = {}  # requests to it, by id
        self.turns: dict[str, str] = {}  # message id by the id of its session/prompt
        self.asked: dict[str, Any] = {}  # its own id by the one under which it is known outside

    def close(self) -> None:
        """Let go of the pipes."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()


class Lines:
    """Cuts a stream of bytes into lines, each byte looked at once."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that *chunk* completes, without empty ones."""
        head, found, tail = chunk.rpartition(b"\n")
        if not found:
            self._rest += chunk
            return []
        whole = bytes(self._rest) + head
        self._rest = bytearray(tail)
        return [line for line in whole.split(b"\n") if line.strip()]


class Shim:
    """Relays between sandbox-agent (standard input and output) and the agent."""

    def __init__(self, argv: list[str], journals: str, keep_meta: bool) -> None:
        self._argv, self._journals, self._keep_meta = argv, journals, keep_meta
        self._journal: Journal | None = None
        self._agent: Agent | None = None
        self._outbox = bytearray()
        self._lines = Lines()
        self._initialising: list[Any] = []  # ids of initialize that wait for the agent
        self._waiting: dict[str, list[Any]] = {}  # ids to answer when a message's turn ends
        self._exit: Message = {"code": "agent_exited"}  # data of errors while no agent lives

    # -- the loop --------------------------------------------------------------

    def run(self) -> None:
        """Relay until sandbox-agent hangs up or TERM comes; then end the agent."""
        wake_out, wake_in = os.pipe()
        for descriptor in (0, 1, wake_out, wake_in):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            while self._turn(wake_out):
                pass
        finally:
            self._close()

    def _turn(self, wake: int) -> bool:
        agent, poll = self._agent, select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(0, select.POLLIN)
        if self._outbox:
            poll.register(1, select.POLLOUT)
        if agent:
            if len(self._outbox) < HIGH_WATER and agent.silent_since is None:
                poll.register(agent.stdout, select.POLLIN)
            if not agent.stderr_ended:
                poll.register(agent.stderr, select.POLLIN)
            if agent.inbox:
                poll.register(agent.stdin, select.POLLOUT)
        silent = agent is not None and agent.silent_since is not None
        ready = dict(poll.poll(SILENCE_LOOK if silent else None))
        if 1 in ready and not _flush(1, self._outbox):
            return False
        if wake in ready and signal.SIGTERM in os.read(wake, 4096):
            return False
        if agent:
            self._attend(agent, ready)
        if 0 in ready:
            chunk = os.read(0, CHUNK)
            if not chunk:
                return False
            for line in self._lines.feed(chunk):
                self._from_client(line)
        return True

    def _attend(self, agent: Agent, ready: dict[int, int]) -> None:
        if agent.stdin in ready and not _flush(agent.stdin, agent.inbox):
            agent.inbox.clear()  # it does not listen any more; its exit will say why
        ended = agent.process.poll() is not None  # asked first: what it said is then all there
        if agent.stdout in ready or ended:
            while said := _read(agent.stdout):
                for line in agent.lines.feed(said):
                    self._from_agent(agent, line)
                if not ended:
                    break
            if said == b"" and agent.silent_since is None:
                agent.silent_since = time.monotonic()
        if agent.stderr in ready or ended:
            while words := _read(agent.stderr):
                agent.last_words = (agent.last_words + words)[-STDERR_TAIL:]
            agent.stderr_ended = words == b""
        if ended:
            self._agent_gone(agent)
        elif agent.silent_since and time.monotonic() - agent.silent_since > SILENCE_PATIENCE:
            _signal_group(agent.process.pid, signal.SIGKILL)

    # -- from sandbox-agent ----------------------------------------------------

    def _from_client(self, line: bytes) -> None:
        message = json.loads(line)
        method, rpc_id = message.get("method"), message.get("id")
        if method == PING or (self._journal is None and not self._open_journal(message)):
            return
        if method is None:
            self._client_answered(message)
        elif method == "initialize":
            self._initialize(message)
        elif method == "session/prompt" and (message_id := _meta(message, "foundry_message_id")):
            self._prompt(message, message_id)
        elif self._agent is None or self._agent.about is None:
            if rpc_id is not None:
                self._refuse(rpc_id, AGENT_GONE, "The agent is not running.", self._exit)
        elif method == "session/load" and _session(message) in self._agent.sessions:
            self._reply(rpc_id, self._agent.sessions[_session(message)])
        else:
            if method == "session/load":
                self._agent.loading[rpc_id] = _session(message)
            self._give(self._agent, message)

    def _open_journal(self, message: Message) -> bool:
        name = (_meta(message, "foundry") or {}).get("server_id", "default")
        if not _SERVER_ID.fullmatch(name):
            self._refuse(message.get("id"), INVALID, "Not a name for a journal.", {})
            return False
        try:
            self._journal = Journal(os.path.join(self._journals, name))
        except BlockingIOError:
            busy = {"code": "unavailable"}
            self._refuse(message.get("id"), AGENT_GONE, "An earlier shim still runs.", busy)
            return False
        for message_id in sorted(self._journal.open):
            ended = self._journal.ended.get(message_id)
            self._end(message_id, ended or _error_end("agent_exited", "The agent is gone."))
        return True

    def _initialize(self, message: Message) -> None:
        if self._agent and self._agent.about is not None:
            self._reply(message["id"], self._agent.about)
            return
        self._initialising.append(message["id"])
        if self._agent:
            return
        try:
            self._agent = Agent(self._argv)
        except OSError as error:
            self._exit = {"code": "agent_missing", "stderr": f"{self._argv[0]}: {error.strerror}"}
            self._refuse_initialize()
            return
        assert self._journal
        self._journal.remember_agent(self._agent.process.pid)
        self._note({"event": "agent_started", "pid": self._agent.process.pid})
        self._give(self._agent, {**message, "id": "initialize"})

    def _prompt(self, message: Message, message_id: str) -> None:
        assert self._journal
        ended, agent, state = self._journal.ended, self._agent, "running"
        if message_id in ended:
            state = "ended"
        elif message_id not in self._journal.open:
            if agent is None or _session(message) not in agent.sessions:
                words = "The agent that had this session is gone."
                data = {**self._exit, "code": "session_not_open"}
                self._refuse(message["id"], AGENT_GONE, words, data)
                return
            state, turn = "given", f"turn-{message_id}"
            agent.turns[turn] = message_id
            self._journal.open.add(message_id)
            self._give(agent, {**message, "id": turn}, message_id)
        if _meta(message, "foundry_reply") == "journalled":
            self._reply(message["id"], {"_meta": {"foundry": {"state": state}}})
        elif state == "ended":
            self._answer_end(message["id"], ended[message_id])
        else:
            self._waiting.setdefault(message_id, []).append(message["id"])

    def _client_answered(self, message: Message) -> None:
        agent = self._agent
        if agent and message.get("id") in agent.asked:
            self._give(agent, {**message, "id": agent.asked.pop(message["id"])}, known=message)

    def _give(
        self,
        agent: Agent,
        message: Message,
        message_id: str | None = None,
        known: Message | None = None,
    ) -> None:
        """Journal a line and give it to the agent; *known* is how it is known outside."""
        if not self._keep_meta:
            message = _without_meta(message)
        if "method" in message and message.get("id") is not None:
            agent.pending[message["id"]] = message
        line = _dump(message)
        self._record("in", _dump(known) if known else line, message_id)
        agent.inbox += line + b"\n"
        if not _flush(agent.stdin, agent.inbox):
            agent.inbox.clear()

    # -- from the agent --------------------------------------------------------

    def _from_agent(self, agent: Agent, line: bytes) -> None:
        try:
            message = json.loads(line, parse_constant=_no_constant)
        except ValueError:
            message = None
        if not isinstance(message, dict) or not ("method" in message or "id" in message):
            self._note({"event": "noise", "text": line[:2000].decode(errors="replace")})
        elif "method" not in message:
            self._agent_answered(agent, message, line)
        elif message.get("id") is not None and message["method"] != PERMISSION:
            self._pass_on(line)  # nobody outside could answer: initialize offered nothing else
            words = f"{message['method']} is not offered"
            error = {"code": METHOD_NOT_FOUND, "message": words}
            self._give(agent, {"jsonrpc": "2.0", "id": message["id"], "error": error})
        elif message.get("id") is not None:
            # Agents count from 0 in every life; outside, each question has its own name.
            assert self._journal
            name = f"ask-{self._journal.last + 1}"
            agent.asked[name] = message["id"]
            self._pass_on(_dump({**message, "id": name}))
        elif _session(message) in agent.loading.values():
            self._note({"event": "replayed", "envelope": message})
        else:
            _follow_update(agent, message)
            self._pass_on(line)

    def _agent_answered(self, agent: Agent, message: Message, line: bytes) -> None:
        rpc_id = message["id"]
        request = agent.pending.pop(rpc_id, None)
        if request is None:
            self._note({"event": "noise", "text": line[:2000].decode(errors="replace")})
            return
        agent.loading.pop(rpc_id, None)
        if "result" in message:
            _follow_answer(agent, request, message["result"] or {})
        if message_id := agent.turns.pop(rpc_id, None):
            self._pass_on(line, message_id)
            self._end(message_id, end_of(message))
            return
        self._pass_on(line)
        if rpc_id == "initialize":
            waiting, self._initialising = self._initialising, []
            if "result" in message:
                agent.about = message["result"] or {}
            for waiting_id in waiting:
                self._send({**message, "id": waiting_id})

    def _agent_gone(self, agent: Agent) -> None:
        self._agent = None
        agent.close()
        code = agent.process.returncode
        words = agent.last_words.decode(errors="replace")
        self._exit = {"code": "agent_exited", "exit_code": code, "stderr": words}
        self._note({"event": "agent_exited", "exit_code": code, "stderr": words})
        for message_id in agent.turns.values():
            self._end(message_id, {"error": {**self._exit, "message": "The agent exited."}})
        for rpc_id in agent.pending:
            if rpc_id not in agent.turns and rpc_id != "initialize":
                self._refuse(rpc_id, AGENT_GONE, "The agent exited.", self._exit)
        self._refuse_initialize()

    def _refuse_initialize(self) -> None:
        waiting, self._initialising = self._initialising, []
        for rpc_id in waiting:
            self._refuse(rpc_id, AGENT_GONE, "The agent did not start.", self._exit)

    # -- to the journal and to sandbox-agent -----------------------------------

    def _pass_on(self, line: bytes, message_id: str | None = None) -> None:
        assert self._journal
        line = line.strip()
        place = self._journal.append("out", line, message_id)
        mark = {**place._asdict(), "message_id": message_id}
        self._write(b'{"_foundry":' + _dump(mark) + b"," + line[1:])

    def _record(self, direction: str, payload: bytes, message_id: str | None = None) -> None:
        assert self._journal
        place = self._journal.append(direction, payload, message_id)
        mark = {**place._asdict(), "message_id": message_id, "direction": direction}
        head = b'{"_foundry":' + _dump(mark) + b',"jsonrpc":"2.0","method":"_foundry/record",'
        self._write(head + b'"params":' + payload + b"}")

    def _note(self, payload: Message) -> None:
        self._record("note", _dump(payload))

    def _end(self, message_id: str, payload: Message) -> None:
        assert self._journal
        self._record("end", _dump(payload), message_id)
        self._journal.open.discard(message_id)
        self._journal.ended[message_id] = payload
        for rpc_id in self._waiting.pop(message_id, []):
            self._answer_end(rpc_id, payload)

    def _answer_end(self, rpc_id: Any, payload: Message) -> None:
        if "error" in payload:
            self._refuse(rpc_id, AGENT_GONE, payload["error"]["message"], payload["error"])
        else:
            self._reply(rpc_id, {"stopReason": payload["stop_reason"]})

    def _reply(self, rpc_id: Any, result: Message) -> None:
        self._send({"jsonrpc": "2.0", "id": rpc_id, "result": result})

    def _refuse(self, rpc_id: Any, code: int, words: str, data: Message) -> None:
        error = {"code": code, "message": words, "data": data}
        self._send({"jsonrpc": "2.0", "id": rpc_id, "error": error})

    def _send(self, message: Message) -> None:
        self._write(_dump(message))

    def _write(self, line: bytes) -> None:
        self._outbox += line + b"\n"

    def _close(self) -> None:
        """End the agent, gently first, and say in the journal that its turns are over."""
        agent = self._agent
        if agent is None:
            return
        agent.close()
        for patience, number in zip(CLOSE_PATIENCE, (signal.SIGTERM, signal.SIGKILL)):  # noqa: B905
            try:
                agent.process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                _signal_group(agent.process.pid, number)
        for message_id in agent.turns.values():
            self._end(message_id, _error_end("agent_exited", "The agent was closed."))


def end_of(answer: Message) -> Message:
    """Return the payload of the end record for an agent's answer to a prompt."""
    if "error" in answer:
        error = answer["error"] if isinstance(answer["error"], dict) else {}
        found = _error_end("agent_error", str(error.get("message", "")))
        found["error"]["data"] = error.get("data")
        return found
    return {"stop_reason": (answer.get("result") or {}).get("stopReason")}


def _error_end(code: str, words: str) -> Message:
    return {"error": {"code": code, "message": words}}


def _follow_answer(agent: Agent, request: Message, result: Message) -> None:
    """Keep what a later session/load of an open session is answered with."""
    method, params = request["method"], _params(request)
    if method in ("session/new", "session/load"):
        agent.sessions[str(params.get("sessionId", result.get("sessionId")))] = result
    elif (began := agent.sessions.get(str(params.get("sessionId")))) is None:
        return
    elif method == "session/set_mode" and began.get("modes"):
        began["modes"]["currentModeId"] = params.get("modeId")
    elif method == "session/set_config_option" and "configOptions" in result:
        began["configOptions"] = result["configOptions"]


def _follow_update(agent: Agent, message: Message) -> None:
    """Keep it up to date with what the agent changes by itself."""
    began, update = agent.sessions.get(str(_session(message))), _params(message).get("update")
    if began is None or not isinstance(update, dict):
        return
    if update.get("sessionUpdate") == "current_mode_update" and began.get("modes"):
        began["modes"]["currentModeId"] = update.get("currentModeId")
    elif update.get("sessionUpdate") == "config_option_update" and "configOptions" in update:
        began["configOptions"] = update["configOptions"]


def _params(message: Message) -> Message:
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def _session(message: Message) -> Any:
    return _params(message).get("sessionId")


def _meta(message: Message, name: str) -> Any:
    meta = _params(message).get("_meta")
    return meta.get(name) if isinstance(meta, dict) else None


def _without_meta(message: Message) -> Message:
    meta = _params(message).get("_meta")
    if not isinstance(meta, dict):
        return message
    params = {key: value for key, value in message["params"].items() if key != "_meta"}
    kept = {key: value for key, value in meta.items() if not key.startswith("foundry")}
    return {**message, "params": {**params, "_meta": kept} if kept else params}


def _dump(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read(descriptor: int) -> bytes | None:
    """Return what there is to read now: None if there is nothing yet, empty at the end."""
    try:
        return os.read(descriptor, CHUNK)
    except BlockingIOError:
        return None


def _flush(descriptor: int, buffer: bytearray) -> bool:
    """Write as much as goes without waiting; return whether the other side still listens."""
    try:
        while buffer:
            del buffer[: os.write(descriptor, memoryview(buffer)[:CHUNK])]
    except BlockingIOError:
        pass  # the pipe is full; poll will say when it is not
    except BrokenPipeError:
        return False
    return True


def _start_ticks(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[19].decode()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass  # it has ended already


def main(arguments: list[str]) -> None:
    """Read the command line and relay."""
    options, argv = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    journals = options[options.index("--journal") + 1]
    Shim(argv, journals, "--keep-meta" in options).run()


if __name__ == "__main__":
    main(sys.argv[1:])
