"""Identifiers: time-sortable, unguessable, safe in a URL and in a file name."""

from __future__ import annotations

import os
import time
import uuid

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case


def new_id() -> str:
    """Return a new 26-character id: 48 bits of milliseconds, then 80 random bits (ULID)."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -5, -5))


def new_uuid() -> uuid.UUID:
    """Return a new random UUID, for wires that ask for one."""
    return uuid.uuid4()  # noqa: TID251 - this is the one place
