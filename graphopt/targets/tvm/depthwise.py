"""Convolutions in groups: an output channel reads the few input channels of its group; pixels lie in lanes of vectors.

The input is laid out as for other convolutions (`conv.Layout`). With one channel a group there is nothing to share
between output channels: a tile is one of them and several vectors of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from tvm import tirx

from .conv import Finish, Source
from .emit import Buffer, Emitter, Expr, Kernel, kernel
from .isa import Isa
from .reading import vector_of
from .tile import TERMS, in_runs

_VECTORS = 4  # of pixels in a tile: as many sums as hide the latency of an addition


def convolution(
    name: str,
    isa: Isa,
    batch: int,
    channels: int,
    outputs: int,
    groups: int,
    source: Source,
    arguments: Sequence[str],
    finish: Finish,
) -> Kernel:
    """A kernel over an input that is laid out, and a weight as (outputs, channels of a group, taps).

    Parameters
    ----------
    channels : of a group.
    outputs : of all groups.
    arguments : dtypes of the pointers; the last two show to the input and to the weight.
    finish : takes sums: batch, output channel, row, first column, the sums and the lanes; writes what becomes of them.
    """
    rows, columns = source.pixels
    across, lanes, taps = ceil(columns / isa.lanes), isa.lanes, len(source.taps)
    total = rows * across
    vectors = min(_VECTORS, total)

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        *_, image, weight = buffers
        item = emitter.let(tirx.floordiv(task, outputs), "item")
        output = emitter.let(tirx.floormod(task, outputs), "output")
        start = emitter.let(
            item * source.batch + tirx.floordiv(output, outputs // groups) * (channels * source.channel), "start"
        )
        block = emitter.scratch(vectors * lanes, name="block")
        lane = vector_of(emitter, lanes)

        def add(places: Sequence[Expr], first: Expr, count: int, fresh: bool) -> None:
            sums = [emitter.register(emitter.spread(0.0, lanes), "sum") for _ in places]
            with emitter.loop(count, "channel") as each:
                channel = emitter.let(first + each, "channel")
                here = [emitter.let(place + channel * source.channel, "here") for place in places]
                base = emitter.let((output * channels + channel) * taps, "base")
                for tap, offset in enumerate(source.taps):
                    factor = emitter.let(emitter.load(weight, base + tap, lanes, step=0), "factor")
                    for at, register in zip(here, sums, strict=True):
                        pixels = emitter.load(image, at + offset, lanes)
                        emitter.put(register, emitter.get(register) + factor * pixels)
            for place, register in enumerate(sums):
                known, value = emitter.load(block, place * lanes, lanes), emitter.get(register)
                emitter.store(block, place * lanes, value if fresh else known + value)

        with emitter.loop(ceil(total / vectors), "tile") as tile:
            places = []
            for vector in range(vectors):
                at = emitter.let(tirx.min(tile * vectors + vector, total - 1), "vector")
                down, right = tirx.floordiv(at, across) * source.row, tirx.floormod(at, across) * lanes
                places.append(emitter.let(start + down + right, "place"))
            in_runs(
                emitter,
                channels,
                max(1, TERMS // taps),
                lambda first, count, fresh: add(places, first, count, fresh),
            )
            with emitter.loop(vectors, "vector") as vector:
                at = emitter.let(tile * vectors + vector, "at")
                y = emitter.let(tirx.floordiv(at, across), "y")
                x = emitter.let(tirx.floormod(at, across) * lanes, "x")
                inside, rest = at < total, columns % lanes
                with emitter.when(tirx.And(inside, x + lanes <= columns) if rest else inside):
                    value = emitter.let(emitter.load(block, vector * lanes, lanes))
                    finish(emitter, buffers, (item, output, y, x), value, lane)
                if rest:
                    end = tirx.And(inside, x + lanes > columns)
                    with emitter.when(end), emitter.loop(rest, "rest") as left:
                        value = emitter.let(emitter.load(block, vector * lanes + left))
                        finish(emitter, buffers, (item, output, y, x + left), value, None)

    return kernel(name, isa, arguments, batch * outputs, body)
