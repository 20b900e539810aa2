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

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir.alias import owner
from ..ir.layout import has_symbols, refresh
from ..ir.program import Program, bind, shape, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.stages import STAGES, Stage, placement, stage_name, stages

aten = torch.ops.aten

_RANKS = {name: rank for rank, name in enumerate(STAGES)}


@dataclass(frozen=True)
class _Sum:
    """A term (`node`), or the sum of two `parts`. `held` is how many numbers keeping it takes."""

    shape: tuple[int, ...]
    stage: Stage
    held: int
    node: fx.Node | None = None
    parts: tuple[_Sum, ...] = ()

    @property
    def rank(self) -> int:
        return _RANKS[stage_name(self.stage)]

    def sums(self) -> Iterator[_Sum]:
        """All additions."""
        for part in self.parts:
            yield from part.sums()
        if self.parts:
            yield self

    def work(self) -> tuple[int, int]:
        """How many numbers are added: in the last stage, and in all."""
        added = Counter[bool]()
        for each in self.sums():
            added[each.rank == self.rank] += prod(each.shape)
        return added[True], added.total()

    def kept(self) -> Counter[int]:
        """How many numbers the last stage reads from each earlier one."""
        kept = Counter[int]()
        for part in (part for each in self.sums() if each.rank == self.rank for part in each.parts):
            kept[part.rank] += part.held if part.rank < self.rank else 0
        return kept


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
        better = _ordered(total)
        (last, added), (last_before, added_before) = better.work(), total.work()
        if not (last <= last_before and added <= added_before and (last, added) != (last_before, added_before)):
            return Refusal("no other order adds fewer numbers", match.root)
        if not better.kept() <= total.kept():
            return Refusal("the order that adds fewer numbers keeps more of them", match.root)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        node = match.root
        better = _ordered(_tree(node, match["known"]))
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


def _tree(node: fx.Node, known: dict[fx.Node, Stage]) -> _Sum:
    """A sum as it is written."""
    parts = [
        _tree(source, known)
        if _joined(source, node)
        else _Sum(shape(source), known[source], min(map(prod, (shape(source), shape(owner(source))))), source)
        for source in (bind(node)["self"], bind(node)["other"])
    ]
    return _added(*parts)


def _added(one: _Sum, two: _Sum) -> _Sum:
    sizes = tuple(torch.broadcast_shapes(one.shape, two.shape))
    return _Sum(sizes, one.stage | two.stage, prod(sizes), None, (one, two))


def _ordered(total: _Sum) -> _Sum:
    """The same terms, always adding the two whose sum is known first, of these the smallest."""
    terms = [part for each in total.sums() for part in each.parts if part.node is not None]
    terms.sort(key=lambda term: (-term.rank, term.node))
    while len(terms) > 1:
        pairs = [(one, two, _added(one, two)) for one, two in combinations(terms, 2)]
        open_ = [pair for pair in pairs if pair[2].rank == total.rank or _fits(*pair)]
        one, two, both = min(open_, key=lambda pair: (pair[2].rank, prod(pair[2].shape)))
        terms[terms.index(one)] = both
        terms.remove(two)
    return terms[0]


def _fits(one: _Sum, two: _Sum, both: _Sum) -> bool:
    """Whether keeping the sum takes no more than keeping one of the two in the same stage."""
    return any(part.stage == both.stage and both.held <= part.held for part in (one, two))


def _built(program: Program, part: _Sum, root: fx.Node) -> fx.Node:
    if part.node is not None:
        return part.node
    node = program.call(aten.add.Tensor, *(_built(program, each, root) for each in part.parts), before=root)
    node.meta.update({key: root.meta[key] for key in ("placement",) if key in root.meta})
    return node
