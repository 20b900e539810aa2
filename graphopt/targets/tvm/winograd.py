"""Winograd's 3 × 3 convolutions (`graphopt.ir.winograd`) in NCHW order: tiles of the output in the lanes of vectors.

Two kernels. The first reads the input, with whatever comes before it, and transforms it tile by tile: Bᵀ x B, in
``[block of tiles, point, channel, tile]``. A task of the second transforms the weight of some output channels, G w Gᵀ,
multiplies, point by point, some blocks of tiles with it, and transforms the sums back: what follows the convolution is
applied to rows of pixels. Transformed weights are 16/9 or 4 times as large as weights are: reading them from memory
would take longer than computing them does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import TypeAlias

from tvm import tirx

from ...ir.winograd import FILTER, Matrix, transforms
from .emit import Buffer, Emitter, Expr, Kernel, at_most, kernel
from .isa import Isa
from .reading import Lanes, vector_of
from .schedule import SUMS, Schedule, Space, cycles, space
from .tile import LINE, TERMS, elements_of, tile

# Numbers of transformed weights and of sums that a task keeps, at most, in a second cache of 512 KiB.
_WEIGHTS, _SUMS = 56 << 10, 128 << 10
_LEAST = 128  # channels that are summed up in one go, where there are so many
# Of a core: cycles for a vector of a transformed weight, for a sum that is added to, of a tile of sums, and of a task;
# bytes per cycle from the last cache.
_TURN, _ADD, _TILE, _TASK, _READ = 3, 1.5, 60, 4000, 8

# Batch, channel, row, column, lanes → elements of the input.
Read: TypeAlias = Callable[[Emitter, Sequence[Buffer], tuple[Expr, Expr, Expr, Expr], Lanes | None], Expr]
# Batch, channel, row, column, values, lanes → written.
Finish: TypeAlias = Callable[[Emitter, Sequence[Buffer], tuple[Expr, Expr, Expr, Expr], Expr, Lanes | None], None]


@dataclass(frozen=True)
class Shape:
    """Sizes of a convolution, and of its tiles.

    Attributes
    ----------
    padding : rows above and below, columns to the left and to the right.
    size : rows and columns of a tile of outputs.
    schedule : None for what formulas say.
    """

    isa: Isa
    batch: int
    channels: int
    inputs: tuple[int, int]
    outputs: int
    padding: tuple[int, int]
    size: int
    schedule: Schedule | None = None

    @property
    def height(self) -> int:
        """Output channels whose sums are in registers at the same time.

        Beside fewer vectors than the CPU's tile has, there is room for more of them.
        """
        if self.schedule is not None:
            return self.schedule.rows
        if self.block == self.isa.tile[1]:
            return min(self.outputs, self.isa.tile[0])
        most = min(self.outputs, self.isa.rows(self.vectors))
        sums = self.vectors * (_LEAST / SUMS + _ADD)  # cycles of a row
        return min(range(most, most // 2, -1), key=lambda height: ceil(self.outputs / height) * (height * sums + _TILE))

    @property
    def rows(self) -> int:
        """Of the output."""
        return self.inputs[0] + 2 * self.padding[0] - FILTER + 1

    @property
    def columns(self) -> int:
        """Of the output."""
        return self.inputs[1] + 2 * self.padding[1] - FILTER + 1

    @property
    def down(self) -> int:
        """Tiles over the rows."""
        return ceil(self.rows / self.size)

    @property
    def across(self) -> int:
        """Tiles over the columns."""
        return ceil(self.columns / self.size)

    @property
    def tiles(self) -> int:
        return self.batch * self.down * self.across

    @property
    def edge(self) -> int:
        """Points along a dimension."""
        return transforms(self.size).points

    @property
    def points(self) -> int:
        return self.edge**2

    @property
    def vectors(self) -> int:
        """Of a block of tiles."""
        if self.schedule is not None:
            return self.schedule.vectors
        return min(self.isa.tile[1] // self.isa.lanes, ceil(self.tiles / self.isa.lanes))

    @property
    def block(self) -> int:
        """Tiles of a block: those whose sums are in registers at the same time."""
        return self.vectors * self.isa.lanes

    @property
    def blocks(self) -> int:
        return ceil(self.tiles / self.block)

    @property
    def pitch(self) -> int:
        """Numbers of a point of a block; one channel more than there are, or points would share few cache sets."""
        return (self.channels + 1) * self.block

    @property
    def floats(self) -> int:
        """Numbers of the transformed input."""
        return self.blocks * self.points * self.pitch

    @property
    def high(self) -> int:
        """Groups of `height` output channels."""
        return ceil(self.outputs / self.height)

    @property
    def wide(self) -> int:
        """Numbers of a point of the weight of a group."""
        return ceil(self.channels * self.height / self.isa.lanes) * self.isa.lanes

    @property
    def multiplications(self) -> int:
        """Of a block of tiles and a group of output channels."""
        return self.points * self.height * self.block * self.channels


@dataclass(frozen=True)
class Cut:
    """A task: groups of output channels, blocks of tiles, and how many channels are summed up in one go."""

    groups: int
    blocks: int
    channels: int

    @staticmethod
    def of(shape: Shape, groups: int, blocks: int) -> Cut:
        """With as many channels as the second cache has room for, in runs of nearly the same length."""
        most = max(_LEAST, _WEIGHTS * shape.isa.l2_scale // (groups * shape.points * shape.height))
        channels = ceil(shape.channels / ceil(shape.channels / min(most, TERMS)))
        return Cut(groups, blocks, min(shape.channels, ceil(channels / shape.isa.lanes) * shape.isa.lanes))

    def tasks(self, shape: Shape) -> int:
        return ceil(shape.high / self.groups) * ceil(shape.blocks / self.blocks)

    def fits(self, shape: Shape) -> bool:
        """Whether weights and sums stay in the second cache, or there is no smaller task."""
        sums = self.groups * self.blocks * shape.height * shape.points * shape.block
        weights = self.groups * self.channels * shape.height * shape.points
        scale = shape.isa.l2_scale
        return (sums <= _SUMS * scale and weights <= _WEIGHTS * scale) or self.groups == self.blocks == 1

    def cycles(self, shape: Shape) -> float:
        """Until the last of a CPU's cores is done."""
        isa, sums = shape.isa, self.groups * self.blocks * shape.height * shape.points * shape.vectors
        products = sums * (shape.channels / 2 + ceil(shape.channels / self.channels) * _ADD)
        weights = self.groups * shape.points * shape.wide / isa.lanes * _TURN
        images = self.blocks * shape.points * shape.pitch * 4 / _READ
        return ceil(self.tasks(shape) / isa.cores) * (products + weights + images + _TASK)


def cut(shape: Shape) -> Cut:
    """The cut that a simple model finds fastest; of tasks of at most `Schedule.work` if there is one."""
    most = inf if shape.schedule is None else shape.schedule.work
    cuts = [
        found
        for groups in {ceil(shape.high / parts) for parts in range(1, shape.high + 1)}
        for blocks in {ceil(shape.blocks / parts) for parts in range(1, shape.blocks + 1)}
        if groups * blocks * shape.multiplications <= most and (found := Cut.of(shape, groups, blocks)).fits(shape)
    ]
    return min(cuts, key=lambda found: (found.cycles(shape), found.groups), default=Cut.of(shape, 1, 1))


def choices(shape: Shape) -> Space:
    """What a search may choose from."""
    isa, best = shape.isa, cut(shape)
    default = Schedule(shape.height, shape.vectors, best.groups * best.blocks * shape.multiplications)

    def cost(schedule: Schedule) -> float:
        blocks, groups = ceil(shape.tiles / (schedule.vectors * isa.lanes)), ceil(shape.outputs / schedule.rows)
        return blocks * groups * cycles(isa, schedule.rows, schedule.vectors, shape.channels)

    rows, vectors = min(shape.outputs, isa.registers), min(ceil(shape.tiles / isa.lanes), isa.registers)
    return space(isa, default, range(1, rows + 1), range(1, vectors + 1), cost)


def transform(name: str, shape: Shape, arguments: Sequence[str], read: Read) -> Kernel:
    """A kernel that transforms the input; its last pointer shows to where.

    A task takes some channels of some rows of tiles.
    """
    rows, area = shape.batch * shape.down, shape.across * shape.size * shape.edge
    most = elements_of(shape.channels * rows * area)
    channels = max(1, min(shape.channels, most // (area * rows)))
    high = max(1, min(rows, most // area))
    groups = ceil(shape.channels / channels)

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        part = _Transform(emitter, buffers, shape, read)
        first = emitter.let(tirx.floormod(task, groups) * channels, "first")
        top = emitter.let(tirx.floordiv(task, groups) * high, "top")
        with (
            emitter.loop(at_most(channels, shape.channels, first), "channel") as channel,
            emitter.loop(at_most(high, rows, top), "row") as row,
        ):
            part.row(emitter.let(first + channel, "channel"), emitter.let(top + row, "row"))

    return kernel(name, shape.isa, arguments, groups * ceil(rows / high), body)


class _Transform:
    """Rows of tiles of one channel: first along the columns of x, with pixels in the lanes, then along its rows."""

    def __init__(self, emitter: Emitter, buffers: Sequence[Buffer], shape: Shape, read: Read) -> None:
        self.emitter, self.buffers, self.shape, self.read = emitter, buffers, shape, read
        self.matrix, self.lanes = transforms(shape.size).input, shape.isa.lanes
        self.left, self.width = shape.padding[1], shape.inputs[1]
        self.used = shape.across * shape.size + FILTER - 1  # columns that tiles read, the padding's included
        # Vectors are read beyond the columns used where tiles are taken apart.
        self.stride = max(self.used, self.left + self.width) + shape.size * self.lanes
        self.lines = emitter.scratch(shape.edge * self.stride, name="lines")
        zero = emitter.number(0.0)
        for start, stop in ((0, self.left), (self.left + self.width, self.stride)):
            with emitter.loop(shape.edge, "line") as line, emitter.loop(max(0, stop - start), "clear") as column:
                emitter.store(self.lines, line * self.stride + start + column, zero)

    def row(self, channel: Expr, row: Expr) -> None:
        emitter, shape = self.emitter, self.shape
        batch = emitter.let(tirx.floordiv(row, shape.down), "batch")
        top = emitter.let(tirx.floormod(row, shape.down) * shape.size - shape.padding[0], "top")
        whole, rest = divmod(self.width, self.lanes)
        with emitter.loop(whole, "vector") as vector:
            self._down(batch, channel, top, vector * self.lanes, vector_of(emitter, self.lanes))
        with emitter.loop(rest, "rest") as column:
            self._down(batch, channel, top, column + whole * self.lanes, None)
        together = next(n for n in (self.lanes >> k for k in range(8)) if shape.across % n == 0)
        with (
            emitter.loop(shape.across // together, "tiles") as number,
            emitter.loop(shape.edge, "line") as line,
        ):
            start = emitter.let(line * self.stride + number * (together * shape.size), "start")
            first = emitter.let(row * shape.across + number * together, "tile")
            self._across(channel, line, start, first, together)

    def _down(self, batch: Expr, channel: Expr, top: Expr, column: Expr, lanes: Lanes | None) -> None:
        """Columns of x: each becomes as many numbers as there are points."""
        emitter, shape = self.emitter, self.shape
        count, height = lanes.count if lanes else 1, shape.inputs[0]
        at = column if lanes is None else column + lanes.var
        values = []
        for number in range(shape.edge):
            y = emitter.let(top + number, "y")
            inside = emitter.let(tirx.max(0, tirx.min(y, height - 1)), "inside")
            if isinstance(inside, tirx.Var):
                emitter.bound(inside, height)
            value = self.read(emitter, self.buffers, (batch, channel, inside, at), lanes)
            there = tirx.And(y >= 0, y < height)
            values.append(emitter.let(tirx.Select(_spread(there, count), value, emitter.spread(0.0, count)), "x"))
        for number, value in enumerate(combined(emitter, self.matrix, values)):
            emitter.store(self.lines, number * self.stride + self.left + column, value)

    def _across(self, channel: Expr, line: Expr, start: Expr, first: Expr, together: int) -> None:
        """Rows of x, some tiles in the lanes."""
        emitter, shape = self.emitter, self.shape
        values = apart(emitter, self.lines, start, shape.size, shape.edge, together)
        block, lane = tirx.floordiv(first, shape.block), tirx.floormod(first, shape.block)
        into = (block * shape.points + line * shape.edge) * shape.pitch + channel * shape.block + lane
        into = emitter.let(into, "into")
        for number, value in enumerate(combined(emitter, self.matrix, values)):
            emitter.store(self.buffers[-1], into + number * shape.pitch, value)


def product(name: str, shape: Shape, arguments: Sequence[str], finish: Finish) -> Kernel:
    """A kernel of the transformed input and of the weight by its taps, to which its last two pointers show."""
    size = cut(shape)
    down = ceil(shape.high / size.groups)

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        part = _Product(emitter, buffers, shape, finish, size)
        group = emitter.let(tirx.floormod(task, down) * size.groups, "group")
        block = emitter.let(tirx.floordiv(task, down) * size.blocks, "block")
        upcoming = emitter.let(tirx.floormod(emitter.upcoming, down) * size.groups, "upcoming")
        groups, blocks = at_most(size.groups, shape.high, group), at_most(size.blocks, shape.blocks, block)
        part.run(group, groups, block, blocks, upcoming)

    return kernel(name, shape.isa, arguments, size.tasks(shape), body)


class _Product:
    """One task: some output channels, `height` at a time, of some blocks of tiles."""

    def __init__(self, emitter: Emitter, buffers: Sequence[Buffer], shape: Shape, finish: Finish, size: Cut) -> None:
        self.emitter, self.buffers, self.shape, self.finish, self.size = emitter, buffers, shape, finish, size
        self.lanes = shape.isa.lanes
        self.wide = ceil(size.channels * shape.height / self.lanes) * self.lanes
        # A line of the cache more than there is, or points would share few cache sets.
        self.pitch = size.groups * self.wide + 2 * self.lanes
        self.turned = emitter.scratch(shape.points * self.pitch, name="turned")
        self.row = shape.points * shape.block  # numbers of a row of sums: one output channel, a block of tiles
        self.group = shape.height * self.row
        self.sums = emitter.scratch(size.blocks * size.groups * self.group, name="sums")
        self.halfway = emitter.scratch(shape.size * shape.edge * self.lanes, name="halfway")
        self.pixels = emitter.scratch(shape.size * shape.size * shape.block, name="pixels")

    def run(self, first: Expr, groups: Expr | int, top: Expr, blocks: Expr | int, upcoming: Expr) -> None:
        """So many groups from the first on, of so many blocks from the top one on; and the next task's first group."""
        emitter, shape, size = self.emitter, self.shape, self.size
        with emitter.loop(size.blocks * size.groups * self.group // self.lanes, "clear") as vector:
            emitter.store(self.sums, vector * self.lanes, emitter.spread(0.0, self.lanes))

        def add(start: Expr, count: int) -> None:
            more = start + count < shape.channels  # then the same groups' next channels are brought near
            near = tirx.Select(more, first, upcoming) * (FILTER * FILTER * shape.wide)
            near = emitter.let(near + tirx.Select(more, (start + count) * shape.height, 0), "near")
            with emitter.loop(groups, "group") as group:
                source = (first + group) * (FILTER * FILTER * shape.wide) + start * shape.height
                source = emitter.let(source, "source")
                with emitter.loop(ceil(count * shape.height / self.lanes), "vector") as vector:
                    self._turn(source + vector * self.lanes, group * self.wide + vector * self.lanes)
            with emitter.loop(shape.points, "point") as point, emitter.loop(blocks, "block") as block:
                image = ((top + block) * shape.points + point) * shape.pitch + start * shape.block
                image = emitter.let(image, "image")
                with emitter.loop(groups, "group") as group:
                    weight = emitter.let(point * self.pitch + group * self.wide, "weight")
                    into = (block * size.groups + group) * self.group + point * shape.block
                    self._bring(near, (point * size.blocks + block) * size.groups + group, count)
                    self._sum(image, weight, emitter.let(into, "into"), count)

        whole, rest = divmod(shape.channels, size.channels)
        with emitter.loop(whole, "run") as number:
            add(emitter.let(number * size.channels, "start"), size.channels)
        if rest:
            add(tirx.const(whole * size.channels, "int32"), rest)
        with (
            emitter.loop(blocks, "block") as block,
            emitter.loop(groups, "group") as group,
            emitter.loop(shape.height, "row") as row,
        ):
            output = emitter.let((first + group) * shape.height + row, "output")
            with emitter.when(output < shape.outputs):
                start = emitter.let((block * size.groups + group) * self.group + row * self.row, "start")
                with emitter.loop(shape.vectors, "vector") as vector:
                    self._back(emitter.let(start + vector * self.lanes, "at"), vector)
                self._write(emitter.let(top + block, "block"), output)

    def _bring(self, near: Expr, part: Expr, count: int) -> None:
        """Have a part of the weight brought near, while sums are added to: all parts are that of so many channels."""
        emitter, shape = self.emitter, self.shape
        lines = ceil(count * shape.height / LINE)  # of a tap
        share = ceil(FILTER * FILTER * lines / (shape.points * self.size.blocks))
        with emitter.loop(share, "line") as line:
            number = emitter.let(part * share + line, "number")
            tap, at = tirx.floordiv(number, lines), tirx.floormod(number, lines)
            emitter.prefetch(self.buffers[-1], near, tap * shape.wide + at * LINE)

    def _turn(self, source: Expr, into: Expr) -> None:
        """G w Gᵀ of a vector of weights."""
        emitter, shape, matrix = self.emitter, self.shape, transforms(self.shape.size).weight
        taps = [
            emitter.let(emitter.load(self.buffers[-1], source + tap * shape.wide, self.lanes), "w")
            for tap in range(FILTER * FILTER)
        ]
        columns = [combined(emitter, matrix, taps[column::FILTER]) for column in range(FILTER)]
        for row, values in enumerate(zip(*columns, strict=True)):
            for column, value in enumerate(combined(emitter, matrix, values)):
                emitter.store(self.turned, into + (row * shape.edge + column) * self.pitch, value)

    def _sum(self, image: Expr, weight: Expr, into: Expr, count: int) -> None:
        """So many channels of one point: added to the sums of a group of output channels and a block of tiles."""
        emitter, shape, lanes = self.emitter, self.shape, self.lanes
        found = tile(
            emitter,
            shape.height,
            shape.vectors,
            count,
            lambda row, k: emitter.load(self.turned, weight + k * shape.height + row),
            lambda k, vector: emitter.load(self.buffers[-2], image + k * shape.block + vector * lanes, lanes),
        )
        for row, sums in enumerate(found):
            for vector, value in enumerate(sums):
                place = into + (row * self.row + vector * lanes)
                emitter.store(self.sums, place, emitter.load(self.sums, place, lanes) + value)

    def _back(self, at: Expr, vector: Expr) -> None:
        """Aᵀ y A of a vector of tiles, as rows of pixels."""
        emitter, shape, lanes, matrix = self.emitter, self.shape, self.lanes, transforms(self.shape.size).output
        with emitter.loop(shape.edge, "column") as column:
            values = [
                emitter.let(emitter.load(self.sums, at + (row * shape.edge + column) * shape.block, lanes))
                for row in range(shape.edge)
            ]
            for row, value in enumerate(combined(emitter, matrix, values)):
                emitter.store(self.halfway, (row * shape.edge + column) * lanes, value)
        with emitter.loop(shape.size, "row") as row:
            values = [
                emitter.let(emitter.load(self.halfway, (row * shape.edge + column) * lanes, lanes))
                for column in range(shape.edge)
            ]
            into = emitter.let(row * (shape.size * shape.block) + vector * (shape.size * lanes), "into")
            for number, value in enumerate(interleaved(emitter, list(combined(emitter, matrix, values)))):
                emitter.store(self.pixels, into + number * lanes, value)

    def _write(self, block: Expr, output: Expr) -> None:
        """What becomes of the pixels of a block, a vector at a time where they lie in one row of the output."""
        emitter, shape, lanes = self.emitter, self.shape, self.lanes
        long = shape.size * shape.block
        with emitter.loop(shape.size, "row") as row, emitter.loop(long // lanes, "vector") as vector:
            place = emitter.let(row * long + vector * lanes, "place")
            at = emitter.let(block * long + vector * lanes, "pixel")
            batch, y, x = self._pixel(at, row)
            there = tirx.And(at < shape.tiles * shape.size, y < shape.rows)
            whole = shape.across * shape.size == shape.columns and shape.columns % lanes == 0
            with emitter.when(there if whole else tirx.And(there, x + lanes <= shape.columns)):
                value = emitter.let(emitter.load(self.pixels, place, lanes))
                self.finish(emitter, self.buffers, (batch, output, y, x), value, vector_of(emitter, lanes))
            if not whole:
                with emitter.when(x + lanes > shape.columns), emitter.loop(lanes, "rest") as lane:
                    self._one(output, row, emitter.let(at + lane, "pixel"), place + lane)

    def _one(self, output: Expr, row: Expr, at: Expr, place: Expr) -> None:
        """A pixel by itself, if there is one."""
        emitter, shape = self.emitter, self.shape
        batch, y, x = self._pixel(at, row)
        inside = tirx.And(tirx.And(at < shape.tiles * shape.size, y < shape.rows), x < shape.columns)
        with emitter.when(inside):
            self.finish(
                emitter, self.buffers, (batch, output, y, x), emitter.let(emitter.load(self.pixels, place)), None
            )

    def _pixel(self, at: Expr, row: Expr) -> tuple[Expr, Expr, Expr]:
        """Image, row and column of a pixel of a row through all tiles."""
        emitter, shape = self.emitter, self.shape
        long = shape.across * shape.size
        line = emitter.let(tirx.floordiv(at, long), "line")
        batch = emitter.let(tirx.floordiv(line, shape.down), "batch")
        y = emitter.let(tirx.floormod(line, shape.down) * shape.size + row, "y")
        return batch, y, emitter.let(tirx.floormod(at, long), "x")


def combined(emitter: Emitter, matrix: Matrix, values: Sequence[Expr]) -> list[Expr]:
    """Matrix · values. Two rows that differ in signs alone, as those of two opposite points, share their halves."""
    found: list[Expr] = []
    for number, row in enumerate(matrix):
        before = matrix[number - 1] if number else None
        if before is not None and row != before and tuple(map(abs, row)) == tuple(map(abs, before)):
            same = _weighted(emitter, [a if a == b else 0.0 for a, b in zip(before, row, strict=True)], values)
            other = _weighted(emitter, [a if a != b else 0.0 for a, b in zip(before, row, strict=True)], values)
            if same is not None and other is not None:
                found[-1:] = [emitter.let(same + other, "t"), emitter.let(same - other, "t")]
                continue
        total = _weighted(emitter, row, values)
        assert total is not None
        found.append(total)
    return found


def _weighted(emitter: Emitter, factors: Sequence[float], values: Sequence[Expr]) -> Expr | None:
    total: Expr | None = None
    for factor, value in sorted(zip(factors, values, strict=True), key=lambda entry: -abs(entry[0])):
        if factor == 0.0:
            continue
        term = value if factor == 1.0 else value * factor
        total = term if total is None else total - value if factor == -1.0 else total + term
    return None if total is None else emitter.let(total, "t")


def apart(emitter: Emitter, buffer: Buffer, start: Expr, step: int, count: int, lanes: int) -> list[Expr]:
    """The vectors that begin at `start`, `start + 1` and so on, `count` of them, of every `step`-th number."""
    found: list[Expr] = []
    for first in range(0, count, step):
        line = [
            emitter.let(emitter.load(buffer, start + first + number * lanes, lanes), "line") for number in range(step)
        ]
        for offset in range(min(step, count - first)):
            found.append(emitter.let(_picked(line, [offset + step * lane for lane in range(lanes)]), "x"))
    return found


def interleaved(emitter: Emitter, values: Sequence[Expr]) -> list[Expr]:
    """The vectors that begin with the first lanes of all values, one after the other, then the second ones."""
    lanes, step = int(values[0].ty.dtype.lanes), len(values)
    order = [number * lanes + lane for lane, number in itertools.product(range(lanes), range(step))]
    return [
        emitter.let(_picked(values, order[number * lanes : (number + 1) * lanes]), "pixels") for number in range(step)
    ]


def _picked(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    return tirx.Shuffle(list(vectors), [tirx.const(lane, "int32") for lane in lanes])


def _spread(condition: Expr, lanes: int) -> Expr:
    return condition if lanes == 1 else tirx.Broadcast(condition, lanes)
