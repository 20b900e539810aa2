"""``view(…view(x)…)  →  view(x)``, and ``→ x`` where the chain gives x back: as few views as say the same.

where: a view reads the elements that its shape, strides and offset name: one that has those of a node it is a view of
    *is* that node. Neighbours of one kind (reshapes, permutations, expansions), the inner one read by nobody else,
    become one view where that has the same strides.
because: no data moves, but each view is a call; and patterns of other passes see linear → linear instead of
    linear → view → view → linear.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     transpose = ops.aten.transpose.int(x, 1, 2)
...     transpose_1 = ops.aten.transpose.int(transpose, 1, 2)
...     view = ops.aten.view.default(transpose_1, [6, 4])
...     view_1 = ops.aten.view.default(view, [3, 8])
...     return (view_1,)
... ''', x="f32[2, 3, 4]")
>>> print(before.rewritten(SimplifyViews()).body)
view_1 = ops.aten.view.default(x, [3, 8])  # f32[3, 8]
return (view_1,)
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..ir.program import Program, bind, shape, val
from ..ir.rewrite import Match, Pass, Refusal

aten = torch.ops.aten

_RESHAPES = frozenset(
    {
        aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.default,
        aten.squeeze.dim, aten.squeeze.dims,
    }
)  # fmt: skip
_PERMUTATIONS = frozenset({aten.permute.default, aten.transpose.int, aten.t.default})
_EXPANSIONS = frozenset({aten.expand.default})
_KINDS = (_RESHAPES, _PERMUTATIONS, _EXPANSIONS)

# Views that never copy; reshape, contiguous and flatten may, and give elements another place.
_VIEWS = frozenset(
    {
        *_RESHAPES, *_PERMUTATIONS, *_EXPANSIONS, aten.slice.Tensor, aten.select.int, aten.alias.default,
        aten.detach.default, aten.narrow.default, aten.split.Tensor, aten.split_with_sizes.default,
        aten.chunk.default, aten.unbind.int, aten.diagonal.default, aten.unfold.default, aten.as_strided.default,
    }
)  # fmt: skip


@dataclass(frozen=True)
class SimplifyViews(Pass):
    """As few views as say the same; bitwise."""

    def find(self, program: Program) -> Iterable[Match]:
        for node in program.calls():
            place = _place(node)  # None for the list that a split gives: lists are not compared
            same = [source for source in _sources(node) if place is not None and _place(source) == place]
            if same:
                yield Match(node, (same[-1],), {"same": same[-1]})
            elif inner := _run(node):
                yield Match(node, tuple(inner))

    def legal(self, program: Program, match: Match) -> Refusal | None:
        if "same" not in match.captures:
            target, source, *args = _merged(match.root, match.nodes)
            if any(isinstance(n, torch.SymInt) for n in args[0]):
                return Refusal("sizes are symbolic", match.root)
            if _geometry(target(val(source), *args)) != _place(match.root):
                return Refusal("a single view of the source has other strides", match.root)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        node = match.root
        between = list(_sources(node))
        if "same" in match.captures:
            between = between[: between.index(match["same"])]
            program.replace(node, match["same"])
        else:
            node.target, source, *args = _merged(node, match.nodes)
            node.args, node.kwargs = (source, *args), {}
            program.touch(node)
        for view in between:
            if view.op == "call_function" and not view.users:
                program.graph.erase_node(view)


def _geometry(value: Any) -> tuple[Any, ...] | None:
    if not isinstance(value, torch.Tensor):
        return None
    return value.dtype, tuple(value.shape), tuple(value.stride()), value.storage_offset()


def _place(node: fx.Node) -> tuple[Any, ...] | None:
    """What elements of its memory a node consists of."""
    return _geometry(val(node))


def _sources(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that `node` is a view of, the nearest first; none for a node that is no view."""
    while True:
        viewed = node.all_input_nodes[:1] if node.target is operator.getitem else [node]
        if not any(entry.target in _VIEWS for entry in viewed):
            return
        node = node.all_input_nodes[0]
        yield node


def _run(node: fx.Node) -> list[fx.Node]:
    """The views right below `node` that are of its kind and that nobody else reads, the nearest first."""
    kind = next((kind for kind in _KINDS if node.target in kind), frozenset())
    found: list[fx.Node] = []
    while (source := (found[-1] if found else node).all_input_nodes[0:1]) and source[0].target in kind:
        if len(source[0].users) > 1:
            break
        found.append(source[0])
    return found


def _merged(node: fx.Node, inner: tuple[fx.Node, ...]) -> tuple[Any, ...]:
    """Target and arguments of one view that says the same as `node` of `inner`."""
    source = inner[-1].all_input_nodes[0]
    if node.target in _PERMUTATIONS:
        dims = list(range(len(shape(source))))
        for each in (*reversed(inner), node):
            dims = [dims[i] for i in _permutation(each, len(dims))]
        return aten.permute.default, source, dims
    return (aten.expand.default if node.target in _EXPANSIONS else aten.view.default), source, list(shape(node))


def _permutation(node: fx.Node, rank: int) -> list[int]:
    bound, dims = bind(node), list(range(rank))
    if node.target is aten.permute.default:
        return [dims[d] for d in bound["dims"]]
    a, b = (bound["dim0"], bound["dim1"]) if node.target is aten.transpose.int else (0, -1)
    dims[a], dims[b] = dims[b], dims[a]
    return dims
