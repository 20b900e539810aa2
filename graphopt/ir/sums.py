"""Sums of terms that are known at different times: what an order of addition costs, and the best order.

Work is counted in numbers added, memory in numbers that the last stage reads from earlier ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import prod

import torch
from torch import fx

from graphopt.ir.stages import STAGES, Stage, kept_as

_RANKS = {name: rank for rank, name in enumerate(STAGES)}


@dataclass(frozen=True)
class Sum:
    """A term (`node`), or the sum of two `parts`. `held` is how many numbers keeping it takes."""

    shape: tuple[int, ...]
    stage: Stage
    held: int
    node: fx.Node | None = None
    parts: tuple[Sum, ...] = ()

    @property
    def rank(self) -> int:
        return _RANKS[kept_as(self.stage)]

    def sums(self) -> Iterator[Sum]:
        """All additions."""
        for part in self.parts:
            yield from part.sums()
        if self.parts:
            yield self

    def work(self) -> tuple[int, int]:
        """How many numbers are added: in the last stage, and in all."""
        numbers = Counter[bool]()
        for each in self.sums():
            numbers[each.rank == self.rank] += prod(each.shape)
        return numbers[True], numbers.total()

    def kept(self) -> Counter[int]:
        """How many numbers the last stage reads from each earlier one."""
        kept = Counter[int]()
        for part in (part for each in self.sums() if each.rank == self.rank for part in each.parts):
            kept[part.rank] += part.held if part.rank < self.rank else 0
        return kept


def added(one: Sum, two: Sum) -> Sum:
    """The sum of two."""
    sizes = tuple(torch.broadcast_shapes(one.shape, two.shape))
    return Sum(sizes, one.stage | two.stage, prod(sizes), None, (one, two))


def ordered(total: Sum) -> Sum:
    """The same terms, always adding the two whose sum is known first, of these the smallest."""
    terms = [part for each in total.sums() for part in each.parts if part.node is not None]
    terms.sort(key=lambda term: (-term.rank, term.node))
    while len(terms) > 1:
        pairs = [(one, two, added(one, two)) for one, two in combinations(terms, 2)]
        open_ = [pair for pair in pairs if pair[2].rank == total.rank or _fits(*pair)]
        one, two, both = min(open_, key=lambda pair: (pair[2].rank, prod(pair[2].shape)))
        terms[terms.index(one)] = both
        terms.remove(two)
    return terms[0]


def _fits(one: Sum, two: Sum, both: Sum) -> bool:
    """Whether keeping the sum takes no more than keeping one of the two in the same stage."""
    return any(part.stage == both.stage and both.held <= part.held for part in (one, two))
