"""``cat(x[:k], x[k:])  →  x``: use x where its parts are put together again.

where: the parts are all of x, in order, and x has the strides of the concatenation (by which kernels choose their order
    of summation); a caller who writes into a result finds no input and no other result changed.
because: a concatenation copies all that it reads. Flux, Chroma and HunyuanVideo take text and image apart behind every
    single-stream block, and put them together in front of the next.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     add = ops.aten.add.Tensor(x, y)
...     text = ops.aten.slice.Tensor(add, 1, 0, 2)
...     image = ops.aten.slice.Tensor(add, 1, 2, 9223372036854775807)
...     cat = ops.aten.cat.default([text, image], 1)
...     silu = ops.aten.silu.default(cat)
...     return (silu,)
... ''', x="f32[1, 6, 4]", y="f32[1, 6, 4]")
>>> print(before.rewritten(RejoinParts()).body)
add = ops.aten.add.Tensor(x, y)  # f32[1, 6, 4]
silu = ops.aten.silu.default(add)  # f32[1, 6, 4]
return (silu,)
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from ..ir.alias import noticed
from ..ir.layout import has_symbols
from ..ir.program import Program, bind, shape, val
from ..ir.rewrite import Match, Pass, Refusal, erase_unread

aten = torch.ops.aten
_CUTS = (aten.slice.Tensor, aten.narrow.default, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)


@dataclass(frozen=True)
class RejoinParts(Pass):
    """Use a value where its parts are put together again; bitwise."""

    def find(self, program: Program) -> Iterable[Match]:
        for node in program.calls(aten.cat.default):
            wholes = {_source(part) for part in bind(node)["tensors"]}
            if len(wholes) == 1 and (whole := wholes.pop()):
                yield Match(node, (whole,))

    def legal(self, program: Program, match: Match) -> Refusal | None:
        node, (whole,) = match.root, match.nodes
        if has_symbols(val(whole)):
            return Refusal("a size is known only when the program runs", node)
        if not _covered(whole, node):
            return Refusal("the parts are not all of the value that they were cut from, in order", node)
        if val(node).stride() != val(whole).stride():
            return Refusal(f"the copy has strides {val(node).stride()}, the original {val(whole).stride()}", node)
        if reason := noticed(program, node, whole):
            return Refusal(reason, node)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        parts = bind(match.root)["tensors"]
        program.replace(match.root, match.nodes[0])
        erase_unread(program, parts)


def _source(part: fx.Node) -> fx.Node | None:
    """The value that `part` was cut from; None where it is no cut."""
    cut: fx.Node = part.args[0] if part.target is operator.getitem else part  # type: ignore[assignment]
    return bind(cut)["self"] if cut.target in _CUTS else None


def _covered(whole: fx.Node, cat: fx.Node) -> bool:
    """Whether the operands of `cat` follow one another in the memory of `whole`, from its first element to its last."""
    bound, place, steps = bind(cat), val(whole).storage_offset(), val(whole).stride()
    dim = bound["dim"] % len(steps)
    for part in bound["tensors"]:
        if (val(part).storage_offset(), val(part).stride()) != (place, steps):
            return False
        place += shape(part)[dim] * steps[dim]
    return shape(cat) == shape(whole)
