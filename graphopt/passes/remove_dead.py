"""``y = f(x); z = g(x); return z  →  z = g(x); return z``: remove nodes whose result nobody reads.

where: the node has no users and no effect (random, mutating and asserting operations stay).
because: every removed operation is one that no step runs; exports leave some behind, and other passes make more.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     unused = ops.aten.mul.Tensor(x, 2)
...     add = ops.aten.add.Tensor(x, 1)
...     return (add,)
... ''', x="f32[3]")
>>> print(before.rewritten(RemoveDead()).body)
add = ops.aten.add.Tensor(x, 1)  # f32[3]
return (add,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..ir.effects import has_effect
from ..ir.program import Program
from ..ir.rewrite import Match, Pass, Refusal


@dataclass(frozen=True)
class RemoveDead(Pass):
    """Remove nodes whose result nobody reads; bitwise."""

    def find(self, program: Program) -> Iterable[Match]:
        for node in reversed(list(program.calls())):
            if not node.users:
                yield Match(node)

    def legal(self, program: Program, match: Match) -> Refusal | None:
        if has_effect(match.root):
            return Refusal("the operation has an effect besides its result", match.root)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        program.graph.erase_node(match.root)
