"""Linear layers: ``y = x · wᵀ``, with whatever is applied to y element by element, in one kernel.

The weight lies in panels, ``[N / columns, K, columns]``: what one step of the inner loop reads lies together. A tile of
sums stays in registers over a run of terms. Of x a task takes as many rows as stay in the second cache for that long,
and goes over them with one panel after the other (Goto and van de Geijn, "Anatomy of high-performance matrix
multiplication", 2008). Its tiles go through what follows the layer (bias, activation, gate, residual) at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tvm import tirx

from .emit import Buffer, Emitter, Expr, Kernel, at_most, kernel
from .isa import Isa
from .reading import Lanes, vector_of
from .schedule import Schedule
from .tile import LINE, in_runs, tile
from .tiling import Product, Tiles, cut

# Buffers, row → its buffer, and the offset of its first group.
Row: TypeAlias = Callable[[Emitter, Sequence[Buffer], Expr], tuple[Buffer, Expr]]
# Row, column, values, lanes → written.
Finish: TypeAlias = Callable[[Emitter, Sequence[Buffer], Expr, Expr, Expr, Lanes | None], None]

_HEAP = 512  # numbers that TVM no longer puts on the stack, where LLVM would take all of them for one wide value


def linear(
    name: str,
    isa: Isa,
    product: Product,
    schedule: Schedule,
    arguments: Sequence[str],
    row: Row,
    finish: Finish,
) -> Kernel:
    """A kernel over panels.

    Parameters
    ----------
    schedule : whose vectors make the columns of a panel.
    arguments : dtypes of the pointers; the last shows to the panels.
    row : where a row of x lies: its buffer, and the offset of its first group; the others follow it.
    finish : takes sums: the row, the first column, the sums and the lanes; writes what becomes of them.
    """
    form = Tiles(schedule.rows, schedule.vectors, isa.lanes)
    size = cut(isa, product, form, schedule.work)
    down, across, height, width = size.down, size.across, size.height, size.width

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        item = emitter.let(tirx.floordiv(task, down * across), "item") if product.batch > 1 else tirx.const(0, "int32")
        task = emitter.let(tirx.floormod(task, down * across), "task") if product.batch > 1 else task
        top = emitter.let(tirx.floordiv(task, across) * (height * form.rows), "top")
        left = emitter.let(tirx.floormod(task, across) * width, "left")
        later = tirx.floormod(tirx.floormod(emitter.upcoming, down * across), across) * width
        later = (tirx.floordiv(emitter.upcoming, down * across) * size.panels + later) * size.panel
        upcoming = emitter.let(later, "upcoming")
        begin = emitter.let((item * size.panels + left) * size.panel, "begin")
        wide = at_most(width, size.panels, left)
        block = emitter.scratch(max(size.slots * form.rows * form.columns, _HEAP), name="block")

        def each(visit: Callable[[_Tile], None]) -> None:
            """Visit the tiles of the task, those of a panel in a row."""
            with emitter.loop(wide, "panel") as panel, emitter.loop(height, "tile") as number:

                def near(start: Expr, count: int) -> Expr:
                    """See `_Tile`: of the next panel, or of the first one for the next run, or of the next task."""
                    end = start + count
                    after = tirx.Select(end < product.groups, begin + end * form.columns, upcoming)
                    following = begin + (panel + 1) * size.panel + start * form.columns
                    chosen = tirx.Select(panel + 1 < wide, following, after)
                    return emitter.let(chosen + number * (count * size.step), "near")

                first = emitter.let(top + number * form.rows, "first")
                absolute = emitter.let(item * product.rows + first, "absolute") if product.batch > 1 else first
                column = emitter.let((left + panel) * form.columns, "column")
                at = tirx.const(0, "int32")
                if size.slots > 1:
                    at = emitter.let((panel * height + number) * (form.rows * form.columns), "at")
                rest = product.rows % form.rows
                found = _Tile(
                    emitter, buffers, block, form, product, form.rows, item, absolute, column, at, near, size.step
                )
                if product.rows >= form.rows:
                    with emitter.when(first + form.rows <= product.rows):
                        visit(found)
                if rest:
                    with emitter.when(tirx.And(first + form.rows > product.rows, first < product.rows)):
                        visit(dataclasses.replace(found, rows=rest))

        def whole(found: _Tile) -> None:
            found.add(row, tirx.const(0, "int32"), product.groups, True)
            found.write(finish)

        if size.runs == 1:
            each(whole)
        else:
            in_runs(
                emitter,
                product.groups,
                size.terms,
                lambda start, count, fresh: each(lambda found: found.add(row, start, count, fresh)),
            )
            each(lambda found: found.write(finish))

    return kernel(name, isa, arguments, size.tasks, body)


def pack(
    name: str,
    isa: Isa,
    product: Product,
    columns: int,
    arguments: Sequence[str],
    read: Callable[[Emitter, Sequence[Buffer], Expr, Expr, Expr, Lanes | None], Expr],
) -> Kernel:
    """A kernel that writes panels of so many columns to where its last pointer shows: what `packed` does to a weight.

    Parameters
    ----------
    read : elements of the factor: of which multiplication, term, column, lanes.
    """
    panels, lanes, dot = -(-product.columns // columns), isa.lanes, product.dot

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        item, panel = emitter.let(tirx.floordiv(task, panels)), emitter.let(tirx.floormod(task, panels))

        def group(number: Expr, count: int, column: Expr, at: Lanes | None) -> Expr:
            """Groups with so many terms each, and zeros."""
            first = number * dot.terms
            found = [read(emitter, buffers, item, first + term, column, at) for term in range(count)]
            zero = emitter.spread(0.0, lanes if at else 1)
            return dot.group(emitter, [*found, *[zero] * (dot.terms - count)])

        def write(number: Expr, count: int, vector: Expr) -> None:
            into = emitter.let((task * product.groups + number) * columns + vector * lanes, "into")
            column = emitter.let(panel * columns + vector * lanes, "column")
            with emitter.when(column + lanes <= product.columns):
                emitter.store(buffers[-1], into, group(number, count, column, vector_of(emitter, lanes)))
            if product.columns % columns:
                with emitter.when(column + lanes > product.columns):
                    emitter.store(buffers[-1], into, dot.zero(emitter, lanes))
                    if rest := product.columns % lanes:
                        with emitter.when(column < product.columns), emitter.loop(rest, "rest") as place:
                            emitter.store(buffers[-1], into + place, group(number, count, column + place, None))

        whole, some = divmod(product.terms, dot.terms)
        if whole:
            with emitter.loop(whole, "term") as number, emitter.loop(columns // lanes, "vector") as vector:
                write(number, dot.terms, vector)
        if some:
            with emitter.loop(columns // lanes, "vector") as vector:
                write(tirx.const(whole, "int32"), some, vector)

    return kernel(name, isa, arguments, product.batch * panels, body)


@dataclass
class _Tile:
    """One tile of sums, and where it is kept while its terms are added up.

    Attributes
    ----------
    block : memory of the task's own; `at` is where the tile's sums begin in it.
    rows : that there are.
    item : which multiplication.
    top : the first row, of all multiplications.
    column : the first one.
    near : where that part of a panel lies which this tile brings near, while it adds so many terms from the first on.
    step : see `Cut`.
    """

    emitter: Emitter
    buffers: Sequence[Buffer]
    block: Buffer
    form: Tiles
    product: Product
    rows: int
    item: Expr
    top: Expr
    column: Expr
    at: Expr
    near: Callable[[Expr, int], Expr]
    step: int

    def add(self, row: Row, start: Expr, count: int, fresh: bool) -> None:
        """So many terms from the first on, in registers; then to memory that can be indexed by a loop."""
        emitter, product, lanes, columns, panels = (
            self.emitter, self.product, self.form.lanes, self.form.columns, self.buffers[-1],
        )  # fmt: skip
        whole = -(-product.columns // columns) * columns
        sources = [row(emitter, self.buffers, self.top + number) for number in range(self.rows)]
        offsets = [emitter.let(offset, "x") for _, offset in sources]
        base = emitter.let((self.item * whole + self.column) * product.groups, "panel")
        near = self.near(start, count)

        def bring(term: Expr) -> None:
            for line in range(-(-self.step // LINE)):
                emitter.prefetch(panels, near, term * self.step + line * LINE)

        sums = tile(
            emitter,
            self.rows,
            self.form.vectors,
            count,
            lambda number, term: emitter.load(sources[number][0], offsets[number] + start + term),
            lambda term, vector: emitter.load(panels, base + (start + term) * columns + vector * lanes, lanes),
            product.dot,
            bring,
        )
        for place, total in enumerate(itertools.chain(*sums)):
            known = emitter.load(self.block, self.at + place * lanes, lanes)
            emitter.store(self.block, self.at + place * lanes, total if fresh else known + total)

    def write(self, finish: Finish) -> None:
        """What follows, row by row."""
        emitter, product, lanes, columns = self.emitter, self.product, self.form.lanes, self.form.columns
        rest = product.columns % lanes
        with emitter.loop(self.rows, "row") as number, emitter.loop(self.form.vectors, "vector") as vector:
            column = emitter.let(self.column + vector * lanes, "at")
            place = self.at + number * columns + vector * lanes
            lane = vector_of(emitter, lanes)
            with emitter.when(column + lanes <= product.columns):
                value = emitter.let(emitter.load(self.block, place, lanes))
                finish(emitter, self.buffers, self.top + number, column, value, lane)
            if rest:
                end = tirx.And(column + lanes > product.columns, column < product.columns)
                with emitter.when(end), emitter.loop(rest, "rest") as extra:
                    value = emitter.let(emitter.load(self.block, place + extra))
                    finish(emitter, self.buffers, self.top + number, column + extra, value, None)
