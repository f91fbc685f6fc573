"""How often and how patiently outside work is tried again."""

from __future__ import annotations

import random
from datetime import timedelta

from pydantic import BaseModel, ConfigDict


class RetryPolicy(BaseModel):
    """Exponential backoff with jitter.

    Attributes:
        max_attempts: Attempts in all, the first included.
        first_delay: Wait after the first failed attempt.
        max_delay: Longest wait between two attempts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = 5
    first_delay: timedelta = timedelta(seconds=0.5)
    max_delay: timedelta = timedelta(seconds=30)

    def delay(self, attempt: int) -> timedelta:
        """Return how long to wait after failed attempt number *attempt* (from 1).

        Half of the wait is random, so that many failing together do not come back together.
        """
        doublings: int = min(attempt - 1, 30)
        ceiling = min(self.max_delay, self.first_delay * (1 << doublings))
        return ceiling * random.uniform(0.5, 1)  # noqa: S311 - jitter, not a secret
