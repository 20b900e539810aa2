"""Convolutions in NCHW order: pixels in the lanes of vectors, output channels in the rows of a tile.

The input is first laid out so that what each tap of the filter reads for a vector of output pixels lies together: see
`Layout`. The weight is packed so that the output channels of a tile lie together for each input channel and tap.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

from tvm import tirx

from .dot import FLOAT32, Dot
from .emit import Buffer, Emitter, Expr, Kernel, at_most, kernel
from .isa import Isa
from .reading import Lanes, vector_of
from .schedule import Schedule, Space, cycles, space
from .tile import LINE, TERMS, in_runs, task_of

_TOGETHER = 8  # channels, at most, for which lines of the next panel are asked for in one go
_INPUT = 1 << 16  # numbers of the input that the tiles of a task read: half of the second cache


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution of (batch, channels, height, width) by (outputs, channels, *kernel).

    Attributes
    ----------
    rows, columns : of the output.
    """

    batch: int
    channels: int
    height: int
    width: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def rows(self) -> int:
        return (self.height + 2 * self.padding[0] - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1

    @property
    def columns(self) -> int:
        return (self.width + 2 * self.padding[1] - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1


@dataclass(frozen=True)
class Layout:
    """How the input is laid out: (batch, channel, row grid, column grid, row, column).

    Grids hold every s-th row or column. Where rows of the output fill vectors, there is a column grid for each
    remainder of the stride, and a tap begins to read in one of them as far to the right as the filter reaches. Where
    they do not, each column of the filter has a grid of its own, with the columns that it reads and no others: then
    the rows of the output follow one another without a gap, and vectors go over their ends.
    """

    geometry: Geometry
    lanes: int

    @property
    def flat(self) -> bool:
        """Whether each column of the filter has a grid of its own."""
        return self.geometry.columns % self.lanes != 0 or self.geometry.kernel[1] == 1

    @property
    def padded(self) -> bool:
        """Whether there are zeros that are not the input's."""
        return self.geometry.padding != (0, 0)

    @property
    def pixels(self) -> tuple[int, int]:
        """Rows of the output, and columns, between which vectors make no difference."""
        g = self.geometry
        return (1, g.rows * g.columns) if self.flat else (g.rows, g.columns)

    @property
    def grids(self) -> int:
        """Column grids."""
        return self.geometry.kernel[1] if self.flat else self.geometry.stride[1]

    @property
    def rows(self) -> int:
        """Of a grid."""
        g = self.geometry
        return g.rows + (g.dilation[0] * (g.kernel[0] - 1)) // g.stride[0]

    @property
    def columns(self) -> int:
        """Of a grid."""
        g = self.geometry
        return g.columns if self.flat else g.columns + (g.dilation[1] * (g.kernel[1] - 1)) // g.stride[1]

    @property
    def numbers(self) -> int:
        """How many numbers of a channel are laid out."""
        return self.geometry.stride[0] * self.grids * self.rows * self.columns

    @property
    def channel(self) -> int:
        """Numbers from a channel to the next; channels a multiple of eight lines apart would share few cache sets."""
        lines = ceil(self.numbers / LINE)
        return (lines + 1) * LINE if lines % 8 == 0 else self.numbers

    @property
    def size(self) -> int:
        """Numbers in all; the last vector may read beyond what has been laid out."""
        return self.geometry.batch * self.geometry.channels * self.channel + self.lanes

    def first(self, grid: int) -> int:
        """The input's column that comes first in a column grid; negative in the padding."""
        g = self.geometry
        return (grid * g.dilation[1] if self.flat else grid) - g.padding[1]

    def tap(self, row: int, column: int) -> int:
        """Where a tap of the filter reads for the first output pixel, from where the channel begins."""
        g = self.geometry
        down, right = row * g.dilation[0], column * g.dilation[1]
        grid, shift = (column, 0) if self.flat else (right % g.stride[1], right // g.stride[1])
        return ((down % g.stride[0] * self.grids + grid) * self.rows + down // g.stride[0]) * self.columns + shift


@dataclass(frozen=True)
class Framed(Layout):
    """The input in one grid, with zeros around it, for taps that read at a stride of one and shifted by any number.

    Attributes
    ----------
    geometry : its padding is the rows above, and the columns to the left.
    after : rows below, and columns to the right.
    """

    after: tuple[int, int]

    @property
    def flat(self) -> bool:
        return False

    @property
    def padded(self) -> bool:
        return super().padded or self.after != (0, 0)

    @property
    def rows(self) -> int:
        return self.geometry.padding[0] + self.geometry.height + self.after[0]

    @property
    def columns(self) -> int:
        return self.geometry.padding[1] + self.geometry.width + self.after[1]

    def tap(self, row: int, column: int) -> int:
        """Where a tap with these shifts reads for the first output pixel."""
        return (self.geometry.padding[0] + row) * self.columns + self.geometry.padding[1] + column


@dataclass(frozen=True)
class Phase:
    """Every stride-th row, or column, of what a transposed convolution gives: they read the same taps of the filter.

    Attributes
    ----------
    first : of the outputs.
    count : of outputs.
    taps : of the filter, those that are read.
    shifts : for each of them, the input that the first output reads; each further output reads the next one.
    """

    first: int
    count: int
    taps: tuple[int, ...]
    shifts: tuple[int, ...]


def phases(outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> list[Phase]:
    """The phases of a transposed convolution in one dimension.

    out[p + i · stride] = Σₖ in[i + (p + padding − k · dilation) / stride] · w[k]

    over the k for which the stride divides what stands above it.
    """
    found = []
    for first in range(min(stride, outputs)):
        reach = {tap: first + padding - tap * dilation for tap in range(kernel)}
        taps = tuple(tap for tap, place in reach.items() if place % stride == 0)
        shifts = tuple(reach[tap] // stride for tap in taps)
        found.append(Phase(first, (outputs - first - 1) // stride + 1, taps, shifts))
    return found


def frame(found: Sequence[Phase], size: int) -> tuple[int, int]:
    """How far phases reach beyond an input of this size: before it, and after it."""
    least = min((shift for phase in found for shift in phase.shifts), default=0)
    most = max((shift + phase.count for phase in found for shift in phase.shifts), default=0)
    return max(0, -least), max(0, most - size)


def pad(
    name: str,
    layout: Layout,
    isa: Isa,
    arguments: Sequence[str],
    read: Callable[[Emitter, Sequence[Buffer], tuple[Expr, Expr, Expr, Expr], Lanes | None], Expr],
    dot: Dot = FLOAT32,
) -> Kernel:
    """A kernel that lays an input out; its last pointer shows to there.

    Parameters
    ----------
    read : elements of the input: batch, channel, row, column; of narrow numbers, groups of channels.
    dot : what is multiplied.
    """
    g, lanes = layout.geometry, isa.lanes
    down, right = g.stride

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        batch, channel = tirx.floordiv(task, g.channels), tirx.floormod(task, g.channels)
        start = emitter.let(task * layout.channel, "start")
        whole, rest = divmod(layout.numbers, lanes)
        if layout.padded:
            with emitter.loop(whole, "clear") as at:
                emitter.store(buffers[-1], start + at * lanes, dot.zero(emitter, lanes))
            with emitter.loop(rest, "clear") as at:
                emitter.store(buffers[-1], start + whole * lanes + at, dot.zero(emitter, 1))
        # With a stride, no tap reads the last rows and columns.
        with emitter.loop(min(g.height, layout.rows * down - g.padding[0]), "row") as row:
            y = row + g.padding[0]
            above = tirx.floormod(y, down) * layout.grids
            for grid in range(layout.grids):
                first = layout.first(grid)
                least = max(0, ceil(-first / right))
                count = min(layout.columns, (g.width - 1 - first) // right + 1) - least
                into = start + ((above + grid) * layout.rows + tirx.floordiv(y, down)) * layout.columns + least
                column = first + least * right
                many = max(count, 0) // lanes if right == 1 else 0
                with emitter.loop(many, "vector") as vector:
                    lane = vector_of(emitter, lanes)
                    index = (batch, channel, row, vector * lanes + column + lane.var)
                    emitter.store(buffers[-1], into + vector * lanes, read(emitter, buffers, index, lane))
                with emitter.loop(max(count, 0) - many * lanes, "rest") as left:
                    index = (batch, channel, row, (left + many * lanes) * right + column)
                    value = read(emitter, buffers, index, None)
                    emitter.store(buffers[-1], into + many * lanes + left, value)

    return kernel(name, isa, arguments, g.batch * g.channels, body)


@dataclass(frozen=True)
class Source:
    """Where the input of an output pixel lies: strides for batch, channel and row; the offset that each tap adds.

    Attributes
    ----------
    pixels : rows and columns of the output.
    """

    batch: int
    channel: int
    row: int
    taps: tuple[int, ...]
    pixels: tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    """Of a convolution over an input that is laid out.

    Attributes
    ----------
    batch : how many images there are, each in a place of its own.
    channels : of the input; of narrow numbers, groups of them.
    dot : what is multiplied.
    """

    batch: int
    channels: int
    outputs: int
    dot: Dot = FLOAT32

    def across(self, isa: Isa, source: Source) -> int:
        """Vectors of pixels of an image."""
        rows, columns = source.pixels
        return rows * ceil(columns / isa.lanes)

    def padded(self, isa: Isa, source: Source, rows: int, vectors: int) -> int:
        """Multiplications of whole tiles of so many output channels and vectors."""
        tiles = self.batch * ceil(self.outputs / rows) * ceil(self.across(isa, source) / vectors)
        return tiles * rows * vectors * isa.lanes * self.channels * len(source.taps)


def choices(isa: Isa, sizes: Sizes, source: Source) -> Space:
    """What a search may choose from; rows of a tile are output channels, which lie together in the packed weight."""
    terms, across = sizes.channels * len(source.taps), sizes.across(isa, source)
    rows, vectors = isa.tile[0], min(isa.tile[1] // isa.lanes, across)
    default = Schedule(rows, vectors, task_of(sizes.padded(isa, source, rows, vectors)))

    def cost(schedule: Schedule) -> float:
        tiles = ceil(sizes.outputs / schedule.rows) * ceil(across / schedule.vectors)
        return tiles * cycles(isa, schedule.rows, schedule.vectors, terms, sizes.dot.latency)

    most = min(sizes.outputs, isa.registers)
    return space(isa, default, range(1, most + 1), range(1, min(across, isa.registers) + 1), cost)


Finish: TypeAlias = Callable[[Emitter, Sequence[Buffer], tuple[Expr, Expr, Expr, Expr], Expr, Lanes | None], None]


def convolution(
    name: str,
    isa: Isa,
    sizes: Sizes,
    source: Source,
    schedule: Schedule,
    arguments: Sequence[str],
    finish: Finish,
) -> Kernel:
    """A kernel over an input that is laid out and a weight that is packed.

    Parameters
    ----------
    schedule : whose rows are the output channels of a panel of the weight.
    arguments : dtypes of the pointers; the last two show to the input and to the weight.
    finish : takes sums: batch, output channel, row, first column, the sums and the lanes; writes what becomes of them.
    """
    cut = _Cut(isa, schedule, sizes, source)

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        _Convolution(emitter, buffers, cut, finish).run(task)

    return kernel(name, isa, arguments, sizes.batch * cut.right * cut.down, body)


def without_taps(
    name: str,
    isa: Isa,
    batch: int,
    outputs: int,
    pixels: tuple[int, int],
    arguments: Sequence[str],
    finish: Finish,
) -> Kernel:
    """A kernel over output pixels that no tap of the filter reaches: their sums are 0. See `convolution`."""
    rows, columns = pixels
    whole, rest = divmod(columns, isa.lanes)

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        item = emitter.let(tirx.floordiv(task, outputs), "item")
        output = emitter.let(tirx.floormod(task, outputs), "output")
        lane = vector_of(emitter, isa.lanes)
        with emitter.loop(rows, "row") as row:
            if whole:
                with emitter.loop(whole, "vector") as vector:
                    zeros = emitter.spread(0.0, isa.lanes)
                    finish(emitter, buffers, (item, output, row, vector * isa.lanes), zeros, lane)
            if rest:
                with emitter.loop(rest, "rest") as left:
                    place = (item, output, row, left + whole * isa.lanes)
                    finish(emitter, buffers, place, emitter.number(0.0), None)

    return kernel(name, isa, arguments, batch * outputs, body)


@dataclass(frozen=True)
class _Cut:
    """How the work is cut: tiles of output channels times vectors of pixels, and tasks of tiles."""

    isa: Isa
    schedule: Schedule
    sizes: Sizes
    source: Source

    @property
    def columns(self) -> int:
        """Of output pixels."""
        return self.source.pixels[1]

    @property
    def height(self) -> int:
        """Output channels of a tile."""
        return self.schedule.rows

    @property
    def across(self) -> int:
        """Vectors in a row of pixels."""
        return ceil(self.columns / self.isa.lanes)

    @property
    def total(self) -> int:
        """Vectors of pixels."""
        return self.source.pixels[0] * self.across

    @property
    def vectors(self) -> int:
        """Of a tile."""
        return self.schedule.vectors

    @property
    def high(self) -> int:
        """Tiles over the output channels."""
        return ceil(self.sizes.outputs / self.height)

    @property
    def wide(self) -> int:
        """Tiles over the pixels."""
        return ceil(self.total / self.vectors)

    @property
    def along(self) -> int:
        """Tiles next to each other in a task: those whose input stays in the cache."""
        return max(1, min(self.wide, _INPUT // (self.sizes.channels * self.vectors * self.isa.lanes), self.most))

    @property
    def deep(self) -> int:
        """Tiles of output channels in a task."""
        return max(1, min(self.high, self.most // self.along))

    @property
    def most(self) -> int:
        """Tiles in a task, by their work."""
        tile = self.sizes.channels * len(self.source.taps) * self.height * self.vectors * self.isa.lanes
        return self.schedule.work // tile

    @property
    def right(self) -> int:
        """Tasks over the pixels."""
        return ceil(self.wide / self.along)

    @property
    def down(self) -> int:
        """Tasks over the output channels."""
        return ceil(self.high / self.deep)


class _Convolution:
    """One task; see `_Cut` for the words."""

    def __init__(self, emitter: Emitter, buffers: Sequence[Buffer], cut: _Cut, finish: Finish) -> None:
        self.emitter, self.buffers, self.cut, self.source, self.finish = emitter, buffers, cut, cut.source, finish
        self.lanes = cut.isa.lanes
        self.step = ceil(len(cut.source.taps) * cut.height / cut.along)
        self.block = emitter.scratch(cut.height * cut.vectors * self.lanes, name="block")

    def run(self, task: Expr) -> None:
        emitter, cut = self.emitter, self.cut
        part = emitter.let(tirx.floormod(task, cut.down), "part")
        rest = emitter.let(tirx.floordiv(task, cut.down), "rest")
        left = emitter.let(tirx.floormod(rest, cut.right) * cut.along, "left")
        self.batch = emitter.let(tirx.floordiv(rest, cut.right), "batch")
        deep = at_most(cut.deep, cut.high, part * cut.deep)
        upcoming = emitter.let(tirx.floormod(emitter.upcoming, cut.down) * cut.deep, "upcoming")
        with emitter.loop(deep, "output") as top, emitter.loop(at_most(cut.along, cut.wide, left), "tile") as tile:
            number = emitter.let(part * cut.deep + top, "number")
            self.later = emitter.let(tirx.Select(top + 1 < deep, number + 1, upcoming), "later")
            self.tile = tile
            first = emitter.let((left + tile) * cut.vectors, "first")
            self._sum(number, [self._place(first + vector) for vector in range(cut.vectors)])
            self._write(number * cut.height, first)

    def _place(self, vector: Expr) -> Expr:
        """Where the input of a vector of pixels begins; beyond the last one, that of the last."""
        source, across = self.source, self.cut.across
        at = self.emitter.let(tirx.min(vector, self.cut.total - 1), "vector")
        down, right = tirx.floordiv(at, across) * source.row, tirx.floormod(at, across) * self.lanes
        return self.emitter.let(self.batch * source.batch + down + right, "place")

    def _sum(self, number: Expr, places: Sequence[Expr]) -> None:
        """A tile's sums to `block`, in runs of so many channels that rounding errors stay small."""
        in_runs(
            self.emitter,
            self.cut.sizes.channels,
            TERMS // (len(self.source.taps) * self.cut.sizes.dot.terms),
            lambda start, count, fresh: self._add(number, places, start, count, fresh),
        )

    def _add(self, number: Expr, places: Sequence[Expr], start: Expr, count: int, fresh: bool) -> None:
        emitter, cut, lanes, weight = self.emitter, self.cut, self.lanes, self.buffers[-1]
        zero = emitter.spread(0.0, lanes)
        sums = [[emitter.register(zero, "sum") for _ in range(cut.vectors)] for _ in range(cut.height)]
        near, some = self._near(start), next((n for n in range(_TOGETHER, 1, -1) if count % n == 0), count)
        with emitter.loop(count // some, "some") as group:
            # Ahead of some channels: among their products, LLVM would run out of registers.
            with emitter.loop(ceil(some * self.step / LINE), "line") as line:
                emitter.prefetch(weight, near, group * (some * self.step) + line * LINE)
            with emitter.loop(some, "channel") as each:
                self._multiply(number, places, emitter.let(start + group * some + each, "channel"), sums)
        for place, register in enumerate(itertools.chain(*sums)):
            value = emitter.get(register)
            known = emitter.load(self.block, place * lanes, lanes)
            emitter.store(self.block, place * lanes, value if fresh else known + value)

    def _multiply(self, number: Expr, places: Sequence[Expr], channel: Expr, sums: Sequence[Sequence[Buffer]]) -> None:
        """A channel's products, added to a tile's sums in registers."""
        emitter, cut, lanes, taps = self.emitter, self.cut, self.lanes, self.source.taps
        *_, image, weight = self.buffers
        here = [emitter.let(place + channel * self.source.channel, "here") for place in places]
        base = emitter.let((number * cut.sizes.channels + channel) * (len(taps) * cut.height), "base")
        for tap, offset in enumerate(taps):
            pixels = [emitter.let(emitter.load(image, at + offset, lanes), "pixels") for at in here]
            for row, registers in enumerate(sums):
                factor = emitter.let(emitter.load(weight, base + tap * cut.height + row, lanes, step=0), "factor")
                for register, vector in zip(registers, pixels, strict=True):
                    emitter.put(register, cut.sizes.dot.added(emitter, emitter.get(register), factor, vector))

    def _near(self, start: Expr) -> Expr:
        """Where that part of the next panel lies which a tile brings near: all tiles of this one bring it together."""
        panel = len(self.source.taps) * self.cut.height
        first = self.later * (self.cut.sizes.channels * panel)
        return self.emitter.let(first + (self.tile * self.cut.sizes.channels + start) * self.step, "near")

    def _write(self, output: Expr, first: Expr) -> None:
        """What becomes of a tile of sums, vector by vector."""
        emitter, cut, lanes = self.emitter, self.cut, self.lanes
        columns, across = cut.columns, cut.across
        with emitter.loop(cut.height, "row") as row, emitter.loop(cut.vectors, "vector") as vector:
            channel, at = emitter.let(output + row, "channel"), emitter.let(first + vector, "at")
            y, x = emitter.let(tirx.floordiv(at, across), "y"), emitter.let(tirx.floormod(at, across) * lanes, "x")
            place = (row * cut.vectors + vector) * lanes
            inside = tirx.And(channel < cut.sizes.outputs, at < cut.total)
            lane = vector_of(emitter, lanes)
            rest = columns % lanes
            with emitter.when(tirx.And(inside, x + lanes <= columns) if rest else inside):
                value = emitter.let(emitter.load(self.block, place, lanes))
                self.finish(emitter, self.buffers, (self.batch, channel, y, x), value, lane)
            if rest:
                end = tirx.And(inside, x + lanes > columns)
                with emitter.when(end), emitter.loop(rest, "rest") as left:
                    value = emitter.let(emitter.load(self.block, place + left))
                    self.finish(emitter, self.buffers, (self.batch, channel, y, x + left), value, None)
