"""What goes in: closed bodies, and ids that can exist."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from foundry_ray.core.errors import InvalidInput, TooLarge

PROMPT_LIMIT = 1024 * 1024  # bytes of UTF-8


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("a NUL character cannot be kept")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a character (a lone surrogate) cannot be kept") from None
    return text


Text = Annotated[str, AfterValidator(_storable)]
Line = Annotated[str, Field(max_length=500), AfterValidator(_storable)]

Number = Annotated[str, Path(pattern=r"^[0-9]{1,19}$")]
Id = Annotated[str, Path(pattern=r"^[0-9a-z][0-9a-z_-]{0,63}$")]
Limit = Annotated[int, Query(ge=1, le=200)]
PageCursor = Annotated[str | None, Query(max_length=200)]


class Body(BaseModel):
    """A request's body: what it does not know is an error, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check_prompt(text: str) -> None:
    """Refuse a prompt that is too large before it is kept anywhere.

    Raises:
        TooLarge: More than 1 MiB.
    """
    if len(text.encode()) > PROMPT_LIMIT:
        raise TooLarge("A prompt has at most 1 MiB.", limit=PROMPT_LIMIT)


def page_cursor(last_id: str) -> str:
    """Return a cursor that goes on after the item with this id."""
    return base64.urlsafe_b64encode(json.dumps([last_id]).encode()).decode().rstrip("=")


def read_page_cursor(cursor: str | None) -> str | None:
    """Return the id after which a list goes on.

    Raises:
        InvalidInput: Nobody made such a cursor.
    """
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        (last_id,) = json.loads(base64.urlsafe_b64decode(padded.encode()))
    except (ValueError, TypeError, binascii.Error) as odd:
        raise InvalidInput("cursor: not one of ours.") from odd
    if not isinstance(last_id, str) or "\x00" in last_id:
        raise InvalidInput("cursor: not one of ours.")
    return last_id


def plain(value: Any) -> Any:
    """Return *value* with its instants as ISO 8601 in UTC."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value
