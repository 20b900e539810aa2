"""Convolutions in NCHW order: pixels in the lanes of vectors, output channels in the rows of a tile.

The input is first laid out padded, with room for whole vectors at the end of each row, and, for a stride of s, with the s²
subgrids apart: then what every tap of the filter reads for a vector of output pixels lies together. The weight is packed
so that the output channels of a tile lie together for each input channel and tap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tvm import tirx

from .emit import Buffer, Emitter, Expr, Kernel, kernel
from .isa import Isa
from .reading import Lanes

_TASK = 1 << 22  # multiplications of a task
_INPUT = 1 << 16  # numbers of the input that the tiles of a task read: half of the second cache
_TERMS = 576  # of a running sum, which then goes to a total: rounding errors grow with what is summed up in one go


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

    @property
    def plain(self) -> bool:
        """Whether the input is read as it is: filters of one pixel, at every place."""
        return self.kernel == self.stride == (1, 1) and self.padding == (0, 0)


@dataclass(frozen=True)
class Layout:
    """How the padded input lies: (batch, channel, subgrid, row, column).

    Attributes
    ----------
    rows, columns : of a subgrid, room for the last vector included.
    """

    geometry: Geometry
    lanes: int

    @property
    def rows(self) -> int:
        g = self.geometry
        return g.rows + (g.dilation[0] * (g.kernel[0] - 1)) // g.stride[0]

    @property
    def columns(self) -> int:
        g = self.geometry
        return _multiple(g.columns, self.lanes) + (g.dilation[1] * (g.kernel[1] - 1)) // g.stride[1]

    @property
    def channel(self) -> int:
        """Numbers of a channel."""
        return self.geometry.stride[0] * self.geometry.stride[1] * self.rows * self.columns

    @property
    def size(self) -> int:
        return self.geometry.batch * self.geometry.channels * self.channel

    def tap(self, row: int, column: int) -> int:
        """Where a tap of the filter reads for the first output pixel, from where the channel begins."""
        g = self.geometry
        down, right = row * g.dilation[0], column * g.dilation[1]
        grid = down % g.stride[0] * g.stride[1] + right % g.stride[1]
        return (grid * self.rows + down // g.stride[0]) * self.columns + right // g.stride[1]


def suited(isa: Isa, columns: int) -> Isa:
    """The CPU, with vectors as short as rows of so many pixels fill."""
    lanes = isa.lanes
    while lanes > 4 and columns % lanes and _multiple(columns, lanes // 2) < _multiple(columns, lanes):
        lanes //= 2
    return dataclasses.replace(isa, lanes=lanes)


def outputs_of(isa: Isa) -> int:
    """Output channels of a tile."""
    return isa.tile[0]


def packed(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """A weight, (outputs, channels, *kernel), as (outputs / rows rounded up, channels · taps, rows)."""
    count = -(-weight.shape[0] // rows)
    flat = weight.reshape(weight.shape[0], -1)
    whole = torch.zeros(count * rows, flat.shape[1], dtype=weight.dtype)
    whole[: weight.shape[0]] = flat
    return whole.view(count, rows, flat.shape[1]).transpose(1, 2).contiguous()


def pad(
    name: str,
    layout: Layout,
    isa: Isa,
    arguments: Sequence[str],
    read: Callable[[Emitter, Sequence[Buffer], tuple[Expr, Expr, Expr, Expr], Lanes | None], Expr],
) -> Kernel:
    """A kernel that lays an input out; its last pointer shows to there.

    Parameters
    ----------
    read : elements of the input: batch, channel, row, column.
    """
    g, lanes = layout.geometry, isa.lanes
    down, right = g.stride

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        batch, channel = task // g.channels, tirx.floormod(task, g.channels)
        start = emitter.let(task * layout.channel, "start")
        whole, rest = divmod(layout.channel, lanes)
        with emitter.loop(whole, "clear") as at:
            emitter.store(buffers[-1], start + at * lanes, emitter.spread(0.0, lanes))
        with emitter.loop(rest, "clear") as at:
            emitter.store(buffers[-1], start + whole * lanes + at, emitter.number(0.0))
        # Rows and columns that some tap reads: with a stride, the last ones may be read by none.
        height = min(g.height, layout.rows * down - g.padding[0])
        width = min(g.width, layout.columns * right - g.padding[1])
        with emitter.loop(height, "row") as row:
            y = row + g.padding[0]
            above = tirx.floormod(y, down) * right

            def place(column: Expr) -> Expr:
                x = column + g.padding[1]
                grid = above + tirx.floormod(x, right)
                return start + (grid * layout.rows + tirx.floordiv(y, down)) * layout.columns + tirx.floordiv(x, right)

            many = width // lanes if right == 1 else 0
            if many:
                lane = Lanes(tirx.Var("lane", "int32"), lanes)
                emitter.bound(lane.var, lanes)
                with emitter.loop(many, "vector") as vector:
                    value = read(emitter, buffers, (batch, channel, row, vector * lanes + lane.var), lane)
                    emitter.store(buffers[-1], place(vector * lanes), value)
            with emitter.loop(width - many * lanes, "rest") as left:
                column = left + many * lanes
                emitter.store(buffers[-1], place(column), read(emitter, buffers, (batch, channel, row, column), None))

    return kernel(name, isa, arguments, g.batch * g.channels, body)


@dataclass(frozen=True)
class Source:
    """Where the input lies: its strides for batch, channel and output row, and the offset that each tap adds."""

    batch: int
    channel: int
    row: int
    taps: tuple[int, ...]
    offset: int = 0


def convolution(
    name: str,
    isa: Isa,
    g: Geometry,
    source: Source,
    arguments: Sequence[str],
    inputs: int,
    finish: Callable[[Emitter, Sequence[Buffer], tuple[Expr, Expr, Expr, Expr], Expr, Lanes | None], None],
) -> Kernel:
    """A kernel over a weight that is packed.

    Parameters
    ----------
    arguments : dtypes of the pointers; the last shows to the weight.
    inputs : the pointer that shows to the input.
    finish : takes sums: batch, output channel, row, first column, the sums and the lanes; writes what becomes of them.
    """
    lanes = isa.lanes
    across = -(-g.columns // lanes)  # vectors in a row
    total = g.rows * across
    vectors = min(isa.tile[1] // isa.lanes, total)
    height = outputs_of(isa)
    high, wide = -(-g.outputs // height), -(-total // vectors)
    taps, terms = len(source.taps), g.channels * len(source.taps)
    # A task: tiles next to each other, whose input stays in the cache, times tiles of output channels.
    along = max(1, min(wide, _INPUT // max(1, g.channels * vectors * lanes)))
    deep = max(1, min(high, _TASK // (terms * height * vectors * lanes * along) or 1))
    right, down = -(-wide // along), -(-high // deep)
    depth = max(1, min(g.channels, _TERMS // taps))  # channels of a running sum
    blocks = -(-g.channels // depth)

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        image, weight = buffers[inputs], buffers[-1]
        part = emitter.let(tirx.floormod(task, down), "part")
        rest = emitter.let(tirx.floordiv(task, down), "rest")
        left = emitter.let(tirx.floormod(rest, right) * along, "left")
        batch = emitter.let(tirx.floordiv(rest, right), "batch")
        block = emitter.scratch(height * vectors * lanes, name="block")
        tiles: Any = along if wide % along == 0 else tirx.min(along, wide - left)
        tops: Any = deep if high % deep == 0 else tirx.min(deep, high - part * deep)
        with emitter.loop(tops, "output") as top, emitter.loop(tiles, "tile") as tile:
            number = emitter.let(part * deep + top, "number")
            first = emitter.let((left + tile) * vectors, "first")
            places = [
                emitter.let(
                    batch * source.batch
                    + tirx.floordiv(at, across) * source.row
                    + tirx.floormod(at, across) * lanes
                    + source.offset,
                    "place",
                )
                for vector in range(vectors)
                for at in [tirx.min(first + vector, total - 1)]
            ]

            def add(start: Expr, count: Expr | int, fresh: bool) -> None:
                sums = [
                    [emitter.register(emitter.spread(0.0, lanes), "sum") for _ in range(vectors)]
                    for _ in range(height)
                ]
                with emitter.loop(count, "channel") as each:
                    channel = emitter.let(start + each, "c")
                    here = [emitter.let(place + channel * source.channel, "x") for place in places]
                    base = emitter.let((number * g.channels + channel) * (taps * height), "w")
                    for tap, offset in enumerate(source.taps):
                        pixels = [emitter.let(emitter.load(image, at + offset, lanes), "p") for at in here]
                        for row in range(height):
                            factor = emitter.load(weight, base + tap * height + row, lanes, step=0)
                            factor = emitter.let(factor, "f")
                            for register, vector in zip(sums[row], pixels, strict=True):
                                emitter.put(register, emitter.get(register) + factor * vector)
                for row in range(height):
                    for vector, register in enumerate(sums[row]):
                        at = (row * vectors + vector) * lanes
                        value = emitter.get(register)
                        emitter.store(block, at, value if fresh else value + emitter.load(block, at, lanes))

            add(tirx.const(0, "int32"), depth, True)
            if blocks > 1:
                whole = (g.channels - depth) // depth
                with emitter.loop(whole, "block") as later:
                    add((later + 1) * depth, depth, False)
                if left_over := g.channels - depth * (whole + 1):
                    add(tirx.const(depth * (whole + 1), "int32"), left_over, False)
            _write(emitter, buffers, block, g, height, vectors, lanes, across, total, number, first, batch, finish)

    return kernel(name, isa, arguments, g.batch * right * down, body)


def _write(
    emitter: Emitter,
    buffers: Sequence[Buffer],
    block: Buffer,
    g: Geometry,
    height: int,
    vectors: int,
    lanes: int,
    across: int,
    total: int,
    number: Expr,
    first: Expr,
    batch: Expr,
    finish: Callable[..., None],
) -> None:
    """What becomes of a tile of sums, vector by vector."""
    with emitter.loop(height, "row") as row, emitter.loop(vectors, "vector") as vector:
        output = emitter.let(number * height + row, "output")
        at = emitter.let(first + vector, "at")
        y, x = emitter.let(tirx.floordiv(at, across), "y"), emitter.let(tirx.floormod(at, across) * lanes, "x")
        place = (row * vectors + vector) * lanes
        inside = tirx.And(output < g.outputs, at < total)
        lane = Lanes(tirx.Var("lane", "int32"), lanes)
        emitter.bound(lane.var, lanes)
        whole = inside if g.columns % lanes == 0 else tirx.And(inside, x + lanes <= g.columns)
        with emitter.when(whole):
            value = emitter.let(emitter.load(block, place, lanes))
            finish(emitter, buffers, (batch, output, y, x), value, lane)
        if g.columns % lanes:
            with emitter.when(tirx.And(inside, x + lanes > g.columns)):
                with emitter.loop(g.columns % lanes, "rest") as left:
                    value = emitter.let(emitter.load(block, place + left))
                    finish(emitter, buffers, (batch, output, y, x + left), value, None)


def _multiple(value: int, of: int) -> int:
    return -(-value // of) * of
