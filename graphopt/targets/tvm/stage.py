"""From groups of a stage's nodes to kernels, and to what their pointers show to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from tvm import tirx
from tvm.sym import Analyzer

from ...ir.program import bind, val
from . import attention, conv, elementwise, gemm, norm, winograd
from .emit import Buffer, Emitter, Expr, Kernel
from .emit import lanes_of as lanes_in
from .isa import Isa
from .operators import Index, broadcast, unflattened
from .places import Launch, Panels, Place, Scratch
from .plan import Group, plan
from .reading import Lanes, Layout, Leaf, Reader, Tree, lanes_of, leaves, strides_of, vector_of


class Builder:
    """Groups to kernels.

    Attributes
    ----------
    kernels : those of launches so far, by name.
    """

    def __init__(self, isa: Isa, graph: fx.Graph, examples: Sequence[Any]) -> None:
        self.isa, self.plan = isa, plan(graph)
        self.strides: dict[fx.Node, tuple[int, ...]] = {}
        for node in self.plan.memory:
            if isinstance(val(node), torch.Tensor):
                self.strides[node] = strides_of(val(node))
        for node, example in zip(graph.find_nodes(op="placeholder"), examples, strict=True):
            if isinstance(example, torch.Tensor):
                self.strides[node] = strides_of(example)
        self.layout = Layout(self.strides)
        self.made = 0
        self.taken = 0
        self.known: dict[Hashable, tuple[list[Launch], dict[int, fx.Node]]] = {}
        self.copies: dict[fx.Node, Scratch] = {}
        self.launches: list[Launch] = []
        self.kernels: dict[str, Kernel] = {}

    def name(self, kind: str) -> str:
        self.made += 1
        return f"graphopt_{kind}_{self.made}"

    def launch(self, kernel: Kernel, pointers: Sequence[Place]) -> None:
        self.kernels[kernel.name] = kernel
        self.launches.append(Launch(kernel.name, tuple(pointers)))

    def group(self, group: Group) -> list[Launch]:
        """The launches that compute a group. Groups that differ only in which memory they touch share kernels."""
        signature, numbers, computed = self._signature(group)
        if signature not in self.known:
            self.launches = []
            _RULES[group.kind](self, group)
            self.known[signature] = self.launches, {number: node for node, number in numbers.items()}
        launches, nodes = self.known[signature]
        here = dict(zip((nodes[number] for number in numbers.values()), numbers, strict=True))
        copies: dict[Scratch, Scratch] = {}

        def moved(place: Place) -> Place:
            if isinstance(place, Panels):
                return dataclasses.replace(place, weight=here[place.weight])
            if isinstance(place, Scratch):
                if place not in copies:
                    copies[place] = self.take(place.floats)
                return copies[place]
            return here[place]

        made = [Launch(launch.kernel, tuple(moved(place) for place in launch.pointers)) for launch in launches]
        return [*made[:-1], dataclasses.replace(made[-1], computes=computed)]

    def take(self, floats: int) -> Scratch:
        """Memory for so many numbers, while a group is computed."""
        self.taken += 1
        return Scratch(self.taken, floats)

    def _signature(self, group: Group) -> tuple[Hashable, dict[fx.Node, int], tuple[fx.Node, ...]]:
        """What a group computes, but for which memory it touches; its nodes as they are met; those it computes."""
        numbers: dict[fx.Node, int] = {}
        computed: list[fx.Node] = []
        met: list[Hashable] = [group.kind, len(group.chain)]

        def visit(node: fx.Node) -> str:
            if node not in numbers:
                arguments: Any = None
                if node is group.result or node not in self.strides:
                    arguments = repr(map_arg((node.args, node.kwargs), visit)), str(node.target)
                    computed.append(node)
                numbers[node] = len(numbers)
                value = val(node)
                shape = tuple(value.shape) if isinstance(value, torch.Tensor) else None
                met.append((shape, self.strides.get(node), arguments))
            return f"%{numbers[node]}"

        visit(group.result)
        return tuple(met), numbers, tuple(computed)

    # -- kinds -------------------------------------------------------------------------------------------------------

    def pointwise(self, group: Group) -> None:
        node = group.result
        without = Layout({other: strides for other, strides in self.strides.items() if other is not node})
        kernel, reads = elementwise.pointwise(self.name("pointwise"), self.isa, node, without, self.strides[node])
        self.launch(kernel, [*reads, node])

    def cat(self, group: Group) -> None:
        node = group.result
        bound, strides = bind(node), self.strides[node]
        dim, offset = bound["dim"] % val(node).ndim, 0
        for part in bound["tensors"]:
            if val(part).numel():
                kernel, reads = elementwise.pointwise(
                    self.name("cat"), self.isa, node, self.layout, strides, source=part, offset=offset
                )
                self.launch(kernel, [*reads, node])
            offset += val(part).shape[dim] * strides[dim]

    def linear(self, group: Group) -> None:
        bound = bind(group.anchor)
        source, weight, bias = bound["input"], bound["weight"], bound["bias"]
        *leading, terms = val(source).shape
        columns = val(weight).shape[0]
        rows = val(source).numel() // terms
        form = gemm.tiles(self.isa, rows, columns)
        source, layout = self._in_rows(source, leading)
        after = After(self, group, layout, [bias] if bias is not None else [], [source])

        def row(emitter: Emitter, buffers: Sequence[Buffer], number: Expr) -> tuple[Buffer, Expr]:
            tree = Tree(layout, emitter.analyzer)
            leaf = tree.of(source, (*unflattened(number, leading), tirx.const(0, "int32")))
            assert isinstance(leaf, Leaf)
            return after.buffer(buffers, leaf.node), leaf.offset

        def finish(
            emitter: Emitter, buffers: Sequence[Buffer], number: Expr, column: Expr, value: Expr, lanes: Lanes | None
        ) -> None:
            if bias is not None:
                value = emitter.let(value + after.value(emitter, buffers, bias, (_at(column, lanes),), lanes))
            after.write(emitter, buffers, after.index(number, column, lanes), value, lanes)

        product = gemm.Product(rows, columns, terms)
        pointers: list[Place] = [*after.pointers, Panels(weight, form.columns)]
        kernel = gemm.linear(self.name("linear"), self.isa, product, ["float32"] * len(pointers), row, finish)
        self.launch(kernel, [self.copies.get(place, place) if place is source else place for place in pointers])
        self.copies.pop(source, None)

    def _in_rows(self, source: fx.Node, leading: Sequence[int]) -> tuple[fx.Node, Layout]:
        """The source, and a layout in which each of its rows lies together; copied there if need be."""
        column = tirx.Var("column", "int32")
        index = [tirx.Var("row", "int32") if size != 1 else tirx.const(0, "int32") for size in leading]
        leaf = Tree(self.layout, Analyzer()).of(source, (*index, column))
        if isinstance(leaf, Leaf) and lanes_of(Analyzer(), leaf.offset, Lanes(column, 1))[1] == 1:
            return source, self.layout
        plain = strides_of(torch.empty(val(source).shape, device="meta"))
        kernel, reads = elementwise.pointwise(self.name("copy"), self.isa, source, self.layout, plain)
        copy = self.take(val(source).numel())
        self.launch(kernel, [*reads, copy])
        self.copies[source] = copy
        return source, Layout({**self.strides, source: plain})

    def normalised(self, group: Group) -> None:
        bound = bind(group.anchor)
        source = bound["self" if group.kind == "softmax" else "input"]
        *leading, size = val(source).shape
        rows = val(source).numel() // size
        after = After(self, group, self.layout, _affine(bound), [source])

        def read(emitter: Emitter, buffers: Sequence[Buffer], number: Expr, column: Expr, lanes: Lanes | None) -> Expr:
            return after.value(emitter, buffers, source, (*unflattened(number, leading), _at(column, lanes)), lanes)

        def finish(
            emitter: Emitter, buffers: Sequence[Buffer], number: Expr, column: Expr, value: Expr, lanes: Lanes | None
        ) -> None:
            value = after.affine(emitter, buffers, value, (_at(column, lanes),), lanes)
            after.write(emitter, buffers, after.index(number, column, lanes), value, lanes)

        name, count = self.name(group.kind), ["float32"] * len(after.pointers)
        if group.kind == "softmax":
            kernel = norm.softmax(name, self.isa, rows, size, count, read, finish)
        else:
            eps = bound["eps"] if bound["eps"] is not None else float(torch.finfo(torch.float32).eps)
            rule = norm.layer_norm if group.kind == "layer_norm" else norm.rms_norm
            kernel = rule(name, self.isa, rows, size, eps, count, read, finish)
        self.launch(kernel, after.pointers)

    def conv2d(self, group: Group) -> None:
        bound = bind(group.anchor)
        source, weight, bias = bound["input"], bound["weight"], bound["bias"]
        batch, channels, height, width = val(source).shape
        stride, padding, dilation = (_pair(bound[name]) for name in ("stride", "padding", "dilation"))
        outputs, _, *kernel = val(weight).shape
        g = conv.Geometry(batch, channels, height, width, outputs, (kernel[0], kernel[1]), stride, padding, dilation)
        layout = conv.Layout(g, self.isa.lanes)
        before = After(self, group, self.layout, [], [source])
        reads = list(before.pointers[:-1])
        laid = self.take(layout.size)

        def read(emitter: Emitter, buffers: Sequence[Buffer], index: Index, lanes: Lanes | None) -> Expr:
            return before.value(emitter, buffers, source, index, lanes)

        self.launch(conv.pad(self.name("pad"), layout, self.isa, ["float32"] * (len(reads) + 1), read), [*reads, laid])
        after = After(self, group, self.layout, [bias] if bias is not None else [], [])

        def finish(emitter: Emitter, buffers: Sequence[Buffer], index: Index, value: Expr, lanes: Lanes | None) -> None:
            at = (*index[:3], _at(index[3], lanes))
            if layout.flat:
                at = (*index[:2], *unflattened(at[3], (g.rows, g.columns)))
            if bias is not None:
                value = value + after.value(emitter, buffers, bias, index[1:2], lanes)
            after.write(emitter, buffers, at, emitter.let(value), lanes)

        taps = tuple(layout.tap(row, column) for row in range(kernel[0]) for column in range(kernel[1]))
        where = conv.Source(channels * layout.channel, layout.channel, layout.columns, taps, layout.pixels)
        pointers: list[Place] = [*after.pointers, laid, Panels(weight, conv.outputs_of(self.isa))]
        name, types = self.name("conv2d"), ["float32"] * len(pointers)
        self.launch(conv.convolution(name, self.isa, batch, channels, outputs, where, types, finish), pointers)

    def winograd(self, group: Group) -> None:
        bound = bind(group.anchor)
        source, weight, bias = bound["input"], bound["weight"], bound["bias"]
        batch, channels, height, width = val(source).shape
        padding, size, outputs = _pair(bound["padding"]), bound["tile"], bound["outputs"]
        shape = winograd.Shape(self.isa, batch, channels, (height, width), outputs, padding, size, bound["height"])
        before = After(self, group, self.layout, [], [source])
        reads = list(before.pointers[:-1])
        laid = self.take(shape.floats)

        def read(emitter: Emitter, buffers: Sequence[Buffer], index: Index, lanes: Lanes | None) -> Expr:
            return before.value(emitter, buffers, source, index, lanes)

        types = ["float32"] * (len(reads) + 1)
        self.launch(winograd.transform(self.name("winograd_input"), shape, types, read), [*reads, laid])
        after = After(self, group, self.layout, [bias] if bias is not None else [], [])

        def finish(emitter: Emitter, buffers: Sequence[Buffer], index: Index, value: Expr, lanes: Lanes | None) -> None:
            if bias is not None:
                value = value + after.value(emitter, buffers, bias, index[1:2], lanes)
            after.write(emitter, buffers, (*index[:3], _at(index[3], lanes)), emitter.let(value), lanes)

        pointers: list[Place] = [*after.pointers, laid, weight]
        name, types = self.name("winograd"), ["float32"] * len(pointers)
        self.launch(winograd.product(name, shape, types, finish), pointers)

    def group_norm(self, group: Group) -> None:
        bound = bind(group.anchor)
        source, groups = bound["input"], bound["num_groups"]
        batch, channels, *spatial = val(source).shape
        positions, together = math.prod(spatial), channels // groups
        after = After(self, group, self.layout, _affine(bound), [source])

        def index(number: Expr, place: Expr, lanes: Lanes | None) -> Index:
            place = _at(place, lanes)
            channel = tirx.floormod(number, groups) * together + tirx.floordiv(place, positions)
            return tirx.floordiv(number, groups), channel, *unflattened(tirx.floormod(place, positions), spatial)

        def read(emitter: Emitter, buffers: Sequence[Buffer], number: Expr, place: Expr, lanes: Lanes | None) -> Expr:
            return after.value(emitter, buffers, source, index(number, place, lanes), lanes)

        def finish(
            emitter: Emitter, buffers: Sequence[Buffer], number: Expr, place: Expr, value: Expr, lanes: Lanes | None
        ) -> None:
            at = index(number, place, lanes)
            after.write(emitter, buffers, at, after.affine(emitter, buffers, value, at[1:2], lanes), lanes)

        size, pointers = together * positions, after.pointers
        name, types = self.name("group_norm"), ["float32"] * len(pointers)
        kernel = norm.layer_norm(name, self.isa, batch * groups, size, bound["eps"], types, read, finish)
        self.launch(kernel, pointers)

    def attention(self, group: Group) -> None:
        bound = bind(group.anchor)
        query, key, value, mask = (bound[name] for name in ("query", "key", "value", "attn_mask"))
        batch, heads, queries, depth = val(query).shape
        keys, values = val(key).shape[2], val(value).shape[3]
        shape = attention.Shape(batch, heads, heads, queries, keys, depth, values)
        after = After(self, group, self.layout, [], [query, key, value, *([mask] if mask is not None else [])])

        def element(source: fx.Node) -> attention.Load:
            def load(emitter: Emitter, buffers: Sequence[Buffer], index: Index, lanes: int) -> Expr:
                lane = vector_of(emitter, lanes) if lanes > 1 else None
                index = (*index[:3], _at(index[3], lane))
                return after.value(emitter, buffers, source, broadcast(index, val(source).shape), lane)

            return load

        def store(emitter: Emitter, buffers: Sequence[Buffer], index: Index, given: Expr) -> None:
            lanes = lanes_in(given)
            lane = vector_of(emitter, lanes) if lanes > 1 else None
            after.write(emitter, buffers, (*index[:3], _at(index[3], lane)), given, lane)

        masked = None if mask is None else attention.Mask(element(mask), val(mask).shape[2] != 1)
        scale = bound["scale"] if bound["scale"] is not None else depth**-0.5
        kernels, floats = attention.kernels(
            self.name("attention"),
            self.isa,
            shape,
            scale=scale,
            causal=bool(bound["is_causal"]),
            mask=masked,
            arguments=["float32"] * len(after.pointers),
            query=element(query),
            key=element(key),
            value=element(value),
            store=store,
        )
        workspace = self.take(floats)
        for kernel in kernels:
            self.launch(kernel, [*after.pointers, workspace])


_RULES: dict[str, Callable[[Builder, Group], None]] = {
    "attention": Builder.attention,
    "pointwise": Builder.pointwise,
    "cat": Builder.cat,
    "conv2d": Builder.conv2d,
    "linear": Builder.linear,
    "group_norm": Builder.group_norm,
    "winograd": Builder.winograd,
    "layer_norm": Builder.normalised,
    "rms_norm": Builder.normalised,
    "softmax": Builder.normalised,
}


class After:
    """What a kernel does with an element of its anchor: the chain of its group, and the write.

    Attributes
    ----------
    pointers : nodes whose memory the kernel touches: what it reads before and after the anchor, and its result last.
    """

    def __init__(
        self, builder: Builder, group: Group, layout: Layout, along: Sequence[fx.Node], before: Sequence[fx.Node]
    ) -> None:
        self.builder, self.group, self.layout = builder, group, layout
        self.strides = {node: strides for node, strides in builder.strides.items() if node is not group.result}
        # The anchor stands for the value at hand.
        self.strides[group.anchor] = (0,) * val(group.anchor).ndim
        self.shape = val(group.result).shape
        reads: list[fx.Node] = []
        for source in (*before, *along):
            tree = Tree(layout, Analyzer())
            index = [tirx.Var(f"b{dim}", "int32") for dim in range(val(source).ndim)]
            reads += [leaf.node for leaf in leaves(tree.of(source, tuple(index)))]
        index = [tirx.Var(f"d{dim}", "int32") for dim in range(len(self.shape))]
        if group.chain:
            tree = Tree(Layout(self.strides), Analyzer())
            reads += [leaf.node for leaf in leaves(tree.of(group.result, tuple(index)))]
        self.pointers: list[Place] = [*dict.fromkeys(node for node in reads if node is not group.anchor), group.result]

    def index(self, row: Expr, column: Expr, lanes: Lanes | None) -> Index:
        """Of the result's elements in a row, where the last dimension makes columns and the others rows."""
        return (*unflattened(row, self.shape[:-1]), _at(column, lanes))

    def buffer(self, buffers: Sequence[Buffer], node: fx.Node) -> Buffer:
        return buffers[self.pointers.index(node)]

    def reader(
        self, emitter: Emitter, buffers: Sequence[Buffer], given: Mapping[fx.Node, Expr] | None = None
    ) -> Reader:
        known = {node: buffers[place] for place, node in enumerate(self.pointers[:-1]) if isinstance(node, fx.Node)}
        return Reader(emitter, known, given)

    def value(
        self, emitter: Emitter, buffers: Sequence[Buffer], node: fx.Node, index: Index, lanes: Lanes | None
    ) -> Expr:
        """Elements of a node that the kernel reads beside its anchor's."""
        element = Tree(self.layout, emitter.analyzer).of(node, index)
        return emitter.spread(self.reader(emitter, buffers).value(element, lanes), lanes.count if lanes else 1)

    def affine(
        self, emitter: Emitter, buffers: Sequence[Buffer], value: Expr, index: Index, lanes: Lanes | None
    ) -> Expr:
        """Values times the anchor's weight plus its bias, where it has them."""
        bound = bind(self.group.anchor)
        if bound.get("weight") is not None:
            value = value * self.value(emitter, buffers, bound["weight"], index, lanes)
        if bound.get("bias") is not None:
            value = value + self.value(emitter, buffers, bound["bias"], index, lanes)
        return emitter.let(value)

    def write(
        self, emitter: Emitter, buffers: Sequence[Buffer], index: Index, value: Expr, lanes: Lanes | None
    ) -> None:
        """What becomes of elements of the anchor to where elements of the result lie."""
        if self.group.chain:
            element = Tree(Layout(self.strides), emitter.analyzer).of(self.group.result, index)
            value = self.reader(emitter, buffers, {self.group.anchor: value}).value(element, lanes)
        into = self.builder.layout.offset(self.group.result, index)
        elementwise.store(emitter, buffers[len(self.pointers) - 1], emitter.analyzer.simplify(into), value, lanes)


def _affine(bound: Mapping[str, Any]) -> list[fx.Node]:
    """The weight and the bias of a norm that has them."""
    return [bound[name] for name in ("weight", "bias") if bound.get(name) is not None]


def _pair(value: Sequence[int]) -> tuple[int, int]:
    """An option of a convolution for both dimensions: one number holds for both."""
    return value[0], value[-1]


def _at(column: Expr, lanes: Lanes | None) -> Expr:
    """The columns of the lanes."""
    return column if lanes is None else column + lanes.var
