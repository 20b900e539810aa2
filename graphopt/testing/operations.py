"""Single operations on whatever values there are: how random Programs grow where they resemble no model."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphopt.ir.effects import has_effect
from graphopt.ir.program import val
from graphopt.testing.growing import Grower, Unfit, sizes

aten = torch.ops.aten


def unary(g: Grower) -> None:
    """A function of each element."""
    operators = aten.silu, aten.gelu, aten.tanh, aten.sin, aten.cos, aten.relu, aten.neg, aten.sigmoid
    g.add(g.of(*operators).default, g.pick())


def binary(g: Grower) -> None:
    """A sum, difference or product with a tensor or a number."""
    left = g.pick()
    g.add(g.of(aten.add, aten.mul, aten.sub).Tensor, left, g.of(g.beside(left), g.beside(left), 0.5, 2))


def identity(g: Grower) -> None:
    """An operation that gives its argument back, or nearly."""
    source = g.pick(lambda value: value.ndim > 0 and value.dtype != torch.bool)
    g.add(
        *g.of(
            (aten.clone.default, source), (aten.mul.Tensor, source, 1), (aten.div.Tensor, source, 1.0),
            (aten.add.Tensor, source, 0), (aten.sub.Tensor, source, 0), (aten.alias.default, source),
            (aten.pow.Tensor_Scalar, source, 1), (aten.slice.Tensor, source, 0, 0, 2**62), (aten.neg.default, source),
            (aten._to_copy.default, source), (aten.repeat.default, source, [1] * val(source).ndim),
            (aten.contiguous.default, source), (aten.dropout.default, source, 0.5, False), (aten.cat.default, [source]),
        )
    )  # fmt: skip


def cast(g: Grower) -> None:
    """Another dtype, and sometimes back."""
    kind = g.of(torch.float32, torch.float64, torch.bfloat16, torch.float16)
    source = g.pick(lambda value: value.dtype != torch.bfloat16)
    narrowed = g.add(aten._to_copy.default, source, dtype=kind)
    if g.choose(3) == 0:
        g.add(aten._to_copy.default, narrowed, dtype=val(source).dtype)


def view(g: Grower) -> None:
    """A view, or a reshape."""
    source = g.pick(lambda value: value.ndim > 0)
    rank = val(source).ndim
    dims = [g.choose(rank), g.choose(rank)]
    kinds: tuple[Callable[[], tuple[Any, ...]], ...] = (
        lambda: (aten.transpose.int, source, *dims), lambda: (aten.transpose.int, source, *dims),
        lambda: (aten.unsqueeze.default, source, dims[0]), lambda: (aten.squeeze.dim, source, dims[0]),
        lambda: (aten.view.default, source, [-1]), lambda: (aten.view.default, source, [g.size(source, 0), -1, 8]),
        lambda: (aten.view.default, source, [g.size(source, 0), -1, 2, 4]),
        lambda: (aten.view.default, source, g.shape(source)), lambda: (aten.reshape.default, source, [-1, 8]),
        lambda: (aten.expand.default, source, [2, *g.shape(source)]),
        lambda: (aten.permute.default, source, list(range(rank))[::-1]),
        lambda: (aten.expand.default, source, g.shape(source)), lambda: (aten.clone.default, source),
        lambda: (aten.select.int, source, dims[0], 0), lambda: (aten.flatten.using_ints, source, 0, min(1, rank - 1)),
    )  # fmt: skip
    g.add(*g.of(*kinds)())


def slices(g: Grower) -> None:
    """Part of a dimension."""
    source = g.pick(lambda value: value.ndim > 0)
    start = g.choose(2)
    g.add(aten.slice.Tensor, source, g.choose(val(source).ndim), start, start + 1 + g.choose(8))


def split(g: Grower) -> None:
    """All parts of a dimension."""
    source, dim = g.pick(lambda value: value.ndim > 1), -1 - g.choose(2)
    if not isinstance(sizes(val(source))[dim], int):
        raise Unfit
    parts = g.add(*g.of((aten.split.Tensor, source, g.of(2, 4, 8), dim), (aten.chunk.default, source, 2, dim)))
    for position in range(len(val(parts))):
        g.add(operator.getitem, parts, position)


def cat(g: Grower) -> None:
    """A concatenation of one to three values."""
    first = g.pick(lambda value: value.ndim > 0)
    rows = sizes(val(first))[:-1]
    others = [g.pick(lambda v: v.ndim > 0 and sizes(v)[:-1] == rows) for _ in range(g.choose(3))]
    g.add(aten.cat.default, [first, *others], -1)


def again(g: Grower) -> None:
    """An operation that is there already."""
    calls = [node for node in g.values if node.op == "call_function" and not has_effect(node)]
    if calls:
        node: fx.Node = calls[g.choose(len(calls))]
        g.add(node.target, *node.args, **node.kwargs)


def boolean(g: Grower) -> None:
    """A choice by a comparison of integers."""
    whole = g.pick(lambda value: value.dtype in (torch.int64, torch.bool))
    condition = g.add(aten.gt.Scalar, whole, g.choose(4))
    if g.choose(2):
        condition = g.add(aten.logical_not.default, condition)
    g.add(aten.where.ScalarSelf, condition, g.choose(2), g.beside(condition))


def integer(g: Grower) -> None:
    """Arithmetic of integers, and a table that is read by it."""
    whole = g.pick(lambda value: value.dtype == torch.int64)
    operation, number = g.of((aten.mul, 1), (aten.add, 0), (aten.add, 1), (aten.sub, 0))
    changed = g.add(operation.Tensor, whole, number)
    if g.choose(2):
        g.add(aten.embedding.default, g.inputs["w_table"], g.add(aten.remainder.Scalar, changed, 8))


def constant(g: Grower) -> None:
    """A tensor that depends on nothing."""
    source = g.pick()
    operation, *rest = g.of(
        (aten.arange.start, 0, 8), (aten.full.default, [2, 1, 8], 0.25), (aten.zeros_like.default, source),
        (aten.ones_like.default, source),
    )  # fmt: skip
    g.add(operation, *rest, dtype=torch.float32)


def noise(g: Grower) -> None:
    """A random operation whose result does not depend on chance."""
    drawn = g.add(aten.rand_like.default, g.pick())
    g.values.remove(drawn)
    g.add(aten.mul.Tensor, drawn, 0)
