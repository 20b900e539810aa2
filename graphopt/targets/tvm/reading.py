"""What a kernel computes of a graph, element by element: trees of pointwise operations over elements of buffers.

`Tree.of(node, index)` goes from an element of a node back to elements that lie in memory. In an index the place of a
vector's lanes is a variable like the loops' are; only when the tree is emitted does it show whether the elements of a
vector lie one after the other, are one and the same, or have to be gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx
from tvm import tirx
from tvm.sym import Analyzer, detect_linear_equation

from ...ir.program import bind, val
from .emit import Buffer, Emitter, Expr
from .operators import (
    CHANNELWISE,
    LOOKUPS,
    POINTWISE,
    POSITIONS,
    SAMPLED,
    VIEWS,
    Index,
    broadcast,
    computed_in,
    is_pointwise,
    looked_up,
    narrowed,
    view_source,
    weighted,
)


@dataclass(frozen=True, eq=False)
class Leaf:
    """An element of a node's memory.

    Attributes
    ----------
    offset : of the element, from where the node's memory begins.
    """

    node: fx.Node
    offset: Expr


@dataclass(frozen=True, eq=False)
class Position(Leaf):
    """A number that depends on the index alone: `offset` itself. Nothing is read from the node's memory."""


@dataclass(frozen=True, eq=False)
class Lookup(Leaf):
    """An element of a table in memory, of which an index tells the row. Rows that are not there hold not-a-number.

    Attributes
    ----------
    offset : of the element in row 0.
    row : the element that is the index.
    stride, rows : from one row to the next, and how many there are.
    """

    row: Any
    stride: int
    rows: int


@dataclass(frozen=True, eq=False)
class Apply:
    """A pointwise operation.

    Attributes
    ----------
    dtype : that operands are converted to.
    """

    rule: Callable[..., Expr]
    operands: tuple[Any, ...]
    dtype: str


Element: TypeAlias = Leaf | Apply


class Layout:
    """Where elements of nodes in memory lie: strides by node, in elements."""

    def __init__(self, strides: Mapping[fx.Node, Sequence[int]]) -> None:
        self.strides = strides

    def offset(self, node: fx.Node, index: Index) -> Expr:
        total: Expr = tirx.const(0, "int32")
        for entry, stride, size in zip(index, self.strides[node], val(node).shape, strict=True):
            if size != 1 and stride:
                total = total + entry * stride
        return total


class Tree:
    """Elements of nodes as trees over what is in memory.

    Parameters
    ----------
    layout : has the nodes that are in memory.
    analyzer : knows the bounds of the variables of indices.
    """

    def __init__(self, layout: Layout, analyzer: Analyzer) -> None:
        self.layout, self.analyzer = layout, analyzer
        self._known: dict[tuple[fx.Node, str], Element] = {}

    def of(self, node: fx.Node, index: Index) -> Element:
        index = tuple(self.analyzer.simplify(entry) for entry in index)
        key = node, str(index)
        if key not in self._known:
            self._known[key] = self._of(node, index)
        return self._known[key]

    def _of(self, node: fx.Node, index: Index) -> Element:
        if node in self.layout.strides:
            return Leaf(node, self.analyzer.simplify(self.layout.offset(node, index)))
        source = view_source(node)
        if source is not None:
            return self.of(source, VIEWS[node.target](node, source, index))
        assert is_pointwise(node), node
        bound, dtype = bind(node), computed_in(node)
        assert dtype is not None
        if node.target in POSITIONS:
            first, step = POSITIONS[node.target](bound)
            return Apply(
                POINTWISE[node.target],
                (Position(node, index[0] if index else tirx.const(0, "int32")), first, step),
                dtype,
            )
        if node.target in SAMPLED:
            taps = SAMPLED[node.target](node, bound["self"] if "self" in bound else bound["input"], index)
            places = [Position(node, place) for tap in taps for place, _, _ in tap.factors]
            source = bound["self"] if "self" in bound else bound["input"]
            return Apply(weighted(taps), (*(self.of(source, tap.index) for tap in taps), *places), dtype)
        if node.target in LOOKUPS:
            table, rows, dim, at = looked_up(node)
            row = self.of(rows, at(index))
            kept = (*index[:dim], tirx.const(0, "int32"), *index[dim + val(rows).ndim :])
            offset = self.analyzer.simplify(self.layout.offset(table, kept))
            lookup = Lookup(table, offset, row, self.layout.strides[table][dim], val(table).shape[dim])
            return Apply(POINTWISE[node.target], (lookup,), dtype)
        operands = [
            self.of(value, self._index(node, name, value, index)) if isinstance(value, fx.Node) else value
            for name, value in bound.items()
        ]
        rule = POINTWISE[node.target]
        return Apply(narrowed(rule) if val(node).dtype == torch.bfloat16 else rule, tuple(operands), dtype)

    def _index(self, node: fx.Node, name: str, operand: fx.Node, index: Index) -> Index:
        """Where an operand's element lies for the element of a pointwise operation: broadcast, or of its channel."""
        shape = val(operand).shape
        if name in CHANNELWISE.get(node.target, ()):
            return broadcast((index[1],) if len(index) > 1 else (tirx.const(0, "int32"),), shape)
        return broadcast(index, shape)


def reads(element: Element) -> list[fx.Node]:
    """The nodes whose memory an element is computed from, each once."""
    return list(dict.fromkeys(leaf.node for leaf in leaves(element) if not isinstance(leaf, Position)))


def leaves(element: Element) -> Iterator[Leaf]:
    """The elements in memory that an element is computed from; one that occurs several times, as often."""
    if isinstance(element, Leaf):
        yield element
        if isinstance(element, Lookup):
            yield from leaves(element.row)
    else:
        for operand in element.operands:
            if isinstance(operand, Leaf | Apply):
                yield from leaves(operand)


@dataclass(frozen=True)
class Lanes:
    """The variable that counts the lanes of a vector in indices, and how many they are."""

    var: Any
    count: int


def vector_of(emitter: Emitter, count: int) -> Lanes:
    """Lanes for a vector of so many elements."""
    lanes = Lanes(tirx.Var("lane", "int32"), count)
    emitter.bound(lanes.var, count)
    return lanes


Offset: TypeAlias = Callable[[Leaf], Expr]


class Reader:
    """Emits trees inside one kernel.

    Parameters
    ----------
    buffers : of the nodes in memory.
    given : values of nodes that the kernel has at hand, for `Leaf` elements of them, whatever their offset.
    """

    def __init__(
        self, emitter: Emitter, buffers: Mapping[fx.Node, Buffer], given: Mapping[fx.Node, Expr] | None = None
    ) -> None:
        self.emitter, self.buffers, self.given = emitter, buffers, given or {}

    def value(self, element: Element, lanes: Lanes | None = None, offset: Offset = lambda leaf: leaf.offset) -> Expr:
        """The value, as a vector where there are lanes."""
        return self._value(element, lanes, offset, {})

    def _value(self, element: Any, lanes: Lanes | None, offset: Offset, known: dict[Any, Expr]) -> Any:
        if isinstance(element, bool | int | float):
            count = lanes.count if lanes else 1
            return self.emitter.spread(float(element), count)
        if not isinstance(element, Leaf | Apply):
            return element
        if id(element) not in known:
            if isinstance(element, Leaf):
                found = self._leaf(element, lanes, offset, known)
            else:
                operands = [self._operand(operand, element.dtype, lanes, offset, known) for operand in element.operands]
                found = element.rule(self.emitter, *operands)
            known[id(element)] = self.emitter.let(found)
        return known[id(element)]

    def _operand(self, operand: Any, dtype: str, lanes: Lanes | None, offset: Offset, known: dict[Any, Expr]) -> Any:
        """Numbers stay numbers: a rule says whether they are factors or options."""
        if not isinstance(operand, Leaf | Apply):
            return operand
        value = self._value(operand, lanes, offset, known)
        converted = id(operand), dtype
        if converted not in known:
            known[converted] = self.emitter.let(self.emitter.cast(value, dtype))
        return known[converted]

    def _leaf(self, leaf: Leaf, lanes: Lanes | None, offset: Offset, known: dict[Any, Expr]) -> Expr:
        if isinstance(leaf, Position):
            return self._position(offset(leaf), lanes)
        if isinstance(leaf, Lookup):
            return self._lookup(leaf, lanes, offset, known)
        found = self.given.get(leaf.node)
        if found is None:
            found = self.load(self.buffers[leaf.node], offset(leaf), lanes)
            if val(leaf.node).dtype in (torch.bool, torch.bfloat16):
                found = self.emitter.cast(found, "float32")
        return found

    def _position(self, place: Expr, lanes: Lanes | None) -> Expr:
        """Through a register, of whose contents TVM's simplifications know nothing.

        TVM 0.27 fails at comparisons of vectors whose outcome it knows, and at integers of known bounds that become
        floating-point numbers.
        """
        if lanes is None:
            return self.emitter.get(self.emitter.register(tirx.convert(place)))
        start, step = lanes_of(self.emitter.analyzer, place, lanes)
        if step is not None:
            first, each = tirx.convert(start), tirx.const(step, "int32")
            vector = tirx.Ramp(first, each, lanes.count) if step else tirx.Broadcast(first, lanes.count)
        else:
            entries = [self.emitter.analyzer.simplify(substituted(place, {lanes.var: n})) for n in range(lanes.count)]
            vector = tirx.Shuffle(entries, [tirx.const(lane, "int32") for lane in range(lanes.count)])
        return self.emitter.get(self.emitter.register(vector))

    def _lookup(self, lookup: Lookup, lanes: Lanes | None, offset: Offset, known: dict[Any, Expr]) -> Expr:
        """Where all lanes are in one row, they are read like any elements; else one by one."""
        emitter, buffer, start = self.emitter, self.buffers[lookup.node], offset(lookup)

        def one(number: Expr, place: Expr, at: Lanes | None) -> Expr:
            inside = tirx.And(number >= 0, number < lookup.rows)
            safe = emitter.let(tirx.Cast("int32", tirx.Select(inside, number, tirx.const(0, "int64"))))
            found = self.load(buffer, emitter.analyzer.simplify(place + safe * lookup.stride), at)
            wide = at.count if at else 1
            return tirx.Select(emitter.spread(inside, wide), found, emitter.spread(float("nan"), wide))

        if lanes is None:
            return one(emitter.let(emitter.cast(self._value(lookup.row, None, offset, known), "int64")), start, None)
        firsts = {id(leaf): lanes_of(emitter.analyzer, offset(leaf), lanes) for leaf in leaves(lookup.row)}
        if all(step == 0 for _, step in firsts.values()):
            row = self._value(lookup.row, None, lambda leaf: firsts[id(leaf)][0], {})
            return one(emitter.let(emitter.cast(row, "int64")), start, lanes)
        row = emitter.let(emitter.cast(self._value(lookup.row, lanes, offset, known), "int64"))
        each = []
        for lane in range(lanes.count):
            number = emitter.let(tirx.Shuffle([row], [tirx.const(lane, "int32")]))
            each.append(one(number, substituted(start, {lanes.var: lane}), None))
        return tirx.Shuffle(each, [tirx.const(lane, "int32") for lane in range(lanes.count)])

    def load(self, buffer: Buffer, offset: Expr, lanes: Lanes | None) -> Expr:
        """The elements at an offset that depends on the lanes, however they lie."""
        if lanes is None:
            return self.emitter.load(buffer, offset)
        start, step = lanes_of(self.emitter.analyzer, offset, lanes)
        if step is not None:
            return self.emitter.load(buffer, start, lanes.count, step)
        each = [
            self.emitter.load(buffer, self.emitter.analyzer.simplify(substituted(offset, {lanes.var: lane})))
            for lane in range(lanes.count)
        ]
        return tirx.Shuffle(each, [tirx.const(lane, "int32") for lane in range(lanes.count)])


def lanes_of(analyzer: Analyzer, offset: Expr, lanes: Lanes) -> tuple[Expr, int | None]:
    """The offset of the first lane and the step from lane to lane; None for the step where there is no one step."""
    found = detect_linear_equation(offset, [lanes.var])
    if len(found) == 2 and isinstance(step := analyzer.simplify(found[0]), tirx.IntImm):
        return analyzer.simplify(found[1]), int(step)
    return offset, None


def substituted(expression: Expr, values: Mapping[Any, Expr | int]) -> Expr:
    """An expression with values for some of its variables."""
    given = [tirx.const(value, "int32") if isinstance(value, int) else value for value in values.values()]
    return tirx.IndexMap(list(values), [expression], None).map_indices(given)[0]


def strides_of(value: torch.Tensor) -> tuple[int, ...]:
    """A tensor's strides, in elements."""
    return tuple(int(stride) for stride in value.stride())
