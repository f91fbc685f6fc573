"""What is killed when: a seeded order of cells, the ones that lack kills first."""

from __future__ import annotations

import random
from collections import Counter
from typing import Literal, NamedTuple

Role = Literal["entity actor", "Serve replica", "PostgreSQL", "sandbox-agent"]
Phase = Literal[
    "turn open", "step claimed", "streaming", "idle", "prompt just left", "chunks outstanding"
]

ROLES: tuple[Role, ...] = ("entity actor", "Serve replica", "PostgreSQL", "sandbox-agent")
PHASES: tuple[Phase, ...] = ("turn open", "step claimed", "streaming", "idle")
# Moments of their own, whoever dies in them.
MOMENTS: tuple[Phase, ...] = ("prompt just left", "chunks outstanding")
WANTED = 3  # kills in each cell, and in each moment


class Cell(NamedTuple):
    """Who dies, and what goes on at that moment."""

    role: Role
    phase: Phase


CELLS: tuple[Cell, ...] = tuple(Cell(role, phase) for phase in PHASES for role in ROLES)


class Plan:
    """Says which cell is next, until nobody asks any more.

    The order depends on the seed and on what was struck, never on the time.

    Args:
        seed: What the choices begin with.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._round: list[Cell] = []
        self.struck: Counter[Cell] = Counter()

    def next(self) -> Cell:
        """Return the next cell to strike."""
        if not self._round:
            self._round = self._fill()
        return self._round.pop(0)

    def hit(self, cell: Cell) -> None:
        """Note that the kill happened."""
        self.struck[cell] += 1

    def missed(self, cell: Cell) -> None:
        """Note that the moment did not come: the cell has its turn again at the round's end."""
        self._round.append(cell)

    def _fill(self) -> list[Cell]:
        """Return one round: each cell that has the fewest kills, and each moment, shuffled."""
        least = min(self.struck[cell] for cell in CELLS)
        chosen = [cell for cell in CELLS if self.struck[cell] == least]
        chosen += [Cell(self._random.choice(ROLES), moment) for moment in MOMENTS]
        self._random.shuffle(chosen)
        return self._spread(chosen)

    @staticmethod
    def _spread(cells: list[Cell]) -> list[Cell]:
        """Put the kills of one role apart: a service that dies often is started more slowly."""
        waiting = {role: [cell for cell in cells if cell.role == role] for role in ROLES}
        order: list[Cell] = []
        while any(waiting.values()):
            rest = [role for role in ROLES if waiting[role]]
            others = [role for role in rest if not order or role != order[-1].role]
            role = max(others or rest, key=lambda one: len(waiting[one]))
            order.append(waiting[role].pop(0))
        return order
