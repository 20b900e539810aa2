"""``f(x)  →  x`` for operations that give back what they got: clone, cast to the same type, ``x * 1``, …

where: the result has the dtype, shape, device and strides of x (by which kernels choose their order of summation),
    and a caller who writes into a result finds no input and no other result changed.
because: dropout out of training leaves a clone behind each linear layer, rescaling by 1 a division.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     linear = ops.aten.linear.default(x, w)
...     clone = ops.aten.clone.default(linear)
...     div = ops.aten.div.Tensor(clone, 1.0)
...     relu = ops.aten.relu.default(div)
...     return (relu,)
... ''', x="f32[2, 3]", w="weight f32[4, 3]")
>>> print(before.rewritten(SimplifyIdentities()).body)
linear = ops.aten.linear.default(x, w)  # f32[2, 4]
relu = ops.aten.relu.default(linear)  # f32[2, 4]
return (relu,)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..ir.alias import noticed
from ..ir.pattern import Call, Pattern, Var, match
from ..ir.program import Program, dtype, val
from ..ir.rewrite import Match, Pass, Refusal

aten = torch.ops.aten

_NEAREST = tuple(
    getattr(aten, f"{kind}{n}d").vec for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)
)


def _only_one(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 1


def _zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _ones(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and {1.0} >= set(value))


x = Var("x", lambda value: isinstance(value, fx.Node))
zero = Var("zero", _zero)
anything = Var("anything")

# What each pattern calls x has the value of the whole.
IDENTITIES: tuple[Pattern, ...] = (
    Call((aten.clone.default, aten.contiguous.default, aten.lift_fresh_copy.default), x),
    Call(aten._to_copy.default, x),  # to the same dtype; others are sorted out by dtype
    Call(aten._to_copy.default, Call(aten._to_copy.default, x)),  # to a wider dtype and back
    Call((aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.pow.Tensor_Scalar), x, 1),
    Call((aten.add.Tensor, aten.add.Scalar), x, zero, 1),
    Call((aten.sub.Tensor, aten.sub.Scalar), x, Var("minus", _zero), 1),
    Call(aten.dropout.default, x, anything, False),
    Call(aten.dropout.default, x, 0.0, anything),
    Call(aten.neg.default, Call(aten.neg.default, x)),
    Call(aten.relu.default, Call(aten.relu.default, anything, name="x")),
    Call(aten.cat.default, Var("parts", _only_one)),
    Call(aten.repeat.default, x, Var("repeats", _ones)),
    Call(_NEAREST, x, anything, Var("scales", _ones)),
)


@dataclass(frozen=True)
class SimplifyIdentities(Pass):
    """Use x where an operation gives x back; bitwise."""

    def find(self, program: Program) -> Iterable[Match]:
        for node in program.calls():
            for identity in IDENTITIES:
                found = match(identity, node)
                if found and (same := found.get("x") or found["parts"][0]) and _alike(node, same):
                    yield Match(node, (same,), {**found, "same": same})
                    break

    def legal(self, program: Program, match: Match) -> Refusal | None:
        node, same = match.root, match["same"]
        if node.target is aten._to_copy.default and not _widens(dtype(same), between := dtype(node.args[0])):
            return Refusal(f"{between} does not hold every value of {dtype(same)}", node)
        added = match.captures.get("zero", -float(match.captures.get("minus", 0.0)))
        if dtype(node).is_floating_point and math.copysign(1, added) > 0:
            return Refusal("adding 0.0 turns -0.0 into 0.0", node)
        if val(node).stride() != val(same).stride():
            return Refusal(f"the copy has strides {val(node).stride()}, the original {val(same).stride()}", node)
        if reason := noticed(program, node, same):
            return Refusal(reason, node)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        program.replace(match.root, match["same"])


def _alike(node: fx.Node, same: fx.Node) -> bool:
    one, two = val(node), val(same)
    return isinstance(two, torch.Tensor) and (one.dtype, one.shape, one.device) == (two.dtype, two.shape, two.device)


def _widens(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether every value of `narrow` is one of `wide`, so that casting there and back changes nothing."""
    if narrow == torch.bool or narrow == wide:
        return True
    if not wide.is_floating_point or wide.itemsize <= narrow.itemsize:
        return not narrow.is_floating_point and not wide.is_floating_point and _integers(narrow, wide)
    bits = round(1 - math.log2(torch.finfo(wide).eps))  # of the significand
    return narrow.is_floating_point or torch.iinfo(narrow).bits - (narrow != torch.uint8) <= bits


def _integers(narrow: torch.dtype, wide: torch.dtype) -> bool:
    if wide == torch.bool or wide.is_complex or narrow.is_complex:
        return False
    one, two = torch.iinfo(narrow), torch.iinfo(wide)
    return two.min <= one.min and one.max <= two.max
