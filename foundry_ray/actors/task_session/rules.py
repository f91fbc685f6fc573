"""What journal records mean for a session; pure."""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.task_session.messages import Record

PROMPT_LIMIT = 1024 * 1024  # bytes of UTF-8


def permission_request(record: Record) -> tuple[str, Any, dict[str, Any]] | None:
    """Return id, JSON-RPC id and parameters if the agent asks for a permission (ACP)."""
    payload = record.payload
    if record.direction != "out" or payload.get("method") != "session/request_permission":
        return None
    rpc_id = payload.get("id")
    return f"{record.seq}", rpc_id, payload.get("params") or {}


def permission_answer(record: Record) -> Any | None:
    """Return the JSON-RPC id that this record answers, if it is an answer to the agent."""
    payload = record.payload
    if record.direction == "in" and "method" not in payload and "id" in payload:
        return payload["id"]
    return None


def turn_end(record: Record, message_id: str | None) -> dict[str, Any] | None:
    """Return how the turn of *message_id* ended, if this record says so."""
    if record.direction == "end" and message_id and record.message_id == message_id:
        return record.payload
    return None


def transcript_payload(record: Record) -> dict[str, Any] | None:
    """Return what the transcript shows of a record; None for the shim's notes."""
    if record.direction == "note":
        return None
    if record.direction == "end":
        return {
            "jsonrpc": "2.0",
            "method": "_foundry/turn_ended",
            "params": {"message_id": record.message_id, **record.payload},
        }
    return record.payload
