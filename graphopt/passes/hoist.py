"""``step: y = f(condition)  →  request: y = f(condition)``: compute what depends on the prompt once per request.

where: only conditions and weights are read, and the operation has no effect. What is kept must fit into `max_bytes`;
    beyond that, the values that save the least work per byte stay in the step. A view of an input saves no work.
because: the projections of the prompt into every cross-attention are the same in all steps of a request.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     linear = ops.aten.linear.default(c, w)
...     add = ops.aten.add.Tensor(x, linear)
...     return (add,)
... ''', x="f32[2, 4]", c="condition f32[2, 3]", w="weight f32[4, 3]")
>>> print(before.rewritten(Hoist()).body)
linear = ops.aten.linear.default(c, w)  # f32[2, 4]; @request
add = ops.aten.add.Tensor(x, linear)  # f32[2, 4]
return (add,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ..ir.price import Price, plan
from ..ir.program import Program
from ..ir.relations import Unchanged
from ..ir.rewrite import Match, Pass, Refusal
from ..ir.stages import REQUEST


@dataclass(frozen=True)
class Hoist(Pass):
    """Place what depends on conditions in the request stage; bitwise.

    Attributes
    ----------
    max_bytes : bytes kept per request, at most.
    flops_per_byte, dispatch_bytes : exchange rates between work and memory, see `graphopt.ir.price`.
    """

    max_bytes: int = 256 << 20
    flops_per_byte: float = 10.0
    dispatch_bytes: int = 32 << 10

    repeat: ClassVar[bool] = False
    exploits: ClassVar[tuple[type, ...]] = (Unchanged,)

    def find(self, program: Program) -> Iterable[Match]:
        price = Price(self.max_bytes, 1, self.flops_per_byte, self.dispatch_bytes)
        for node, reason in plan(program, REQUEST, price).decisions():
            yield Match(node, captures={"reason": reason})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        return Refusal(match["reason"], match.root) if match["reason"] else None

    def rewrite(self, program: Program, match: Match) -> None:
        match.root.meta["placement"] = REQUEST
        program.touch(match.root)
