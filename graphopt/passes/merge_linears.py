"""``linear(x, v, b), linear(x, w, c)  →  split(linear(x, cat(v, w), cat(b, c)))``.

where: weights and biases depend on weights alone, so that concatenating them happens once; they are known before the
    first of the layers; dtypes agree; no layer's result leaves the program or goes straight into another matrix product,
    which would copy its slice; at least one layer is small (`max_flops`). A missing bias becomes zeros where another
    layer has one.
because: one wide product reads x once, is one call instead of several, and gives each core enough columns. Attention
    reads queries, keys and values from slices as it does from tensors of their own.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     query = ops.aten.linear.default(x, v)
...     key = ops.aten.linear.default(x, w)
...     add = ops.aten.add.Tensor(query, key)
...     return (add,)
... ''', x="f32[4, 8]", v="weight f32[6, 8]", w="weight f32[6, 8]")
>>> print(before.rewritten(MergeLinears()).body)
cat_default = ops.aten.cat.default([v, w])  # f32[12, 8]
merged = ops.aten.linear.default(x, cat_default)  # f32[4, 12]
split_with_sizes_default = ops.aten.split_with_sizes.default(merged, [6, 6], 1)  # (f32[4, 6] strides (12, 1), f32[4, 6] strides (12, 1))
query = operator.getitem(split_with_sizes_default, 0)  # f32[4, 6] strides (12, 1)
key = operator.getitem(split_with_sizes_default, 1)  # f32[4, 6] strides (12, 1)
add = ops.aten.add.Tensor(query, key)  # f32[4, 6]
return (add,)
"""  # noqa: E501 — the printed program is as wide as it is

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ..ir.alias import shared_results
from ..ir.cost import node_cost
from ..ir.layout import has_symbols, refresh
from ..ir.program import Program, bind, dtype, shape, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.stages import WEIGHTS, placement, stages

aten = torch.ops.aten
_PRODUCTS = (aten.linear.default, aten.mm.default, aten.bmm.default, aten.matmul.default, aten.addmm.default)


@dataclass(frozen=True)
class MergeLinears(Pass):
    """Let linear layers that share their input be one; rounding.

    Attributes
    ----------
    max_flops : FLOPs of one layer from which on it runs at full speed alone.
    """

    max_flops: int = 1 << 29

    accuracy: ClassVar[Accuracy] = "rounding"

    def find(self, program: Program) -> Iterable[Match]:
        known, groups = stages(program), dict[tuple[fx.Node, str], list[fx.Node]]()
        for node in program.calls(aten.linear.default):
            groups.setdefault((bind(node)["input"], str(sorted(placement(node)))), []).append(node)
        for group in groups.values():
            if len(group) > 1:
                yield Match(group[0], tuple(group), {"stages": known})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        first = match.root
        for node in match.nodes:
            weights = [value for value in (bind(node)["weight"], bind(node)["bias"]) if value is not None]
            reason = None
            if any(match["stages"][value] != WEIGHTS for value in weights):
                reason = "a weight is computed from inputs of the call: concatenating would copy it at every step"
            elif any(has_symbols(val(value)) for value in weights) or val(weights[0]).ndim != 2:
                reason = "the weight is no matrix of known size"
            elif any(dtype(value) != dtype(bind(first)["weight"]) for value in weights):
                reason = "the layers' weights have different dtypes"
            elif any(not value < first for value in weights):
                reason = "a weight is computed after the first of the layers"
            elif program.output in node.users:
                reason = "the result leaves the program, which a slice of a larger tensor may not"
            elif has_symbols(val(node)) and shared_results(program, node):
                reason = "a view of the result leaves the program, with strides that take sizes unknown until it runs"
            elif any(user.target in _PRODUCTS for user in node.users):
                reason = "a matrix product reads the result: it would copy the slice"
            if reason:
                return Refusal(reason, node)
        if not has_symbols(val(first)) and all(node_cost(node).flops >= self.max_flops for node in match.nodes):
            return Refusal(f"each layer has max_flops={self.max_flops} or more and is at full speed alone", first)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        first, layers = match.root, [bind(node) for node in match.nodes]
        source, weights, biases = layers[0]["input"], [b["weight"] for b in layers], [b["bias"] for b in layers]
        sizes = [int(shape(weight)[0]) for weight in weights]
        args = [source, program.call(aten.cat.default, weights, before=first)]
        if any(bias is not None for bias in biases):
            filled = [
                program.call(aten.new_zeros.default, weight, [size], before=first) if bias is None else bias
                for weight, bias, size in zip(weights, biases, sizes, strict=True)
            ]
            args.append(program.call(aten.cat.default, filled, before=first))
        merged = program.call(aten.linear.default, *args, before=first)
        merged._rename("merged")
        dim = len(shape(merged)) - 1
        slices = program.call(aten.split_with_sizes.default, merged, sizes, dim, before=first)
        for position, node in enumerate(match.nodes):
            node.target, node.args, node.kwargs = operator.getitem, (slices, position), {}
            if node is not first:
                first.append(node)  # moved up, in front of whatever stood between
                first = node
            program.touch(node)
        refresh(program, match.nodes)
