"""``((x − a·e) / b)·c + d·e  →  k₁·x + k₂·e``: a chain of sums and scalings as one linear update.

where: the intermediate results are read by the chain alone; all tensors are floating-point, of one shape, dtype and
    device. A cast to another dtype ends the chain, so that what passed through float32 still does. In half precision no
    partial sum may be larger than its terms. Terms whose coefficients are opposite are subtracted first, so that
    equal ones still cancel exactly; more than two whose coefficients add up to zero are left alone. The error is at
    most that of rounding each of n sums: ε · n · Σ |k| · max |term|.
because: each operation reads and writes a whole latent: guidance and scheduler do so six to ten times for what takes
    as many operations as there are tensors. The coefficients are folded by sympy, in double precision.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     mul = ops.aten.mul.Tensor(e, 0.5)
...     sub = ops.aten.sub.Tensor(x, mul)
...     div = ops.aten.div.Tensor(sub, 0.25)
...     mul_1 = ops.aten.mul.Tensor(div, 0.125)
...     add = ops.aten.add.Tensor(mul_1, e, alpha=0.75)
...     return (add,)
... ''', x="f32[2, 3]", e="f32[2, 3]")
>>> print(before.rewritten(FoldUpdates()).body)
mul_tensor = ops.aten.mul.Tensor(x, 0.5)  # f32[2, 3]
add_tensor = ops.aten.add.Tensor(mul_tensor, e, alpha=0.5)  # f32[2, 3]
return (add_tensor,)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir.program import Program, bind, fake_mode, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.stages import placement
from ..ir.update import LINEAR, combined, fold, summands

aten = torch.ops.aten

_TENSORS: dict[Any, int] = {
    aten.add.Tensor: 2,
    aten.sub.Tensor: 2,
    aten.lerp.Scalar: 2,
    aten.lerp.Tensor: 2,
}  # operands, if not one


_CANCELS = 1e-6  # of the sum of all coefficients' sizes: at most that counts as zero, folded from decimal numbers


@dataclass(frozen=True)
class FoldUpdates(Pass):
    """Compute a chain of sums and scalings as one linear combination; rounding.

    Attributes
    ----------
    min_saved : operations that folding a chain must save, at least.
    """

    min_saved: int = 2

    accuracy: ClassVar[Accuracy] = "rounding"

    def find(self, program: Program) -> Iterable[Match]:
        inner: set[fx.Node] = set()
        for node in reversed(list(program.calls(*LINEAR))):
            region = _region(node)
            if node not in inner and any(source.target in LINEAR for source in node.all_input_nodes):
                yield Match(node)
            inner |= region - {node}

    def legal(self, program: Program, match: Match) -> Refusal | None:
        node, region = match.root, _region(match.root)
        if not region:
            return Refusal(_unfit(node), node)
        terms = {source for entry in region for source in entry.all_input_nodes} - region
        shared = any(term.target in LINEAR and len(term.users) > 1 for term in terms)
        why = ": an intermediate result is read elsewhere" if shared else ""
        few = Refusal(f"fewer than min_saved={self.min_saved} operations would be saved{why}", node)
        if len(region) - len(terms) + 1 < self.min_saved:
            return few
        factors = _factors(node, region)
        if not factors:
            return Refusal("the terms cancel out", node)
        if not all(map(math.isfinite, factors.values())) or factors.keys() & region:
            return Refusal("a coefficient is not finite", node)
        if len(region) - len(factors) + (len(factors) > 1 and 1 in factors.values()) < self.min_saved:
            return few
        if len(factors) > 2 and abs(sum(factors.values())) <= _CANCELS * sum(map(abs, factors.values())):
            return Refusal("the coefficients add up to zero: terms close to each other would cancel", node)
        partial = sum(abs(factor) * len(terms) for terms, factor in summands(factors)[:-1])
        if val(node).dtype.itemsize < 4 and partial > 1:
            return Refusal(f"a partial sum would be rounded to {val(node).dtype} and is larger than its terms", node)
        with fake_mode(program.graph), torch.no_grad():
            if (
                combined(factors, val, lambda target, *args, **more: target(*args, **more)).stride()
                != val(node).stride()
            ):
                return Refusal("the update would be laid out in memory otherwise", node)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        node, region = match.root, _region(match.root)

        def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
            return program.call(target, *args, before=node, **kwargs)

        program.replace(node, combined(_factors(node, region), lambda term: term, call))
        for entry in sorted(region - {node}, reverse=True):
            program.graph.erase_node(entry)


def _region(root: fx.Node) -> set[fx.Node]:
    """`root` and the operations below it that can be folded into it and that nothing else reads."""
    if _unfit(root):
        return set()
    region, open_ = {root}, [root]
    while open_:
        for source in open_.pop().all_input_nodes:
            inside = source.target in LINEAR and source not in region and source.users.keys() <= region
            if inside and not _unfit(source) and placement(source) == placement(root):
                region.add(source)
                open_.append(source)
    return region


def _unfit(node: fx.Node) -> str:
    """Why a linear operation is no combination of whole tensors like its result; empty where it is."""
    value = val(node)
    if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
        return "the result is not floating-point"
    tensors = [entry for entry in bind(node).values() if isinstance(entry, fx.Node)]
    if len(tensors) != _TENSORS.get(node.target, 1):
        return "it adds a number" if len(tensors) < 2 else "it multiplies tensors"
    for source in map(val, tensors):
        if not isinstance(source, torch.Tensor) or (source.dtype, source.device) != (value.dtype, value.device):
            return "it takes a value of another dtype or device"
        if source.shape != value.shape or not value.ndim:
            return "it broadcasts a term"
    return ""


def _factors(node: fx.Node, region: set[fx.Node]) -> dict[fx.Node, float]:
    """The coefficient of each term."""
    return {term: factor for term, factor in fold(node, list(region)).coefficients().items() if factor != 0}
