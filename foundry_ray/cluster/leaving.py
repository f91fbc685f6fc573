"""Lets the process of an actor leave in good order when it is told to end (SIGTERM).

Ray ends a worker at once then, in the middle of a turn; nothing is lost by that, but a successor
has to prove it dead and to suspect its message. Signals are handled in the main thread, which is
Ray's: so Ray's handler is wrapped where Ray sets it. The node supervisor names this module in
``RAY_preload_python_modules``, which every worker imports just before. Importing it anywhere else
has no effect.

What Ray itself ends is gone within a tenth of a second all the same, with ``ray.kill`` as with a
raylet that leaves (measured with Ray 2.60); then this is in vain, and harmless.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from ray._private import utils

PATIENCE = 8.0  # seconds; who has not left by then, its database being away, say, is ended

_leave: Callable[[], object] | None = None
_set_handler: Callable[[Callable[..., Any]], None] = utils.set_sigterm_handler


def on_sigterm(leave: Callable[[], object]) -> None:
    """Let the first SIGTERM call *leave*, in the main thread; the second ends the process."""
    global _leave  # noqa: PLW0603 - one process, one activation
    _leave = leave


def _wrap(rays: Callable[..., Any]) -> None:
    def handle(number: int, frame: Any) -> None:
        global _leave
        leave, _leave = _leave, None
        if leave is None:
            rays(number, frame)
            return
        late = threading.Timer(PATIENCE, os._exit, (1,))
        late.daemon = True
        late.start()
        leave()

    _set_handler(handle)


utils.set_sigterm_handler = _wrap
