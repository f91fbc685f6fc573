"""A tiny agent for the shim's tests: JSON-RPC lines on standard input and output, no library.

Writes every prompt that reaches it to the file named by its first argument.
"""

import json
import os
import subprocess
import sys
import time


def tell(message):
    """Write one message."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def say(session, text):
    """Tell a piece of a message."""
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}
    tell({"method": "session/update", "params": {"sessionId": session, "update": update}})


held = {}
for line in sys.stdin:
    message = json.loads(line)
    method, rpc_id, params = message.get("method"), message.get("id"), message.get("params", {})
    if method == "initialize":
        tell({"id": rpc_id, "result": {"agentCapabilities": {"loadSession": True}}})
    elif method == "session/new":
        tell({"id": rpc_id, "result": {"sessionId": "s1", "modes": {"currentModeId": "a"}}})
    elif method == "session/load":
        say(params["sessionId"], "an old story")
        tell({"id": rpc_id, "result": {}})
    elif method == "session/set_mode":
        tell({"id": rpc_id, "result": {}})
    elif method == "session/cancel":
        tell({"id": held.pop(params["sessionId"]), "result": {"stopReason": "cancelled"}})
    elif method == "session/prompt":
        with open(sys.argv[1], "a") as witness:
            witness.write(json.dumps(params) + "\n")
        session, text = params["sessionId"], params["prompt"][0]["text"]
        verb, _, rest = text.partition(" ")
        if verb == "hold":
            held[session] = rpc_id
            continue
        if verb == "die":
            sys.stderr.write("last words\n")
            sys.stderr.flush()
            os._exit(int(rest))
        if verb == "leave-child":
            subprocess.Popen(["sleep", rest])
            os._exit(5)
        if verb == "mute":
            os.close(1)
            time.sleep(60)
        if verb == "noise":
            sys.stdout.write("this is no JSON\n")
        if verb == "stream":
            for number in range(int(rest)):
                say(session, str(number))
        if verb == "big":
            say(session, "x" * int(rest))
        if verb == "ask":
            option = {"optionId": "yes", "name": "Yes", "kind": "allow_once"}
            asked = {"sessionId": session, "toolCall": {"toolCallId": "t"}, "options": [option]}
            tell({"id": 0, "method": "session/request_permission", "params": asked})
            held["ask"] = (session, rpc_id)
            continue
        if verb == "read":
            tell({"id": 1, "method": "fs/read_text_file", "params": {"path": "/etc/hostname"}})
            held["ask"] = (session, rpc_id)
            continue
        if verb == "fail":
            tell({"id": rpc_id, "error": {"code": -32603, "message": rest}})
            continue
        say(session, text[:40])
        tell({"id": rpc_id, "result": {"stopReason": "end_turn"}})
    elif method is None:
        session, prompt_id = held.pop("ask")
        say(session, json.dumps(message.get("result", message.get("error"))))
        tell({"id": prompt_id, "result": {"stopReason": "end_turn"}})
