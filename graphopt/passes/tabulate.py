"""``step: y = f(time)  →  schedule: table[i] = f(time[i])``: compute what depends on the timestep once per schedule.

where: only the timestep and weights are read (schedule), or these and conditions (request and schedule), and the
    operation has no effect. Tables of `steps` rows must fit into `max_bytes` in each of the two stages; beyond, the
    values that save the least work per byte stay in the step. A view of an input saves no work.
because: timestep embeddings and the modulations computed from them are the same in every request of a schedule. Tables
    of the second kind save work where a request is sampled again: another seed, another image of the batch.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     linear = ops.aten.linear.default(t, w)
...     add = ops.aten.add.Tensor(x, linear)
...     return (add,)
... ''', x="f32[2, 4]", t="time f32[3]", w="weight f32[4, 3]")
>>> print(before.rewritten(Tabulate()).body)
linear = ops.aten.linear.default(t, w)  # f32[4]; @schedule
add = ops.aten.add.Tensor(x, linear)  # f32[2, 4]
return (add,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ..errors import UsageError
from ..ir.price import Price, plan
from ..ir.program import Program
from ..ir.rewrite import Match, Pass, Refusal
from ..ir.stages import REQUEST_SCHEDULE, SCHEDULE


@dataclass(frozen=True)
class Tabulate(Pass):
    """Place what depends on the timestep in the schedule stages; bitwise.

    Attributes
    ----------
    steps : rows of a table: the timesteps of the schedule.
    max_bytes : bytes of all tables of one stage together, at most.
    flops_per_byte, dispatch_bytes : exchange rates between work and memory, see `graphopt.ir.price`.
    """

    steps: int = 50
    max_bytes: int = 256 << 20
    flops_per_byte: float = 10.0
    dispatch_bytes: int = 32 << 10

    repeat: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"a schedule has at least one timestep, not steps={self.steps}", where=self.name)

    def find(self, program: Program) -> Iterable[Match]:
        price = Price(self.max_bytes, self.steps, self.flops_per_byte, self.dispatch_bytes)
        schedule = plan(program, SCHEDULE, price)
        both = plan(program, REQUEST_SCHEDULE, price, before=[schedule])
        for chosen in (schedule, both):
            for node, reason in chosen.decisions():
                yield Match(node, captures={"reason": reason, "stage": chosen.stage})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        return Refusal(match["reason"], match.root) if match["reason"] else None

    def rewrite(self, program: Program, match: Match) -> None:
        match.root.meta["placement"] = match["stage"]
        program.touch(match.root)
