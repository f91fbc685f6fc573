"""The named points of the kernel at which its process may die, and nothing is lost.

The kernel passes them by name (``Kernel.point``). Durability tests kill a process at
each, so a new point needs no new test: a name in ``POINTS`` that no run passes fails it.
"""

from __future__ import annotations

# An activation's epoch has risen, uncommitted.
ACTIVATING = "activating"
# The epoch is committed and the state loaded; no turn was taken.
ACTIVATED = "activated"

# A turn is computed; the database knows nothing of it.
BEFORE_BEGIN = "before_begin"
# The turn's transaction holds the entity's row; nothing else is written.
TURN_OPEN = "turn_open"
# All that the turn writes is written, uncommitted.
BEFORE_COMMIT = "before_commit"
# The turn is committed; nobody was rung and no reply has left.
AFTER_COMMIT = "after_commit"

# The claim of a step is written, uncommitted.
CLAIM_OPEN = "claim_open"
# The claim is committed; the step's work has not begun.
STEP_CLAIMED = "step_claimed"
# The step's work is done outside; no row knows its result.
STEP_DONE = "step_done"

# A failed attempt, of a message or of a step, is written down, uncommitted.
FAILURE_OPEN = "failure_open"
# The failed attempt is committed; nobody was rung.
AFTER_FAILURE = "after_failure"

# The entity is let go, uncommitted.
RELEASING = "releasing"
# Nobody holds the entity any more; its last activation has not ended.
RELEASED = "released"

POINTS = (
    ACTIVATING,
    ACTIVATED,
    BEFORE_BEGIN,
    TURN_OPEN,
    BEFORE_COMMIT,
    AFTER_COMMIT,
    CLAIM_OPEN,
    STEP_CLAIMED,
    STEP_DONE,
    FAILURE_OPEN,
    AFTER_FAILURE,
    RELEASING,
    RELEASED,
)
