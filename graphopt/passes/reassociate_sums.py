"""``(x + f) + c  →  x + (f + c)``: add first what is known early, and what is small.

where: each sum in between is read by the next alone; terms are floats of one dtype, and no addition scales an argument.
    A sum known early is no larger than a term that is known no earlier, so that no more is kept from stage to stage
    (inputs count as kept). Fewer numbers are added in the last stage, or as many there and fewer before.
because: two biases of the same activations can be added to each other, once per request or schedule, or at least as
    vectors. Equal sums of early terms in several places are then one.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     add = ops.aten.add.Tensor(x, f)
...     add_1 = ops.aten.add.Tensor(add, c)
...     return (add_1,)
... ''', x="f32[2, 6, 8]", f="time f32[8]", c="weight f32[8]")
>>> print(before.rewritten(ReassociateSums()).body)
add_tensor = ops.aten.add.Tensor(f, c)  # f32[8]
add_1 = ops.aten.add.Tensor(x, add_tensor)  # f32[2, 6, 8]
return (add_1,)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir.alias import owner
from ..ir.layout import has_symbols, refresh
from ..ir.program import Program, bind, shape, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.stages import Stage, placement, stages
from ..ir.sums import Sum, added, ordered

aten = torch.ops.aten


@dataclass(frozen=True)
class ReassociateSums(Pass):
    """Add first what is known early or small; rounding.

    Attributes
    ----------
    max_terms : terms of one sum, at most: looking for an order takes the time of their cube.
    """

    max_terms: int = 16

    accuracy: ClassVar[Accuracy] = "rounding"

    def find(self, program: Program) -> Iterable[Match]:
        known = stages(program)
        for node in program.calls(aten.add.Tensor):
            inner = [entry for entry in node.all_input_nodes if entry.target is aten.add.Tensor]
            if inner and not any(user.target is aten.add.Tensor and not _apart(node, user) for user in node.users):
                reasons = [_apart(entry, node) for entry in inner]
                yield Match(node, tuple(_inner(node)), {"reason": reasons[0], "known": known})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        if not match.nodes:
            return Refusal(match["reason"], match.root)
        if any(has_symbols(val(source)) for node in (match.root, *match.nodes) for source in node.all_input_nodes):
            return Refusal("a size is known only when the program runs", match.root)
        if len(match.nodes) + 2 > self.max_terms:
            return Refusal(
                f"the sum has {len(match.nodes) + 2} terms, more than max_terms={self.max_terms}", match.root
            )
        total = _tree(match.root, match["known"])
        better = ordered(total)
        now, before = better.work(), total.work()
        if now == before or any(new > old for new, old in zip(now, before, strict=True)):
            return Refusal("no other order adds fewer numbers", match.root)
        if not better.kept() <= total.kept():
            return Refusal("the order that adds fewer numbers keeps more of them", match.root)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        node = match.root
        better = ordered(_tree(node, match["known"]))
        node.args, node.kwargs = tuple(_built(program, part, node) for part in better.parts), {}
        for entry in match.nodes:
            program.graph.erase_node(entry)
        program.touch(node)
        refresh(program, [node])


def _apart(inner: fx.Node, outer: fx.Node) -> str | None:
    """Why the terms of the sum `inner` are not terms of `outer`, which adds it; None when they are."""
    one, two = bind(inner), bind(outer)
    terms = [entry[name] for entry in (one, two) for name in ("self", "other")]
    if len(inner.users) > 1 or two["self"] is two["other"]:
        return "the inner sum is read elsewhere too"
    if one["alpha"] != 1 or two["alpha"] != 1:
        return "an addition scales its argument"
    if not all(isinstance(term, fx.Node) for term in terms):
        return "a term is a number"
    kinds = {(val(term).dtype, val(term).device) for term in (outer, *terms)}
    if len(kinds) > 1 or not val(outer).is_floating_point():
        return "the terms are not floats of one dtype on one device"
    if placement(inner) != placement(outer):
        return "the additions are placed in different stages"
    return None


def _joined(node: Any, user: fx.Node) -> bool:
    return node.target is aten.add.Tensor and _apart(node, user) is None


def _inner(node: fx.Node) -> Iterator[fx.Node]:
    """The sums within a sum, each before those that it reads."""
    for source in node.all_input_nodes:
        if _joined(source, node):
            yield source
            yield from _inner(source)


def _tree(node: fx.Node, known: dict[fx.Node, Stage]) -> Sum:
    """A sum as it is written."""
    parts = [
        _tree(source, known)
        if _joined(source, node)
        else Sum(shape(source), known[source], min(map(prod, (shape(source), shape(owner(source))))), source)
        for source in (bind(node)["self"], bind(node)["other"])
    ]
    return added(*parts)


def _built(program: Program, part: Sum, root: fx.Node) -> fx.Node:
    if part.node is not None:
        return part.node
    return program.call(aten.add.Tensor, *(_built(program, each, root) for each in part.parts), before=root)
