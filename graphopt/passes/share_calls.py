"""``step: y = f(state, time)  →  common: y = f(state, time)``: compute once what calls with other conditions share.

where: the sampler is known to call the model several times on one state and time (`Paired`), as do samplers with
    separate conditional and unconditional forwards; no condition is read, and the operation has no effect. What is kept
    is that of one state, and must fit into `max_bytes`. A view of an input saves no work.
because: up to the first use of the condition, the guidance branches of a step compute the same.

>>> from graphopt.ir.relations import Paired, specialise
>>> from graphopt.testing import Traced, sketch
>>> before = sketch('''
...     linear = ops.aten.linear.default(x, w)
...     add = ops.aten.add.Tensor(linear, c)
...     return (add,)
... ''', x="f32[2, 64]", c="condition f32[2, 64]", w="weight f32[64, 64]")
>>> paired, _ = specialise(before.program, [Paired(2)])
>>> print(Traced(paired).rewritten(ShareCalls()).body)
linear = ops.aten.linear.default(x, w)  # f32[2, 64]; @common
add = ops.aten.add.Tensor(linear, c)  # f32[2, 64]
return (add,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ..ir.price import Price, plan
from ..ir.program import Program
from ..ir.relations import Paired
from ..ir.rewrite import Match, Pass, Refusal
from ..ir.stages import COMMON


@dataclass(frozen=True)
class ShareCalls(Pass):
    """Place what guidance branches have in common in a stage of its own; bitwise.

    Attributes
    ----------
    max_bytes : bytes kept of one state, at most.
    flops_per_byte, dispatch_bytes : exchange rates between work and memory, see `graphopt.ir.price`.
    """

    max_bytes: int = 256 << 20
    flops_per_byte: float = 10.0
    dispatch_bytes: int = 32 << 10

    repeat: ClassVar[bool] = False
    exploits: ClassVar[tuple[type, ...]] = (Paired,)

    def find(self, program: Program) -> Iterable[Match]:
        if not any(isinstance(entry, Paired) for entry in program.relations):
            return
        price = Price(self.max_bytes, 1, self.flops_per_byte, self.dispatch_bytes)
        for node, reason in plan(program, COMMON, price).decisions():
            yield Match(node, captures={"reason": reason})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        return Refusal(match["reason"], match.root) if match["reason"] else None

    def rewrite(self, program: Program, match: Match) -> None:
        match.root.meta["placement"] = COMMON
        program.touch(match.root)
