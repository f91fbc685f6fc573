"""A clock that tests move themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class FakeClock:
    """Stands still until it is told to go on; never goes back.

    Args:
        now: The first instant, aware.
    """

    def __init__(self, now: datetime = START) -> None:
        self._now = now

    def now(self) -> datetime:
        """Return the present instant, aware and in UTC."""
        return self._now

    def advance(self, by: timedelta | float) -> datetime:
        """Go on by a duration, or by seconds; return the new instant.

        Raises:
            ValueError: Time does not go back.
        """
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        if step < timedelta(0):
            raise ValueError("time does not go back")
        self._now += step
        return self._now
