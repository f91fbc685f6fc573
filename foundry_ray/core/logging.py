"""Structured logs: events with fields; never a token, never a prompt.

Every event carries what is bound where it happens: ``actor_key`` and ``epoch`` in an
activation; ``message_id`` (of its mailbox row), ``message_kind`` and ``command_id`` in a turn;
``step``, ``run_id`` and ``attempt`` in a step; and everywhere the ``request_id`` of the HTTP
request from which all this came.
"""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager
from typing import Any

import structlog


def configure(level: str = "INFO") -> None:
    """Write one JSON object per event to standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def get_logger(room: str) -> structlog.typing.FilteringBoundLogger:
    """Return a logger whose events name the room they come from."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(room=room)
    return logger


def bound(**fields: Any) -> AbstractContextManager[Any]:
    """Let every event inside carry these fields; those that are None are left out."""
    said = {name: value for name, value in fields.items() if value is not None}
    return structlog.contextvars.bound_contextvars(**said)


def request_id() -> str | None:
    """Return the id of the HTTP request from which the present work came, if it is known."""
    found: str | None = structlog.contextvars.get_contextvars().get("request_id")
    return found
