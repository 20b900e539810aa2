"""``y = f(x); z = f(x)  →  y = f(x); z = y``: compute equal expressions once (value numbering).

where: the same operator on the same values, dtypes and options, in the same stage; no effect (two draws of a random
    number differ); and a caller who writes into one result does not find another changed.
because: models recompute what is at hand, such as masks and position embeddings per block.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     sin = ops.aten.sin.default(x)
...     sin_1 = ops.aten.sin.default(x)
...     mul = ops.aten.mul.Tensor(sin, sin_1)
...     return (mul,)
... ''', x="f32[3]")
>>> print(before.rewritten(MergeCommon()).body)
sin = ops.aten.sin.default(x)  # f32[3]
mul = ops.aten.mul.Tensor(sin, sin)  # f32[3]
return (mul,)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..ir.alias import noticed
from ..ir.effects import has_effect
from ..ir.program import Program, bind
from ..ir.rewrite import Match, Pass, Refusal
from ..ir.stages import placement, stage_name


@dataclass(frozen=True)
class MergeCommon(Pass):
    """Compute equal expressions once; bitwise."""

    def find(self, program: Program) -> Iterable[Match]:
        # Nodes of one class have equal values, merged or not, so that one walk finds equal expressions of equal ones.
        classes: dict[Hashable, list[fx.Node]] = {}
        numbers: dict[fx.Node, Hashable] = {}
        for node in program.calls():
            key = (node.target, _frozen(bind(node), numbers))
            same = classes.setdefault(key, [])
            first = next((other for other in same if placement(other) == placement(node)), same[0] if same else None)
            if first is not None:
                yield Match(node, (first,), {"first": first})
            if not has_effect(node):
                numbers[node] = numbers[same[0]] if same else len(numbers)
            same.append(node)

    def legal(self, program: Program, match: Match) -> Refusal | None:
        first, node = match["first"], match.root
        if has_effect(node):
            return Refusal("the operation has an effect besides its result", node)
        if placement(first) != placement(node):
            places = stage_name(placement(first)), stage_name(placement(node))
            return Refusal(f"its equal is computed in another stage ({places[0]}, this in {places[1]})", node)
        if reason := noticed(program, node, first):
            return Refusal(reason, node)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        program.touch(match["first"])
        program.replace(match.root, match["first"])


def _frozen(value: Any, numbers: dict[fx.Node, Hashable]) -> Hashable:
    """An argument as something hashable that tells 1 from 1.0 and True, 0.0 from -0.0, and nodes by their value."""
    if isinstance(value, fx.Node):
        return ("value", numbers.get(value, value))
    if isinstance(value, dict):
        return tuple((key, _frozen(entry, numbers)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ("list", *(_frozen(entry, numbers) for entry in value))
    return (type(value), repr(value))
