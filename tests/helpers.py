"""What many tests need."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    check: Callable[[], T | Awaitable[T]], timeout: float = 10, every: float = 0.02
) -> T:
    """Call *check* again and again until it answers something true, and return that.

    Args:
        check: May be async; an AssertionError in it counts as "not yet".
        timeout: Seconds after which the last failure is raised.
        every: Seconds between two calls.
    """
    deadline = time.monotonic() + timeout
    while True:
        failure: AssertionError | None = None
        try:
            answer = check()
            value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value
        except AssertionError as trouble:
            failure = trouble
        if time.monotonic() > deadline:
            raise failure or AssertionError(f"not true within {timeout} s: {check}")
        await asyncio.sleep(every)
