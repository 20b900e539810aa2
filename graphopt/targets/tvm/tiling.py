"""How matrix multiplications are cut: tiles of sums in registers, panels of the weight, tasks.

The weight lies in panels, ``[N / columns, K, columns]``. Of x a task takes some tiles of rows, which stay in the second
cache, and goes over them with one panel after the other, while the next one is brought near.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import ceil, inf

from .dot import FLOAT32, Dot
from .isa import Isa
from .schedule import SUMS, Schedule, Space, cycles, space
from .tile import MULTIPLICATIONS, TERMS

# Numbers of x that a task reads for one panel after the other, of as many terms as are summed up in one go, and of sums
# that it keeps: a fifth of the second cache.
_INPUT = 3 << 13
_TASKS = 16  # of a core, at least, of large products
_WORK = MULTIPLICATIONS[1]  # multiplications of a task, at most, where that makes no more than some for each core
# Of a core: cycles of a task, for a vector of sums that is written or added to; bytes per cycle from main memory, where
# weights lie between steps.
_TASK, _WRITE, _ADD, _MEMORY = 500, 4, 1.5, 4
_BUSY = 1.25  # of sums that a core works on at the same time: with fewer in a tile it waits
_GAIN = 0.97  # of the cycles, that another form must save, or a lower task: the model is no better


@dataclass(frozen=True)
class Tiles:
    """The form of a matrix multiplication's tiles.

    Attributes
    ----------
    rows, vectors : of the block of sums in registers.
    lanes : in a vector.
    """

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


@dataclass(frozen=True)
class Product:
    """Sizes of a matrix multiplication: rows of x, columns of the weight's transpose, terms of a sum.

    Attributes
    ----------
    batch : how many multiplications there are, each of its own rows and panels, one after the other in memory.
    dot : what is multiplied.
    """

    rows: int
    columns: int
    terms: int
    batch: int = 1
    dot: Dot = FLOAT32

    @property
    def groups(self) -> int:
        """Of terms, that a lane takes at once."""
        return self.dot.groups(self.terms)


@dataclass(frozen=True)
class Cut:
    """How a product is cut into tasks.

    Attributes
    ----------
    form : of a tile.
    height : tiles of a task, one below the other.
    width : panels of a task, of each of which it does all its tiles.
    """

    isa: Isa
    product: Product
    form: Tiles
    height: int
    width: int

    @property
    def panels(self) -> int:
        """Of the weight, in all; of one multiplication."""
        return ceil(self.product.columns / self.form.columns)

    @property
    def tiles(self) -> int:
        """Of rows, in all."""
        return ceil(self.product.rows / self.form.rows)

    @property
    def down(self) -> int:
        """Tasks over the rows."""
        return ceil(self.tiles / self.height)

    @property
    def across(self) -> int:
        """Tasks over the panels."""
        return ceil(self.panels / self.width)

    @property
    def tasks(self) -> int:
        return self.product.batch * self.down * self.across

    @property
    def panel(self) -> int:
        """Numbers of a panel."""
        return self.product.groups * self.form.columns

    @property
    def step(self) -> int:
        """Numbers of the next panel that a tile brings near with each group: all tiles of a task together bring it."""
        return ceil(self.form.columns / self.height)

    @property
    def runs(self) -> int:
        """Parts of a sum, of which each is summed up in one go."""
        return ceil(self.product.groups / max(1, TERMS // self.product.dot.terms))

    @property
    def terms(self) -> int:
        """Groups of a run."""
        return ceil(self.product.groups / self.runs)

    @property
    def slots(self) -> int:
        """Tiles whose sums are kept from run to run."""
        return self.height * self.width if self.runs > 1 else 1

    @property
    def work(self) -> int:
        """Multiplications of a task."""
        return self.height * self.width * self.panel * self.form.rows

    def fits(self) -> bool:
        """Whether the rows, and the sums, stay in the second cache, or there is no smaller task."""
        rows, sums = self.height * self.form.rows * self.terms, self.slots * self.form.rows * self.form.columns
        return max(rows, sums) <= _INPUT or self.height == self.width == 1

    def cycles(self) -> float:
        """Until the last of a CPU's cores is done: its share of the work, and the others' wait for one more task."""
        isa, product, form = self.isa, self.product, self.form
        whole, rest = divmod(product.rows, form.rows)
        one, last = self._tile(form.rows), self._tile(rest) if rest else 0.0
        panel = 4 * self.panel / _MEMORY
        row = form.rows * product.groups / _MEMORY  # of tiles; four times as fast: x lies in a cache
        # While a panel is multiplied, the next one is brought near.
        tiles, column = min(self.height, whole) * one + (last if self.down == 1 else 0.0), whole * one + last
        longest = _TASK + self.height * row + self.width * max(tiles, panel)
        total = self.down * self.across * _TASK + self.across * self.tiles * row
        total += self.panels * max(column, self.down * panel)
        return (product.batch * total + (isa.cores - 1) * longest) / isa.cores

    def _tile(self, rows: int) -> float:
        """Cycles of a tile of so many rows."""
        sums = self.runs * cycles(self.isa, rows, self.form.vectors, self.terms, self.product.dot.latency)
        return sums + rows * self.form.vectors * (_WRITE + _ADD * (self.runs - 1))


@functools.cache
def cut(isa: Isa, product: Product, form: Tiles, work: int | None = None) -> Cut:
    """The cut that a simple model finds fastest.

    Parameters
    ----------
    work : multiplications of a task, at most; of cuts that have more than half of them, if there is one. That of the
        cut that is found without it gives that cut.
    """
    if work is not None and (usual := cut(isa, product, form)).work == work:
        return usual

    def of(height: int, width: int) -> Cut:
        return Cut(isa, product, form, height, width)

    one = of(1, 1)
    share = product.batch * one.tiles * one.panels * one.work // (_TASKS * isa.cores)
    most = max(_WORK, share) if work is None else work
    found = [
        each
        for height in {ceil(one.tiles / parts) for parts in range(1, one.tiles + 1)}
        for width in {ceil(one.panels / parts) for parts in range(1, one.panels + 1)}
        if height * width * one.work <= most and (each := of(height, width)).fits()
    ]
    if work is not None:
        found = [each for each in found if 2 * each.work > work] or found
    costs = {each: each.cycles() for each in found}
    least = min(costs.values(), default=0.0)
    # Of nearly equal ones that which reads the weight least often: others may use the last cache, and memory, too.
    near = [each for each in found if _GAIN * costs[each] <= least]
    return min(near, key=lambda each: (-each.height, costs[each]), default=one)


@functools.cache
def formula(isa: Isa, product: Product) -> Schedule:
    """How a product is cut unless something was measured to be faster.

    As many vectors as the CPU's tile has, or as there are columns for; as many rows as then fit into the registers. Or
    one of more vectors and fewer rows, where those leave less of a tile without use.
    """
    most = isa.tile[1] // isa.lanes
    needed = -(-product.columns // isa.lanes)
    # Of two forms the one that computes fewer columns that nobody reads.
    vectors = min(range(1, min(most, needed) + 1), key=lambda n: (-(-needed // n) * n, -n))
    if vectors * 2 < min(most, needed):
        vectors = min(most, needed)
    best, least = None, inf
    for number in range(vectors, isa.registers // 2):
        rows = min(product.rows, isa.rows(number))
        if number > vectors and (rows * number < _BUSY * SUMS * product.dot.latency or number > needed):
            continue
        found = cut(isa, product, Tiles(rows, number, isa.lanes))
        if (cost := found.cycles()) < least:
            best, least = found, _GAIN * cost
    assert best is not None
    return Schedule(best.form.rows, best.form.vectors, best.work)


def choices(isa: Isa, product: Product) -> Space:
    """What a search may choose from."""

    def cost(schedule: Schedule) -> float:
        down, rest = divmod(product.rows, schedule.rows)
        panels = -(-product.columns // (schedule.vectors * isa.lanes))
        whole, some = (
            cycles(isa, rows, schedule.vectors, product.groups, product.dot.latency) for rows in (schedule.rows, rest)
        )
        return panels * (down * whole + (some if rest else 0))

    needed = -(-product.columns // isa.lanes)
    rows, vectors = range(1, min(product.rows, isa.registers) + 1), range(1, min(needed, isa.registers) + 1)
    return space(isa, formula(isa, product), rows, vectors, cost)
