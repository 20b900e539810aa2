"""``x * sigmoid(x)  →  silu(x)``.

where: nobody else reads the sigmoid, and x is floating-point.
because: the product reads both factors again and writes a second result; the function computes both in registers.
    Models that were written before torch had silu spell it so.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     sigmoid = ops.aten.sigmoid.default(x)
...     mul = ops.aten.mul.Tensor(x, sigmoid)
...     return (mul,)
... ''', x="f32[2, 3]")
>>> print(before.rewritten(FuseSilu()).body)
mul = ops.aten.silu.default(x)  # f32[2, 3]
return (mul,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from graphopt import Match, Pass, Program, Refusal
from graphopt.ir.pattern import Call, Var, match
from graphopt.ir.program import dtype
from graphopt.ir.rewrite import Accuracy

aten = torch.ops.aten
_SIGMOID = Call(aten.sigmoid.default, Var("x"), name="sigmoid")
_SWISH = (Call(aten.mul.Tensor, Var("x"), _SIGMOID), Call(aten.mul.Tensor, _SIGMOID, Var("x")))


@dataclass(frozen=True)
class FuseSilu(Pass):
    """Let a value times its own sigmoid be one operation; rounding."""

    accuracy: ClassVar[Accuracy] = "rounding"

    def find(self, program: Program) -> Iterable[Match]:
        for node in program.calls(aten.mul.Tensor):
            if found := match(_SWISH[0], node) or match(_SWISH[1], node):
                yield Match(node, (found["sigmoid"],), found)

    def legal(self, program: Program, match: Match) -> Refusal | None:
        if len(match["sigmoid"].users) > 1:
            return Refusal("the sigmoid is read elsewhere too", match.root)
        if not dtype(match["x"]).is_floating_point:
            return Refusal(f"silu takes no {dtype(match['x'])}", match.root)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        node = match.root
        node.target, node.args = aten.silu.default, (match["x"],)
        program.graph.erase_node(match["sigmoid"])
        program.touch(node)
