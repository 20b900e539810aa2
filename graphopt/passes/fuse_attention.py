"""``softmax(q @ kᵀ · s + m) @ v  →  scaled_dot_product_attention(q, k, v, m, scale=s)``.

where: nobody else reads the scores or their softmax, which runs over the keys; s is made of Python numbers, before or
    after the product; m is added after scaling, or fills with a number beside which any score would vanish; q, k and v
    have one dtype and width; nothing that could be kept from an earlier stage moves into a later.
because: the scores, queries times keys in number, are computed, exponentiated and used block by block in cache.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     turned = ops.aten.transpose.int(k, 1, 2)
...     scores = ops.aten.bmm.default(q, turned)
...     scaled = ops.aten.mul.Tensor(scores, 0.5)
...     softmax = ops.aten.softmax.int(scaled, -1)
...     mixed = ops.aten.bmm.default(softmax, v)
...     return (mixed,)
... ''', q="f32[1, 6, 4]", k="f32[1, 5, 4]", v="f32[1, 5, 4]")
>>> print(before.rewritten(FuseAttention(min_bytes=0)).body)
reshape_default = ops.aten.reshape.default(q, [1, 1, 6, 4])  # f32[1, 1, 6, 4]
reshape_default_1 = ops.aten.reshape.default(k, [1, 1, 5, 4])  # f32[1, 1, 5, 4]
reshape_default_2 = ops.aten.reshape.default(v, [1, 1, 5, 4])  # f32[1, 1, 5, 4]
attention = ops.aten.scaled_dot_product_attention.default(reshape_default, reshape_default_1, reshape_default_2, None, scale=0.5)  # f32[1, 1, 6, 4]
mixed = ops.aten.reshape.default(attention, [1, 6, 4])  # f32[1, 6, 4]
return (mixed,)
"""  # noqa: E501 — the printed program is as wide as it is

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir.attention import Written, holds, operands, written_out
from ..ir.cost import nbytes
from ..ir.layout import has_symbols, refresh
from ..ir.program import Program, bind, dtype, shape, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal, erase_unread
from ..ir.stages import kept_as, placement, stages

aten = torch.ops.aten

_FUSED = aten.scaled_dot_product_attention.default
_LARGE = 1e16  # beyond the magnitude of any score


@dataclass(frozen=True)
class FuseAttention(Pass):
    """Let attention written out as product, softmax and product be one operation; rounding.

    Attributes
    ----------
    min_bytes : bytes of all scores together from which on they do not stay in the cores' own caches.
    """

    min_bytes: int = 2 << 20

    accuracy: ClassVar[Accuracy] = "rounding"

    def find(self, program: Program) -> Iterable[Match]:
        known = stages(program)
        for node in program.calls(aten.matmul.default, aten.bmm.default):
            if found := written_out(node):
                early = any(kept_as(known[entry]) != kept_as(known[node]) for entry in found.inner)
                yield Match(node, found.inner, {"found": found, "early": early})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        node, found = match.root, match["found"]
        query, key, _, scale = operands(found, dtype(node))
        softmax, first, sources, reason = found.softmax, found.product, (query, key, found.value), None
        if any(has_symbols(val(entry)) for entry in (node, found.value, *first.all_input_nodes)):
            reason = "a size is known only when the program runs"
        elif any(len(entry.users) > 1 for entry in match.nodes):
            reason = "the scores or their softmax are read elsewhere too"
        elif bind(softmax)["dim"] not in (-1, len(shape(softmax)) - 1):
            reason = "the softmax runs over another dimension than the keys"
        elif match["early"] or any(placement(entry) != placement(node) for entry in match.nodes):
            reason = "the softmax could be kept from an earlier stage than the result"
        elif any(dtype(entry) != dtype(node) for entry in sources):
            reason = "queries, keys and values have different dtypes"
        elif not holds(dtype(softmax), dtype(node)):
            reason = f"the softmax is {dtype(softmax)}, less than {dtype(node)}: fusing would not round as it does"
        elif min(len(shape(entry)) for entry in sources) < 2 or shape(node)[-1] != shape(query)[-1]:
            reason = "keys and values have different widths, for which torch has no fused kernel"
        elif math.prod(shape(first)[:-2]) != math.prod(shape(node)[:-2]):
            reason = "the values or a mask have batch dimensions that the scores lack"
        elif not math.isfinite(scale):
            reason = "the scale is not finite"
        elif nbytes(val(first)) < max(1, self.min_bytes):
            reason = f"the scores take {nbytes(val(first))} bytes, fewer than min_bytes={self.min_bytes}"
        reason = reason or found.reason or _mask_reason(found, dtype(node))
        return Refusal(reason, node) if reason else None

    def rewrite(self, program: Program, match: Match) -> None:
        node, found, read = match.root, match["found"], match["found"].product.all_input_nodes
        query, key, turned, scale = operands(found, dtype(node))
        if not turned:
            key = program.call(aten.transpose.int, key, -2, -1, before=node)
        batch, outer = shape(found.masked or node)[:-2], shape(found.product)[:-2]
        pair = batch if len(batch) == 2 else (math.prod(batch[:-1]), *(batch[-1:] or (1,)))
        sources = ((query, outer), (key, outer), (found.value, shape(node)[:-2]))
        args = [_arranged(program, source, lead, pair, node) for source, lead in sources]
        mask = _mask(program, found, dtype(node), node)
        if (*pair, *shape(node)[-2:]) == shape(node):
            node.target, node.args, node.kwargs = _FUSED, (*args, mask), {"scale": scale}
        else:
            attention = program.call(_FUSED, *args, mask, scale=scale, before=node)
            attention._rename("attention")
            node.target, node.args, node.kwargs = aten.reshape.default, (attention, list(shape(node))), {}
        for entry in match.nodes:
            program.graph.erase_node(entry)
        erase_unread(program, read)
        program.touch(node)
        refresh(program, [node])


def _mask_reason(found: Written, kind: torch.dtype) -> str | None:
    """Why attention cannot apply the masks."""
    exact = torch.finfo(torch.promote_types(kind, torch.float32)).eps  # of the kernel's own sums
    for mask, fill in found.masks:
        if len(shape(found.masked)) > 4 and len(shape(mask)) > 3:
            return "a mask has more than two batch dimensions"
        if fill is None and not holds(kind, dtype(mask)):
            return f"{kind} does not hold a mask of {dtype(mask)}"
        if fill is not None and fill[0] == -math.inf:
            return "a row that is masked everywhere is NaN here, and zero in scaled_dot_product_attention"
        if fill is not None and (-fill[0] * exact < _LARGE or fill[0] < torch.finfo(kind).min):
            return f"a row that {fill[0]} masks everywhere is uniform here; added to the scores, it would not be"
    return None


def _mask(program: Program, found: Written, kind: torch.dtype, node: fx.Node) -> fx.Node | None:
    """The masks as one of four dimensions to add."""
    total: fx.Node | None = None
    for mask, fill in reversed(found.masks):
        if fill is not None and total is None:
            low, where = fill
            base = program.call(aten.full_like.default, mask, 0.0 if where else low, dtype=kind, before=node)
            mask = program.call(aten.masked_fill.Scalar, base, mask, low if where else 0.0, before=node)
        elif fill is None and dtype(mask) != kind:
            mask = program.call(aten._to_copy.default, mask, dtype=kind, before=node)
        if len(shape(mask)) != 4:
            mask = program.call(aten.reshape.default, mask, [1, 1, 1, 1, *shape(mask)][-4:], before=node)
        if total is None:
            total = mask
        elif fill is None:
            total = program.call(aten.add.Tensor, total, mask, before=node)
        else:  # in place of what was added before: two of the lowest numbers would be -inf
            low, where = fill
            fills = (aten.where.ScalarSelf, mask, low, total) if where else (aten.where.ScalarOther, mask, total, low)
            total = program.call(*fills, before=node)
    return total


def _arranged(program: Program, source: fx.Node, outer: Any, pair: Any, node: fx.Node) -> fx.Node:
    """`source` with batch dimensions `outer`, regrouped as two, and its columns next to each other in memory."""
    rows = shape(source)[-2:]
    if val(source).stride(-1) != 1:
        source = program.call(aten.clone.default, source, memory_format=torch.contiguous_format, before=node)
    if shape(source)[:-2] != outer:
        source = program.call(aten.expand.default, source, [*outer, *rows], before=node)
    if tuple(outer) != tuple(pair):
        source = program.call(aten.reshape.default, source, [*pair, *rows], before=node)
    return source
