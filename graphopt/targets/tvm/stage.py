"""From groups of a stage's nodes to kernels, and to what their pointers show to."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from tvm import tirx
from tvm.sym import Analyzer

from ...ir import products
from ...ir import winograd as winograd_
from ...ir.program import bind, val
from . import attention, conv, depthwise, elementwise, gemm, norm, reduction, tiling, winograd
from .contraction import BROADCAST, Contraction, contraction
from .dot import BFLOAT16, FLOAT32, Dot
from .emit import Buffer, Emitter, Expr, Kernel
from .emit import lanes_of as lanes_in
from .isa import Isa
from .operators import STORED, Index, broadcast, pads, pair, unflattened
from .places import Launch, Panels, Place, Scratch, Taps, Turned
from .plan import Group, plan
from .reading import Lanes, Layout, Leaf, Reader, Tree, lanes_of, strides_of, substituted, vector_of
from .reading import reads as reads_of
from .schedule import TORCH, Choice, Schedule, Space


class Builder:
    """Groups to kernels.

    Attributes
    ----------
    chosen : what was measured to be faster than the default, by group (`Builder.identity`).
    kernels : those of launches so far, by name.
    spaces : what groups so far could choose from, where there is a choice.
    """

    def __init__(self, isa: Isa, graph: fx.Graph, examples: Sequence[Any], chosen: Mapping[str, Choice]) -> None:
        self.isa, self.plan, self.chosen = isa, plan(graph), dict(chosen)
        self.spaces: dict[str, Space] = {}
        self.strides: dict[fx.Node, tuple[int, ...]] = {}
        for node in self.plan.memory:
            if isinstance(val(node), torch.Tensor):
                self.strides[node] = _apart(val(node))
        for node, example in zip(graph.find_nodes(op="placeholder"), examples, strict=True):
            if isinstance(example, torch.Tensor):
                self.strides[node] = _apart(example)
        self.layout = Layout(self.strides)
        self._asking = "", False  # the identity of the group at hand, and whether torch has an operator for it
        self.made = 0
        self.taken = 0
        self.known: dict[Hashable, tuple[list[Launch], dict[int, fx.Node]]] = {}
        self.launches: list[Launch] = []
        self.kernels: dict[str, Kernel] = {}

    def name(self, kind: str) -> str:
        self.made += 1
        return f"graphopt_{kind}_{self.made}"

    def named(self, kind: str, dot: Dot) -> str:
        """A name that says what is multiplied, if not float32."""
        return self.name(kind if dot == FLOAT32 else f"{kind}_{dot.name}")

    def launch(self, kernel: Kernel, pointers: Sequence[Place]) -> None:
        self.kernels[kernel.name] = kernel
        self.launches.append(Launch(kernel.name, tuple(pointers)))

    def group(self, group: Group) -> list[Launch]:
        """The launches that compute a group. Groups that differ only in which memory they touch share kernels."""
        signature, numbers, computed = self._signature(group)
        if signature not in self.known:
            self.launches, self._asking = [], (_digest(signature), _torch_has(group.anchor))
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

    def parts(self, step: Group | fx.Node) -> list[fx.Node | tuple[fx.Node, list[Launch]]]:
        """What computes a step of the plan: nodes that torch computes, or a result and launches."""
        if isinstance(step, fx.Node):
            return [step]
        launches = self.group(step)
        if self.choice(step) == TORCH:
            return list(self.computed(step))
        return [(step.result, launches)]

    def identity(self, group: Group) -> str:
        """The same for all groups, of whatever stage, that share kernels."""
        return _digest(self._signature(group)[0])

    def computed(self, group: Group) -> tuple[fx.Node, ...]:
        """The nodes that a group computes, in order."""
        return self._signature(group)[2]

    def choice(self, group: Group) -> Choice | None:
        """What was chosen for a group and is not its default; it has been built."""
        identity = self.identity(group)
        space, chosen = self.spaces.get(identity), self.chosen.get(identity)
        return chosen if space is not None and chosen in space and chosen != space.default else None

    @property
    def measured(self) -> list[Choice]:
        """What was chosen for groups, each by itself, and is not their default; all have been built."""
        choices = (self.choice(step) for step in self.plan.steps if isinstance(step, Group))
        return [choice for choice in choices if choice is not None]

    def anew(self, group: Group, schedule: Schedule) -> list[Launch]:
        """The launches that compute a group with another schedule."""
        signature = self._signature(group)[0]
        self.known.pop(signature, None)
        self.chosen[_digest(signature)] = schedule
        return self.group(group)

    def scheduled(self, space: Space) -> Schedule:
        """The schedule of the group at hand, which may choose from so much."""
        identity, torch_has_it = self._asking
        self.spaces[identity] = space = dataclasses.replace(space, torch=torch_has_it)
        chosen = self.chosen.get(identity)
        return chosen if isinstance(chosen, Schedule) and chosen in space else space.default

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
                met.append((shape, getattr(value, "dtype", None), self.strides.get(node), arguments))
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

    def contraction(self, group: Group) -> None:
        """A matrix product: of a weight, which is packed once, or of two computed factors."""
        found = contraction(group.anchor)
        assert found is not None
        sum_ = found
        left, bias, weight, dot = sum_.left, sum_.bias, group.kind == "linear", _dot(sum_.left)
        product = tiling.Product(sum_.rows, sum_.columns, sum_.terms, sum_.batch, dot)
        schedule = self.scheduled(tiling.choices(self.isa, product))
        wide = schedule.vectors * self.isa.lanes
        rows = sum_.batch_letters + sum_.row_letters
        laid, strides = self._in_rows(sum_, dot)
        direct = isinstance(laid, fx.Node) and dot == FLOAT32  # the epilogue may read it as what it is
        panels: Place = Panels(sum_.right, wide, group=dot.terms)
        if not weight:
            panels = self._packed(group, sum_, product, wide)
        after = After(self, group, self.layout, [bias] if bias is not None else [], [left] if direct else [])

        def row(emitter: Emitter, buffers: Sequence[Buffer], number: Expr) -> tuple[Buffer, Expr]:
            places = _places(sum_, rows, number) | dict.fromkeys(sum_.term_letters, tirx.const(0, "int32"))
            index = _index(sum_.left_dims, places)
            buffer = buffers[-2]
            if isinstance(laid, Scratch):
                offset = sum((entry * stride for entry, stride in zip(index, strides, strict=True)), start=index[0] * 0)
            else:
                leaf = Tree(self.layout, emitter.analyzer).of(left, index)
                assert isinstance(leaf, Leaf)
                offset, buffer = leaf.offset, after.buffer(buffers, leaf.node) if direct else buffer
            return buffer, emitter.analyzer.simplify(tirx.floordiv(offset, dot.terms))

        def finish(
            emitter: Emitter, buffers: Sequence[Buffer], number: Expr, column: Expr, value: Expr, lanes: Lanes | None
        ) -> None:
            if weight:
                index, shared = after.index(number, column, lanes), (_at(column, lanes),)
            else:
                columns = _places(sum_, sum_.column_letters, _at(column, lanes))
                index = _index(sum_.out, _places(sum_, rows, number) | columns)
                shared = index if bias is None else broadcast(index, val(bias).shape)
            if bias is not None:
                value = emitter.let(value + after.value(emitter, buffers, bias, shared, lanes))
            after.write(emitter, buffers, index, value, lanes)

        name, packed = self.named(group.kind, dot), [*([] if direct else [laid]), panels]
        pointers: list[Place] = [*after.pointers, *packed]
        types = [*stored(after.pointers), *[dot.stored] * len(packed)]
        self.launch(gemm.linear(name, self.isa, product, schedule, types, row, finish), pointers)

    def _in_rows(self, found: Contraction, dot: Dot) -> tuple[fx.Node | Scratch, tuple[int, ...]]:
        """The node in whose memory groups of the left factor's terms lie next to each other.

        If there is none, where it is copied to, and with which strides, in elements.
        """
        letters = dict.fromkeys(dim for dim in found.left_dims if dim != BROADCAST)
        places: dict[str, Expr] = {
            letter: tirx.Var(letter, "int32") if found.sizes[letter] != 1 else tirx.const(0, "int32")
            for letter in letters
        }
        leaf = Tree(self.layout, Analyzer()).of(found.left, _index(found.left_dims, places))
        terms = [letter for letter in found.term_letters if found.sizes[letter] != 1]
        if type(leaf) is Leaf and len(terms) < 2 and found.terms % dot.terms == 0:
            first = substituted(leaf.offset, {places[term]: 0 for term in terms})
            whole = Analyzer().can_prove_equal(tirx.floormod(first, dot.terms), 0)
            if whole and all(lanes_of(Analyzer(), leaf.offset, Lanes(places[term], 1))[1] == 1 for term in terms):
                return leaf.node, ()
        steps, step = {BROADCAST: 0}, 1
        for letter in reversed(found.term_letters):
            steps[letter] = step
            step *= found.sizes[letter]
        step = dot.groups(step) * dot.terms
        for letter in reversed(found.batch_letters + found.row_letters):
            steps[letter] = step
            step *= found.sizes[letter]
        strides = tuple(steps[letter] for letter in found.left_dims)
        laid = self.take(step // dot.terms)
        if found.terms % dot.terms:
            filled = elementwise.filled(self.name("fill"), self.isa, laid.floats, dot.stored, 0)
            self.launch(filled, [laid])
        kernel, reads = elementwise.pointwise(self.name("copy"), self.isa, found.left, self.layout, strides)
        self.launch(kernel, [*reads, laid])
        return laid, strides

    def _packed(self, group: Group, found: Contraction, product: tiling.Product, columns: int) -> Scratch:
        """A computed second factor in panels."""
        before = After(self, group, self.layout, [], [found.right])
        reads = list(before.pointers[:-1])
        panels = self.take(product.batch * -(-product.columns // columns) * columns * product.groups)

        def read(
            emitter: Emitter, buffers: Sequence[Buffer], item: Expr, term: Expr, column: Expr, lanes: Lanes | None
        ) -> Expr:
            places = _places(found, found.batch_letters, item) | _places(found, found.term_letters, term)
            places |= _places(found, found.column_letters, _at(column, lanes))
            return before.value(emitter, buffers, found.right, _index(found.right_dims, places), lanes)

        pointers: list[Place] = [*reads, panels]
        types = [*stored(reads), product.dot.stored]
        kernel = gemm.pack(self.named("pack", product.dot), self.isa, product, columns, types, read)
        self.launch(kernel, pointers)
        return panels

    def normalised(self, group: Group) -> None:
        bound = bind(group.anchor)
        source = bound["self" if group.kind == "softmax" else "input"]
        *leading, size = val(source).shape
        rows = val(source).numel() // size
        after = After(self, group, self.layout, _affine(bound), [source])
        across = _rows_touch(val(source), self.isa.lanes)

        def read(emitter: Emitter, buffers: Sequence[Buffer], number: Expr, column: Expr, lanes: Lanes | None) -> Expr:
            row, column = (_at(number, lanes), column) if across else (number, _at(column, lanes))
            return after.value(emitter, buffers, source, (*unflattened(row, leading), column), lanes)

        def finish(
            emitter: Emitter, buffers: Sequence[Buffer], number: Expr, column: Expr, value: Expr, lanes: Lanes | None
        ) -> None:
            value = after.affine(emitter, buffers, value, (_at(column, lanes),), lanes)
            after.write(emitter, buffers, after.index(number, column, lanes), value, lanes)

        over = norm.Rows(self.name(group.kind), self.isa, rows, size, stored(after.pointers), read, finish, across)
        if group.kind == "softmax":
            kernel = norm.softmax(over)
        else:
            eps = bound["eps"] if bound["eps"] is not None else float(torch.finfo(torch.float32).eps)
            rule = norm.layer_norm if group.kind == "layer_norm" else norm.rms_norm
            kernel = rule(over, eps)
        self.launch(kernel, after.pointers)

    def conv2d(self, group: Group) -> None:
        bound = bind(group.anchor)
        source, weight, bias = bound["input"], bound["weight"], bound["bias"]
        batch, channels, height, width = val(source).shape
        stride, padding, dilation = (pair(bound[name]) for name in ("stride", "padding", "dilation"))
        outputs, _, *kernel = val(weight).shape
        dot = _dot(source)
        together = dot.groups(channels)
        g = conv.Geometry(batch, together, height, width, outputs, (kernel[0], kernel[1]), stride, padding, dilation)
        layout = conv.Layout(g, self.isa.lanes)
        before = After(self, group, self.layout, [], [source])
        reads = list(before.pointers[:-1])
        laid = self.take(layout.size)

        def read(emitter: Emitter, buffers: Sequence[Buffer], index: Index, lanes: Lanes | None) -> Expr:
            if dot == FLOAT32:
                return before.value(emitter, buffers, source, index, lanes)
            batch, channel, *pixel = index

            def term(number: int) -> Expr:
                """Of a group; beyond the last channel there are zeros."""
                own = emitter.let(channel * dot.terms + number, "channel")
                if number <= (channels - 1) % dot.terms:
                    return before.value(emitter, buffers, source, (batch, own, *pixel), lanes)
                safe, count = emitter.let(tirx.min(own, channels - 1), "safe"), lanes.count if lanes else 1
                if isinstance(safe, tirx.Var):
                    emitter.bound(safe, channels)
                value = before.value(emitter, buffers, source, (batch, safe, *pixel), lanes)
                return tirx.Select(emitter.spread(own < channels, count), value, emitter.spread(0.0, count))

            return dot.group(emitter, [term(number) for number in range(dot.terms)])

        types = [*stored(reads), dot.stored]
        self.launch(conv.pad(self.named("pad", dot), layout, self.isa, types, read, dot), [*reads, laid])
        after, finish = self._sums(group, g, layout, bias, lambda index: index)
        taps = tuple(layout.tap(row, column) for row in range(kernel[0]) for column in range(kernel[1]))
        where = conv.Source(together * layout.channel, layout.channel, layout.columns, taps, layout.pixels)
        sizes = conv.Sizes(batch, together, outputs, dot)
        schedule = self.scheduled(conv.choices(self.isa, sizes, where))
        pointers: list[Place] = [*after.pointers, laid, Panels(weight, schedule.rows, group=dot.terms)]
        name, types = self.named("conv2d", dot), [*stored(after.pointers), dot.stored, dot.stored]
        self.launch(conv.convolution(name, self.isa, sizes, where, schedule, types, finish), pointers)

    def winograd(self, group: Group) -> None:
        bound = bind(group.anchor)
        source, weight, bias = bound["input"], bound["weight"], bound["bias"]
        batch, channels, height, width = val(source).shape
        padding, size, outputs = pair(bound["padding"]), bound["tile"], val(weight).shape[0]
        shape = winograd.Shape(self.isa, batch, channels, (height, width), outputs, padding, size)
        shape = dataclasses.replace(shape, schedule=self.scheduled(winograd.choices(shape)))
        before = After(self, group, self.layout, [], [source])
        reads = list(before.pointers[:-1])
        laid = self.take(shape.floats)

        def read(emitter: Emitter, buffers: Sequence[Buffer], index: Index, lanes: Lanes | None) -> Expr:
            return before.value(emitter, buffers, source, index, lanes)

        types = [*stored(reads), "float32"]
        self.launch(winograd.transform(self.name("winograd_input"), shape, types, read), [*reads, laid])
        after = After(self, group, self.layout, [bias] if bias is not None else [], [])

        def finish(emitter: Emitter, buffers: Sequence[Buffer], index: Index, value: Expr, lanes: Lanes | None) -> None:
            if bias is not None:
                value = value + after.value(emitter, buffers, bias, index[1:2], lanes)
            after.write(emitter, buffers, (*index[:3], _at(index[3], lanes)), emitter.let(value), lanes)

        pointers: list[Place] = [*after.pointers, laid, Taps(weight, shape.height, self.isa.lanes)]
        name, types = self.name("winograd"), stored(pointers)
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
        name, types = self.name("group_norm"), stored(pointers)
        rows = norm.Rows(name, self.isa, batch * groups, size, types, read, finish)
        self.launch(norm.layer_norm(rows, bound["eps"]), pointers)

    def attention(self, group: Group) -> None:
        bound = bind(group.anchor)
        query, key, value, mask = (bound[name] for name in ("query", "key", "value", "attn_mask"))
        *batch, queries, depth = val(query).shape
        rank, heads = len(batch), batch[1] if len(batch) > 1 else 1
        kv_heads = val(key).shape[1] if rank > 1 else 1
        keys, values = val(key).shape[-2], val(value).shape[-1]
        shape = attention.Shape(batch[0], heads, kv_heads, queries, keys, depth, values)
        after = After(self, group, self.layout, [], [query, key, value, *([mask] if mask is not None else [])])

        def own(index: Sequence[Expr]) -> Index:
            """Without the heads, of tensors that have none."""
            return tuple(index) if rank > 1 else (index[0], *index[2:])

        def element(source: fx.Node) -> attention.Load:
            def load(emitter: Emitter, buffers: Sequence[Buffer], index: attention.Index, lanes: int) -> Expr:
                lane = vector_of(emitter, lanes) if lanes > 1 else None
                at = broadcast(own((*index[:3], _at(index[3], lane))), val(source).shape)
                found = after.value(emitter, buffers, source, at, lane)
                if val(source).dtype != torch.bool:
                    return found
                seen = tirx.NE(found, emitter.spread(0.0, lanes))
                return tirx.Select(seen, emitter.spread(0.0, lanes), emitter.spread(float("-inf"), lanes))

            return load

        def store(emitter: Emitter, buffers: Sequence[Buffer], index: attention.Index, given: Expr) -> None:
            lanes = lanes_in(given)
            lane = vector_of(emitter, lanes) if lanes > 1 else None
            after.write(emitter, buffers, own((*index[:3], _at(index[3], lane))), given, lane)

        masked = None if mask is None else attention.Mask(element(mask), val(mask).shape[-2] != 1)
        scale = bound["scale"] if bound["scale"] is not None else depth**-0.5
        kernels, floats = attention.kernels(
            self.name("attention"),
            self.isa,
            shape,
            scale=scale,
            causal=bool(bound["is_causal"]),
            mask=masked,
            arguments=stored(after.pointers),
            query=element(query),
            key=element(key),
            value=element(value),
            store=store,
        )
        workspace = self.take(floats)
        for kernel in kernels:
            self.launch(kernel, [*after.pointers, workspace])

    def stack(self, group: Group) -> None:
        node = group.result
        bound, strides = bind(node), self.strides[node]
        dim = bound["dim"] % val(node).ndim
        rest = (*strides[:dim], *strides[dim + 1 :])
        for place, part in enumerate(bound["tensors"]):
            kernel, reads = elementwise.pointwise(
                self.name("stack"), self.isa, node, self.layout, rest, source=part, offset=place * strides[dim]
            )
            self.launch(kernel, [*reads, node])

    def scatter(self, group: Group) -> None:
        """A copy, and then a part of it anew."""
        node = group.result
        bound, strides, shape = bind(node), self.strides[node], val(node).shape
        dim = bound["dim"] % len(shape)
        if "index" in bound:
            start, rest = bound["index"] % shape[dim], (*strides[:dim], *strides[dim + 1 :])
        else:
            start, _, step = slice(bound["start"], bound["end"], bound["step"]).indices(shape[dim])
            rest = (*strides[:dim], strides[dim] * step, *strides[dim + 1 :])
        parts = (bound["self"], strides, 0), (bound["src"], rest, start * strides[dim])
        for part, steps, offset in parts if val(bound["src"]).numel() else parts[:1]:
            kernel, reads = elementwise.pointwise(
                self.name("scatter"), self.isa, node, self.layout, steps, source=part, offset=offset
            )
            self.launch(kernel, [*reads, node])

    def pad(self, group: Group) -> None:
        """The number all over, and then what is inside."""
        node = group.result
        bound, strides = bind(node), self.strides[node]
        span = 1 + sum((size - 1) * stride for size, stride in zip(val(node).shape, strides, strict=True))
        self.launch(elementwise.filled(self.name("fill"), self.isa, span, "float32", bound["value"] or 0.0), [node])
        if val(bound["self"]).numel():
            offset = sum(before * strides[dim] for dim, (before, _) in pads(node).items())
            kernel, reads = elementwise.pointwise(
                self.name("pad"), self.isa, node, self.layout, strides, source=bound["self"], offset=offset
            )
            self.launch(kernel, [*reads, node])

    def reduction(self, group: Group) -> None:
        bound = bind(group.anchor)
        source = bound["self"]
        shape = val(source).shape
        rank = len(shape)
        given = bound.get("dim")
        given = [given] if isinstance(given, int) else given
        dims = sorted(dim % rank for dim in given) if given else list(range(rank))
        kept = [dim for dim in range(rank) if dim not in dims]
        sizes = [shape[dim] for dim in kept], [shape[dim] for dim in dims]
        correction = bound.get("correction", int(bound.get("unbiased", True)))
        what = reduction.Reduction(
            math.prod(sizes[0]),
            math.prod(sizes[1]),
            _REDUCED[str(group.anchor.target).split(".")[1]],
            rank > 0 and rank - 1 not in dims,
            1 if correction is None else correction,
        )
        after = After(self, group, self.layout, [], [source])

        def read(
            emitter: Emitter,
            buffers: Sequence[Buffer],
            number: Expr,
            lanes: Lanes | None,
            place: Expr,
            along: Lanes | None,
        ) -> Expr:
            index: list[Expr] = [tirx.const(0, "int32")] * rank
            for dim, entry in zip(kept, unflattened(_at(number, lanes), sizes[0]), strict=True):
                index[dim] = entry
            for dim, entry in zip(dims, unflattened(_at(place, along), sizes[1]), strict=True):
                index[dim] = entry
            return after.value(emitter, buffers, source, tuple(index), lanes or along)

        def finish(emitter: Emitter, buffers: Sequence[Buffer], number: Expr, value: Expr, lanes: Lanes | None) -> None:
            index = unflattened(_at(number, lanes), val(group.anchor).shape)
            after.write(emitter, buffers, index, value, lanes)

        name, types = self.name("reduction"), stored(after.pointers)
        self.launch(reduction.reduction(name, self.isa, what, types, read, finish), after.pointers)

    def softmax_across(self, group: Group) -> None:
        bound = bind(group.anchor)
        source, shape = bound["self"], val(bound["self"]).shape
        dim = bound["dim"] % len(shape)
        others = [*shape[:dim], *shape[dim + 1 :]]
        after = After(self, group, self.layout, [], [source])

        def index(number: Expr, place: Expr, lanes: Lanes | None) -> Index:
            rest = unflattened(number, others)
            return (*rest[:dim], _at(place, lanes), *rest[dim:])

        self._over_rows(group, after, norm.softmax, source, math.prod(others), shape[dim], index)

    def layer_norm_of_blocks(self, group: Group) -> None:
        bound = bind(group.anchor)
        source, shape, rank = bound["input"], val(bound["input"]).shape, len(bound["normalized_shape"])
        leading, block = shape[:-rank], shape[-rank:]
        after = After(self, group, self.layout, _affine(bound), [source])

        def index(number: Expr, place: Expr, lanes: Lanes | None) -> Index:
            return (*unflattened(number, leading), *unflattened(_at(place, lanes), block))

        rule = functools.partial(norm.layer_norm, eps=bound["eps"])
        self._over_rows(group, after, rule, source, math.prod(leading), math.prod(block), index, rank)

    def _over_rows(
        self,
        group: Group,
        after: After,
        rule: Callable[[norm.Rows], Kernel],
        source: fx.Node,
        rows: int,
        size: int,
        index: Callable[[Expr, Expr, Lanes | None], Index],
        affine: int = 0,
    ) -> None:
        """A rule of `norm` over rows that lie wherever `index` says; the last `affine` dimensions index the weight."""

        def read(emitter: Emitter, buffers: Sequence[Buffer], number: Expr, place: Expr, lanes: Lanes | None) -> Expr:
            return after.value(emitter, buffers, source, index(number, place, lanes), lanes)

        def finish(
            emitter: Emitter, buffers: Sequence[Buffer], number: Expr, place: Expr, value: Expr, lanes: Lanes | None
        ) -> None:
            at = index(number, place, lanes)
            value = after.affine(emitter, buffers, value, at[len(at) - affine :], lanes) if affine else value
            after.write(emitter, buffers, at, value, lanes)

        over = norm.Rows(self.name(group.kind), self.isa, rows, size, stored(after.pointers), read, finish)
        self.launch(rule(over), after.pointers)

    def convolution(self, group: Group) -> None:
        """Of one or three dimensions, or in groups: planes of an input of one depth or more, of one row or more."""
        bound = bind(group.anchor)
        source, weight, groups = bound["input"], bound["weight"], bound["groups"]
        batch, channels, *sizes = val(source).shape
        outputs, inner, *kernel = val(weight).shape
        (deep, height, width), (taps, *kernel) = _lifted(sizes, 1), _lifted(kernel, 1)
        (along, *stride), (before, *padding), (apart, *dilation) = (
            _lifted(_each(bound[name], len(sizes)), fill)
            for name, fill in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        results = _lifted(val(group.anchor).shape[2:], 1)
        planes = (results[0] - 1) * along + (taps - 1) * apart + 1

        def read(
            before_: After, emitter: Emitter, buffers: Sequence[Buffer], index: Index, lanes: Lanes | None
        ) -> Expr:
            plane, channel, row, column = index
            if len(sizes) < 3:
                place = (plane, channel, *((row,) if len(sizes) > 1 else ()), column)
                return before_.value(emitter, buffers, source, place, lanes)
            depth = emitter.let(tirx.floormod(plane, planes) - before)
            inside = tirx.And(depth >= 0, depth < deep)
            safe = emitter.let(tirx.max(0, tirx.min(depth, deep - 1)))
            emitter.bound(safe, deep)
            place = (tirx.floordiv(plane, planes), channel, safe, row, column)
            value = before_.value(emitter, buffers, source, place, lanes)
            count = lanes.count if lanes else 1
            return tirx.Select(emitter.spread(inside, count), value, emitter.spread(0.0, count))

        g = conv.Geometry(
            batch * planes, channels, height, width, outputs,
            (kernel[0], kernel[1]), (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]),
        )  # fmt: skip
        layout = conv.Layout(g, self.isa.lanes)
        laid = self._laid(group, layout, source, read)
        plane = channels * layout.channel
        steps = [
            depth * apart * plane + layout.tap(row, column)
            for depth in range(taps)
            for row in range(kernel[0])
            for column in range(kernel[1])
        ]
        # Depths follow one another; from one image to the next there are more planes than that.
        separate = taps > 1 or along > 1
        count = results[0] if separate else batch * results[0]
        where = conv.Source(along * plane, layout.channel, layout.columns, tuple(steps), layout.pixels)
        size = conv.Sizes(count, channels, outputs)
        schedule = None if groups > 1 else self.scheduled(conv.choices(self.isa, size, where))
        panels = Panels(weight, 1 if schedule is None else schedule.rows)
        for image in range(batch if separate else 1):
            offsets = tuple(image * planes * plane + step for step in steps)
            where = dataclasses.replace(where, taps=offsets)

            def at(index: Index, image: int = image) -> Index:
                item, channel, *pixel = index
                item = item + image * count
                depth = (tirx.floormod(item, results[0]),) if len(sizes) == 3 else ()
                return (tirx.floordiv(item, results[0]), channel, *depth, *pixel[-min(len(sizes), 2) :])

            after, finish = self._sums(group, g, layout, bound["bias"], at)
            pointers: list[Place] = [*after.pointers, laid, panels]
            name, types = self.name(group.kind), stored(pointers)
            if schedule is None:
                kernel_ = depthwise.convolution(name, self.isa, count, inner, outputs, groups, where, types, finish)
            else:
                kernel_ = conv.convolution(name, self.isa, size, where, schedule, types, finish)
            self.launch(kernel_, pointers)

    def transposed_convolution(self, group: Group) -> None:
        """As one convolution of the input for each phase of the outputs: see `conv.phases`."""
        bound = bind(group.anchor)
        source, weight = bound["input"], bound["weight"]
        batch, channels, height, width = val(source).shape
        _, outputs, *kernel = val(weight).shape
        stride, padding, dilation = (pair(bound[name]) for name in ("stride", "padding", "dilation"))
        down, right = (
            conv.phases(*sizes)
            for sizes in zip(val(group.anchor).shape[2:], kernel, stride, padding, dilation, strict=True)
        )
        above, below = conv.frame(down, height)
        left, beyond = conv.frame(right, width)
        g = conv.Geometry(batch, channels, height, width, outputs, (1, 1), (1, 1), (above, left), (1, 1))
        layout = conv.Framed(g, self.isa.lanes, (below, beyond))

        def read(before: After, emitter: Emitter, buffers: Sequence[Buffer], index: Index, lanes: Lanes | None) -> Expr:
            return before.value(emitter, buffers, source, index, lanes)

        reached = any(row.taps for row in down) and any(column.taps for column in right)
        laid = self._laid(group, layout, source, read) if reached else None
        for rows, columns in itertools.product(down, right):

            def at(index: Index, first: tuple[int, int] = (rows.first, columns.first)) -> Index:
                item, channel, row, column = index
                return item, channel, row * stride[0] + first[0], column * stride[1] + first[1]

            after, finish = self._sums(group, g, layout, bound["bias"], at)
            name, pixels = self.name(group.kind), (rows.count, columns.count)
            if laid is None or not rows.taps or not columns.taps:
                types = stored(after.pointers)
                empty = conv.without_taps(name, self.isa, batch, outputs, pixels, types, finish)
                self.launch(empty, after.pointers)
                continue
            taps = tuple(layout.tap(row, column) for row in rows.shifts for column in columns.shifts)
            where = conv.Source(channels * layout.channel, layout.channel, layout.columns, taps, pixels)
            size = conv.Sizes(batch, channels, outputs)
            schedule = conv.choices(self.isa, size, where).default  # phases differ: there is no one choice for all
            panels = Turned(weight, schedule.rows, rows.taps, columns.taps)
            pointers: list[Place] = [*after.pointers, laid, panels]
            types = stored(pointers)
            self.launch(conv.convolution(name, self.isa, size, where, schedule, types, finish), pointers)

    def _laid(self, group: Group, layout: conv.Layout, source: fx.Node, read: Callable[..., Expr]) -> Scratch:
        """The input of a convolution, laid out."""
        before = After(self, group, self.layout, [], [source])
        laid = self.take(layout.size)
        pointers: list[Place] = [*before.pointers[:-1], laid]

        def element(emitter: Emitter, buffers: Sequence[Buffer], index: Index, lanes: Lanes | None) -> Expr:
            return read(before, emitter, buffers, index, lanes)

        self.launch(conv.pad(self.name("pad"), layout, self.isa, stored(pointers), element), pointers)
        return laid

    def _sums(
        self, group: Group, g: conv.Geometry, layout: conv.Layout, bias: fx.Node | None, at: Callable[[Index], Index]
    ) -> tuple[After, conv.Finish]:
        """What becomes of sums of a convolution; `at` is where in the result they belong."""
        after = After(self, group, self.layout, [bias] if bias is not None else [], [])

        def finish(emitter: Emitter, buffers: Sequence[Buffer], index: Index, value: Expr, lanes: Lanes | None) -> None:
            place = (*index[:3], _at(index[3], lanes))
            if layout.flat:
                place = (*index[:2], *unflattened(place[3], (g.rows, g.columns)))
            if bias is not None:
                value = value + after.value(emitter, buffers, bias, index[1:2], lanes)
            after.write(emitter, buffers, at(place), emitter.let(value), lanes)

        return after, finish


_RULES: dict[str, Callable[[Builder, Group], None]] = {
    "attention": Builder.attention,
    "pointwise": Builder.pointwise,
    "cat": Builder.cat,
    "conv2d": Builder.conv2d,
    "narrow_conv2d": Builder.conv2d,
    "contraction": Builder.contraction,
    "convolution": Builder.convolution,
    "grouped_convolution": Builder.convolution,
    "transposed_convolution": Builder.transposed_convolution,
    "layer_norm_of_blocks": Builder.layer_norm_of_blocks,
    "linear": Builder.contraction,
    "pad": Builder.pad,
    "reduction": Builder.reduction,
    "scatter": Builder.scatter,
    "softmax_across": Builder.softmax_across,
    "stack": Builder.stack,
    "group_norm": Builder.group_norm,
    "winograd": Builder.winograd,
    "layer_norm": Builder.normalised,
    "rms_norm": Builder.normalised,
    "softmax": Builder.normalised,
}


# What a reduction is, by the operator's name.
_REDUCED = {
    **{name: name for name in ("mean", "sum", "amax", "amin", "var", "std")},
    "linalg_vector_norm": "norm",
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
            reads += reads_of(tree.of(source, tuple(index)))
        index = [tirx.Var(f"d{dim}", "int32") for dim in range(len(self.shape))]
        if group.chain:
            tree = Tree(Layout(self.strides), Analyzer())
            reads += reads_of(tree.of(group.result, tuple(index)))
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


def _apart(value: torch.Tensor) -> tuple[int, ...]:
    """A tensor's strides; where elements share memory, those that a copy of it has, in which they do not."""
    reach = 0
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1 and stride <= reach:
            return strides_of(torch.empty(value.shape, device="meta"))
        reach += (size - 1) * stride
    return strides_of(value)


def stored(pointers: Sequence[Place]) -> list[str]:
    """Dtypes of what pointers show to."""
    return [STORED[val(place).dtype] if isinstance(place, fx.Node) else "float32" for place in pointers]


def _dot(factor: fx.Node) -> Dot:
    """How a product multiplies, by what it multiplies."""
    return BFLOAT16 if val(factor).dtype == torch.bfloat16 else FLOAT32


def _torch_has(anchor: fx.Node) -> bool:
    """Whether torch has an operator for what a group is around."""
    return anchor.target not in (winograd_.conv2d, products.linear, products.matmul, products.conv2d)


def _digest(signature: Hashable) -> str:
    return hashlib.sha256(repr(signature).encode()).hexdigest()


def _places(found: Contraction, letters: str, number: Expr) -> dict[str, Expr]:
    """The places in some dimensions of the element with this row-major number."""
    return dict(zip(letters, unflattened(number, [found.sizes[letter] for letter in letters]), strict=True))


def _index(dims: str, places: Mapping[str, Expr]) -> Index:
    return tuple(tirx.const(0, "int32") if dim == BROADCAST else places[dim] for dim in dims)


def _lifted(sizes: Sequence[int], fill: int) -> list[int]:
    """Of three dimensions where there are fewer."""
    return [*[fill] * (3 - len(sizes)), *sizes]


def _each(value: Sequence[int], dims: int) -> list[int]:
    """An option of a convolution for all dimensions: one number holds for all."""
    return list(value) * dims if len(value) == 1 else list(value)


def _rows_touch(value: torch.Tensor, lanes: int) -> bool:
    """Whether rows lie next to each other in memory, and not the elements of a row, and vectors go over no ends."""
    *_, rows, size = (1, *value.shape)
    *_, down, right = (0, *value.stride())
    return down == 1 != right and rows % lanes == 0 and size % lanes == 0


def _at(column: Expr, lanes: Lanes | None) -> Expr:
    """The columns of the lanes."""
    return column if lanes is None else column + lanes.var
