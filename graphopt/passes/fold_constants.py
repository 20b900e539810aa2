"""``step: y = f(w)  →  weights: y = f(w)``: compute what depends on weights alone when the weights change.

where: no input of the call is read, and the operation has no effect. A value stays in the step when it is much larger
    than the weights it comes from (an expanded or upcast weight), or when keeping it costs more than recomputing it.
because: every step computes it anew; weights change when an adapter is loaded. Views of weights take no memory.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     add = ops.aten.add.Tensor(w, 1)
...     mul = ops.aten.mul.Tensor(x, add)
...     return (mul,)
... ''', x="f32[2, 3]", w="weight f32[3]")
>>> print(before.rewritten(FoldConstants()).body)
add = ops.aten.add.Tensor(w, 1)  # f32[3]; @weights
mul = ops.aten.mul.Tensor(x, add)  # f32[2, 3]
return (mul,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ..ir.price import Price, plan
from ..ir.program import Program
from ..ir.rewrite import Match, Pass, Refusal
from ..ir.stages import WEIGHTS


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Place what depends on weights alone in the weights stage; bitwise.

    Attributes
    ----------
    max_growth : bytes of a kept value over the bytes of the weights it is computed from, at most.
    small_bytes : values of up to this many bytes may grow as they like.
    max_bytes : bytes of all kept values together, at most.
    flops_per_byte, dispatch_bytes : exchange rates between work and memory, see `graphopt.ir.price`.
    """

    max_growth: float = 1.0
    small_bytes: int = 1 << 20
    max_bytes: int = 1 << 30
    flops_per_byte: float = 10.0
    dispatch_bytes: int = 32 << 10

    repeat: ClassVar[bool] = False

    def find(self, program: Program) -> Iterable[Match]:
        price = Price(self.max_bytes, 1, self.flops_per_byte, self.dispatch_bytes, self.max_growth, self.small_bytes)
        for node, reason in plan(program, WEIGHTS, price).decisions():
            yield Match(node, captures={"reason": reason})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        return Refusal(match["reason"], match.root) if match["reason"] else None

    def rewrite(self, program: Program, match: Match) -> None:
        match.root.meta["placement"] = WEIGHTS
        program.touch(match.root)
