"""What clients did and were told; a contradiction to what the entities say fails the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foundry_ray.cli.chaos import history


class History(history.History):
    """The history that `foundry chaos` keeps, for tests."""

    def check(self, final: Mapping[str, Sequence[str]]) -> None:
        """Compare with the final words of each entity.

        Raises:
            AssertionError: They contradict what the clients were told.
        """
        said = self.contradictions(final)
        assert not said, said
