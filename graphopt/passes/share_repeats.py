"""``f(cat([x, x]))  →  cat([f(x), f(x)])``: compute once what the equal parts of a batch have in common.

where: f treats the parts alike (`graphopt.ir.repeats` lists the operators): it mixes no values of different parts, and
    what else it reads is the same for all of them, as weights are. It has no effect.
because: guidance calls the denoiser with ``cat([latents] * 2)``, and the halves differ only from the first use of the
    prompt on. Where the shared region ends, its values are copied: a minimum cut finds the region that saves most,
    work inside against copies at its border, in the units of `graphopt.ir.price`.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     cat = ops.aten.cat.default([x, x])
...     linear = ops.aten.linear.default(cat, w)
...     silu = ops.aten.silu.default(linear)
...     mul = ops.aten.mul.Tensor(silu, c)
...     return (mul,)
... ''', x="f32[1, 64, 256]", c="condition f32[2, 64, 256]", w="weight f32[256, 256]")
>>> print(before.rewritten(ShareRepeats()).body)
linear = ops.aten.linear.default(x, w)  # f32[1, 64, 256]
silu = ops.aten.silu.default(linear)  # f32[1, 64, 256]
repeated = ops.aten.expand.default(silu, [2, 64, 256])  # f32[2, 64, 256] strides (0, 256, 1)
mul = ops.aten.mul.Tensor(repeated, c)  # f32[2, 64, 256]
return (mul,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir.layout import has_symbols, refresh
from ..ir.program import Program, val
from ..ir.relations import Repeated
from ..ir.repeats import Known, Repeat, arguments, fewer, repeats, whole, written_down
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.share import expands, shares

aten = torch.ops.aten


@dataclass(frozen=True)
class ShareRepeats(Pass):
    """Compute once what the equal parts of a batch have in common; rounding.

    Attributes
    ----------
    flops_per_byte, dispatch_bytes : exchange rates between work and memory, see `graphopt.ir.price`.
    """

    flops_per_byte: float = 10.0
    dispatch_bytes: int = 32 << 10

    accuracy: ClassVar[Accuracy] = "rounding"
    exploits: ClassVar[tuple[type, ...]] = (Repeated,)

    def find(self, program: Program) -> Iterable[Match]:
        known = repeats(program)
        for root, inside, reason in shares(program, known, self.flops_per_byte, self.dispatch_bytes):
            yield Match(root, tuple(inside), {"known": known, "reason": reason})
        for node in program.calls(aten.cat.default, aten.repeat.default):
            if has_symbols(val(node)) and any(written_down(node)):
                yield Match(node, captures={"reason": "a size is known only when the program runs"})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        return Refusal(match["reason"], match.root) if match["reason"] else None

    def rewrite(self, program: Program, match: Match) -> None:
        known, inside = match["known"], dict.fromkeys(match.nodes)
        repeated: dict[fx.Node, fx.Node] = {}  # node → what those read that need all of its parts
        changed: list[fx.Node] = []
        for node in inside:
            repeat = known[node]
            outside, view = _outside(node, known, inside), expands(node, repeat)
            if repeat.given:
                repeated[node] = node  # stays as it is, for those outside
                continue
            before = val(node)
            part = _Parts(program, known, node)
            node.args, node.kwargs = arguments(node, repeat, part, lambda other: repeated.get(other, other))
            node.target, node.meta["val"] = repeat.target, repeat.value
            program.touch(node)
            changed.append(node)
            if outside:
                repeated[node] = _repeated(program, node, repeat, before, view)
                changed.append(repeated[node])
                for user in outside - inside.keys():
                    user.replace_input_with(node, repeated[node])
        for node in inside:
            if repeated.get(node) is node and not node.users:
                program.graph.erase_node(node)
        refresh(program, changed)


class _Parts:
    """One part of an argument of `node`: the argument itself, once rewritten, or an expansion of it."""

    def __init__(self, program: Program, known: Known, node: fx.Node) -> None:
        self.program, self.known, self.node = program, known, node

    def __call__(self, source: fx.Node) -> fx.Node:
        repeat, count = self.known[source], self.known[self.node].count
        part = source.all_input_nodes[0] if repeat.given else source
        if repeat.count == count:
            return part
        new = self.program.call(aten.expand.default, part, fewer(repeat, count), before=self.node)
        new.meta.update({key: source.meta[key] for key in ("placement",) if key in source.meta})  # not the reader's
        return new


def _repeated(program: Program, node: fx.Node, repeat: Repeat, before: Any, view: bool) -> fx.Node:
    """The whole of a node that computes one part now; `before` is the fake value it had."""
    how: tuple[Any, ...] = (aten.cat.default, [node] * repeat.count, repeat.dim)
    if view:
        how = (aten.expand.default, node, list(before.shape))
    new = program.call(*how, before=node.next, like=node, val=before)
    new._rename("repeated")
    return new


def _outside(node: fx.Node, known: Known, inside: Iterable[fx.Node]) -> set[fx.Node]:
    """The users of a node that read all of its parts."""
    return {user for user in node.users if user not in inside or node in whole(user, known[user])}
