"""Pointwise operations as one loop nest over the result, with every view in between resolved to offsets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm
from torch import fx
from tvm import tirx
from tvm.sym import Analyzer, detect_linear_equation

from ...ir.program import val
from .emit import Buffer, Emitter, Expr, Kernel, at_most, dtype_of, kernel
from .isa import Isa
from .operators import STORED, unflattened
from .reading import Element, Lanes, Layout, Leaf, Reader, Tree, lanes_of, leaves, substituted, vector_of
from .reading import reads as reads_of
from .tile import elements_of


class Nest:
    """Loops over an index space, merged where all memory that is touched allows for it.

    Attributes
    ----------
    sizes : of the loops, the innermost last.
    """

    def __init__(self, shape: Sequence[int], strides: Sequence[int]) -> None:
        """Loops over `shape`, ordered by the strides of what is written."""
        self.analyzer = Analyzer()
        self.dims = [dim for dim, size in enumerate(shape) if size != 1]
        self.dims.sort(key=lambda dim: -strides[dim])
        self.vars = {dim: tirx.Var(f"d{dim}", "int32") for dim in self.dims}
        for dim, var in self.vars.items():
            self.analyzer.bind(var, tvm.ir.Range(0, shape[dim]))
        zero = tirx.const(0, "int32")
        self.index = tuple(self.vars.get(dim, zero) for dim in range(len(shape)))
        self.written: Expr = zero
        for dim in self.dims:
            self.written = self.written + self.vars[dim] * strides[dim]
        self.sizes = [shape[dim] for dim in self.dims]
        self.steps: dict[Any, list[int]] | None = None
        self.bases: dict[Any, int] = {}

    def merge(self, element: Element) -> None:
        """Merge neighbouring loops through which each offset, read or written, goes as through one."""
        offsets: dict[Any, Expr] = {None: self.written, **{id(leaf): leaf.offset for leaf in leaves(element)}}
        steps: dict[Any, list[int]] = {}
        for key, offset in offsets.items():
            linear = detect_linear_equation(offset, [self.vars[dim] for dim in self.dims]) if self.dims else [offset]
            if not linear or not all(isinstance(self.analyzer.simplify(entry), tirx.IntImm) for entry in linear):
                return
            *coefficients, self.bases[key] = (int(self.analyzer.simplify(entry)) for entry in linear)
            steps[key] = coefficients
        outer = 0
        while outer + 1 < len(self.sizes):
            inner = outer + 1
            if all(entry[outer] == entry[inner] * self.sizes[inner] for entry in steps.values()):
                self.sizes[outer : inner + 1] = [self.sizes[outer] * self.sizes[inner]]
                for entry in steps.values():
                    del entry[outer]
            else:
                outer += 1
        self.steps = steps

    def at(self, key: Any, offset: Expr, places: Sequence[Expr]) -> Expr:
        """An offset where the loops are at these places."""
        if self.steps is None:
            return substituted(offset, {self.vars[dim]: place for dim, place in zip(self.dims, places, strict=True)})
        total: Expr = tirx.const(self.bases[key], "int32")
        for place, step in zip(places, self.steps[key], strict=True):
            total = total + place * step
        return total


def pointwise(
    name: str,
    isa: Isa,
    node: fx.Node,
    layout: Layout,
    strides: Sequence[int],
    *,
    source: fx.Node | None = None,
    offset: int = 0,
) -> tuple[Kernel, list[fx.Node]]:
    """A kernel that writes a node to memory with these strides, and the nodes whose memory it reads.

    Its pointers: those of the nodes, in order, and last the one that it writes to.

    Parameters
    ----------
    source : what is written instead of `node`, whose elements it has, in row-major order.
    offset : from where the memory begins, in elements.
    """
    source = node if source is None else source
    nest = Nest(val(source).shape, strides)
    tree = Tree(layout, nest.analyzer)
    element = tree.of(source, nest.index)
    nest.merge(element)
    reads = reads_of(element)
    total = math.prod(nest.sizes)
    inner = nest.sizes[-1] if nest.sizes else 1
    most = elements_of(total)
    chunk = min(inner, most)
    chunks = -(-inner // chunk)
    rows = total // inner if total else 0
    together = max(1, most // chunk) if chunks == 1 else 1
    tasks = -(-rows // together) * chunks if total else 0

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        reader = Reader(emitter, dict(zip(reads, buffers, strict=False)))
        start = emitter.analyzer.simplify(tirx.floormod(task, chunks) * chunk)
        first = tirx.floordiv(task, chunks) * together
        count = at_most(chunk, inner, start)
        with emitter.loop(at_most(together, rows, first), "row") as row:
            number = emitter.let(first + row)
            emitter.bound(number, max(rows, 1))
            outer = unflattened(number, nest.sizes[:-1])

            def write(place: Expr, lanes: int) -> None:
                lane = vector_of(emitter, lanes) if lanes > 1 else None
                spot = [*outer, place + lane.var if lane is not None else place] if nest.sizes else []

                def moved(leaf: Leaf) -> Expr:
                    return emitter.analyzer.simplify(nest.at(id(leaf), leaf.offset, spot))

                value = reader.value(element, lane, moved)
                into = emitter.analyzer.simplify(nest.at(None, nest.written, spot) + offset)
                store(emitter, buffers[-1], into, emitter.spread(value, lanes), lane)

            lanes = isa.lanes
            whole: Any = count // lanes if isinstance(count, int) else tirx.floordiv(count, lanes)
            if not (isinstance(whole, int) and whole == 0):
                with emitter.loop(whole, "vector") as vector:
                    write(start + vector * lanes, lanes)
            rest: Any = count % lanes if isinstance(count, int) else tirx.floormod(count, lanes)
            if not (isinstance(rest, int) and rest == 0):
                with emitter.loop(rest, "rest") as place:
                    write(start + whole * lanes + place, 1)

    return kernel(name, isa, [STORED[val(entry).dtype] for entry in (*reads, node)], tasks, body), reads


def filled(name: str, isa: Isa, count: int, dtype: str, value: float) -> Kernel:
    """A kernel that writes one number to so many elements."""
    most = elements_of(count)

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        start, lanes = emitter.let(task * most), isa.lanes
        number = tirx.const(int(value) if dtype != "float32" else value, dtype)
        with emitter.loop(tirx.floordiv(at_most(most, count, start), lanes), "vector") as vector:
            emitter.store(buffers[0], start + vector * lanes, emitter.spread(number, lanes))
        if rest := count % lanes:
            with emitter.when(task * most + most >= count), emitter.loop(rest, "rest") as place:
                emitter.store(buffers[0], count - rest + place, number)

    return kernel(name, isa, [dtype], -(-count // most), body)


def store(emitter: Emitter, buffer: Buffer, offset: Expr, value: Expr, lanes: Lanes | None) -> None:
    """A value to where an offset points that depends on the lanes, however."""
    if str(buffer.dtype) != dtype_of(value):
        value = emitter.cast(value, str(buffer.dtype))
    if lanes is None:
        emitter.store(buffer, offset, value)
        return
    start, step = lanes_of(emitter.analyzer, offset, lanes)
    if step is not None:
        emitter.store(buffer, start, value, step)
        return
    value = emitter.let(value)
    for lane in range(lanes.count):
        into = emitter.analyzer.simplify(substituted(offset, {lanes.var: lane}))
        emitter.store(buffer, into, tirx.Shuffle([value], [tirx.const(lane, "int32")]))
