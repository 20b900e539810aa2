"""The free parameters of kernels that multiply, and in which order a search tries them. Imports no TVM.

Formulas give a kernel's parameters; a search (`tuning`) finds better ones on the machine at hand, in the order in which
a simple model of a core expects them to be fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from .isa import Isa

_FORMS = 12  # tiles of other forms that a search tries
_PARTS = (0.25, 4.0)  # of the formula's task, that it tries
# Of a core: products and sums of vectors, and vectors read, per cycle.
SUMS, _READS = 2, 2
_FIRST = 32 << 10  # bytes of the first cache; a cycle brings half a vector from the second one


@dataclass(frozen=True)
class Schedule:
    """How a kernel's products are cut.

    Attributes
    ----------
    rows, vectors : of the tile whose sums are in registers: one number of a factor per row, vectors of the other.
    work : multiplications of a task, at most, as far as whole tiles allow it; of narrow numbers a group counts as one.
    """

    rows: int
    vectors: int
    work: int


TORCH: Final = "torch"  # instead of a schedule: torch's own operators are faster
Choice: TypeAlias = Schedule | Literal["torch"]


@dataclass(frozen=True)
class Space:
    """What a kernel may choose from.

    Attributes
    ----------
    default : what formulas say.
    forms : other tiles, the most promising first.
    works : other sizes of a task, for the fastest of the forms.
    torch : whether torch has an operator of its own for it.
    """

    default: Schedule
    forms: tuple[Schedule, ...]
    works: tuple[int, ...]
    torch: bool = False

    def __contains__(self, choice: object) -> bool:
        if choice == TORCH:
            return self.torch
        if not isinstance(choice, Schedule) or choice.work not in (self.default.work, *self.works):
            return False
        return dataclasses.replace(choice, work=self.default.work) in (self.default, *self.forms)

    def __len__(self) -> int:
        """How many candidates there are beside the default."""
        return self.torch + len(self.forms) + len(self.works)

    def candidate(self, number: int, best: Schedule) -> Choice:
        """The candidate of a number from 0 on, where `best` is the fastest schedule among those before it."""
        if number < len(self.forms):
            return self.forms[number]
        number -= len(self.forms)
        return dataclasses.replace(best, work=self.works[number]) if number < len(self.works) else TORCH


def space(
    isa: Isa, default: Schedule, rows: Iterable[int], vectors: Iterable[int], cost: Callable[[Schedule], float]
) -> Space:
    """Tiles of so many rows and vectors that fit into registers, by a cost; and tasks around the formula's size."""
    some = list(vectors)
    forms = [Schedule(row, vector, default.work) for row in rows for vector in some if row <= isa.rows(vector)]
    forms = sorted((form for form in forms if form != default), key=cost)[:_FORMS]
    works = (max(1, int(default.work * part)) for part in _PARTS)
    return Space(default, tuple(forms), tuple(work for work in works if work != default.work))


def cycles(isa: Isa, rows: int, vectors: int, terms: int, latency: int = 4) -> float:
    """Of a core, that the sums of a tile take: products, vectors read, latency, or the second cache.

    Parameters
    ----------
    terms : of a sum; of narrow numbers, groups of them, which take an instruction each as well.
    latency : until a sum can be added to again.
    """
    term = max(rows * vectors / SUMS, (rows + vectors) / _READS, latency)
    floats = rows + vectors * isa.lanes
    return terms * (max(term, 2 * floats / isa.lanes) if 4 * floats * terms > _FIRST else term)
