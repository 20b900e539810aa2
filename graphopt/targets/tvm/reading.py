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
from .operators import POINTWISE, VIEWS, Index, broadcast, is_pointwise, view_source


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
class Apply:
    """A pointwise operation."""

    rule: Callable[..., Expr]
    operands: tuple[Any, ...]


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
        operands = [
            self.of(value, broadcast(index, val(value).shape)) if isinstance(value, fx.Node) else value
            for value in bind(node).values()
        ]
        return Apply(POINTWISE[node.target], tuple(operands))


def leaves(element: Element) -> Iterator[Leaf]:
    """The elements in memory that an element is computed from; one that occurs several times, as often."""
    if isinstance(element, Leaf):
        yield element
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

    def _value(self, element: Any, lanes: Lanes | None, offset: Offset, known: dict[int, Expr]) -> Any:
        if isinstance(element, bool | int | float):
            count = lanes.count if lanes else 1
            return self.emitter.spread(float(element), count)
        if not isinstance(element, Leaf | Apply):
            return element
        if id(element) not in known:
            if isinstance(element, Leaf):
                found = self.given.get(element.node)
                if found is None:
                    found = self.load(self.buffers[element.node], offset(element), lanes)
            else:
                found = element.rule(
                    self.emitter, *(self._operand(operand, lanes, offset, known) for operand in element.operands)
                )
            known[id(element)] = self.emitter.let(found)
        return known[id(element)]

    def _operand(self, operand: Any, lanes: Lanes | None, offset: Offset, known: dict[int, Expr]) -> Any:
        """Numbers stay numbers: a rule says whether they are factors or options."""
        return self._value(operand, lanes, offset, known) if isinstance(operand, Leaf | Apply) else operand

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
