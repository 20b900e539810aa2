"""``conv2d(x, w, b) → winograd_conv2d(x, w, b)``: fewer products, in tiles of 2 × 2 or 4 × 4 outputs.

where: float32 on the CPU; a 3 × 3 filter of stride 1, not dilated, in one group; the weight depends on weights alone,
    so that it is laid out once and again when weights change; sizes known; on a target with kernels for it.
because: a tile of m × m outputs takes (m + 2)² products a channel instead of 9 m²: 4/9 of them for m = 2, 1/4 for
    m = 4. Against that stand the transforms, of the weight, too: kept transformed it would be 16/9 or 4 times as large,
    and reading it takes longer than transforming it. Images of few tiles pay more for these than they save, and keep
    the sum as it is, or the smaller tile.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     conv2d = ops.aten.conv2d.default(x, w, b, [1, 1], [1, 1])
...     return (conv2d,)
... ''', x="f32[1, 64, 32, 32]", w="weight f32[64, 64, 3, 3]", b="weight f32[64]")
>>> print(before.rewritten(Winograd()).body)
winograd = ops.graphopt.winograd_conv2d.default(x, w, b, [1, 1], 4)  # f32[1, 64, 32, 32]
return (winograd,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir import winograd
from ..ir.cost import nbytes
from ..ir.layers import pair
from ..ir.layout import has_symbols, refresh
from ..ir.program import Program, bind, shape, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.stages import WEIGHTS, stages

aten = torch.ops.aten


@dataclass(frozen=True)
class Winograd(Pass):
    """Compute 3 × 3 convolutions tile by tile; rounding.

    Attributes
    ----------
    tiles : sizes of tiles to choose from, of 2 and 4. With 2 errors are those of the direct sum, with 4 three to four
        times as large.
    min_gain : how many times cheaper it has to be, all counted.
    max_workspace : bytes of a transformed input, at most.
    flops_per_byte : FLOPs done in the time of reading a byte of a weight.
    transform_flops : FLOPs done in the time of transforming a number of the input or of the sums.
    weight_flops : FLOPs done in the time of computing a number of the transformed weight.
    """

    tiles: tuple[int, ...] = (2, 4)
    min_gain: float = 1.2
    max_workspace: int = 512 << 20
    flops_per_byte: float = 10.0
    transform_flops: float = 40.0
    weight_flops: float = 8.0

    accuracy: ClassVar[Accuracy] = "rounding"
    repeat: ClassVar[bool] = False  # what was refused stays so
    spreads: ClassVar[bool] = True  # over a whole tile

    def find(self, program: Program) -> Iterable[Match]:
        known = stages(program)
        for node in program.calls(aten.conv2d.default):
            captures: dict[str, Any] = {"stage": known[bind(node)["weight"]]}
            if self._reason(node, captures["stage"]) is None:
                tile, cost = min(((tile, self._cost(node, tile)) for tile in self.tiles), key=lambda entry: entry[1])
                captures |= {"tile": tile, "gain": self._cost(node, None) / cost}
            yield Match(node, captures=captures)

    def legal(self, program: Program, match: Match) -> Refusal | None:
        node = match.root
        reason = self._reason(node, match["stage"])
        if reason is None and match["gain"] < self.min_gain:
            reason = f"{match['gain']:.2f} times as cheap, less than min_gain={self.min_gain:g}"
        elif reason is None and (size := self._workspace(node, match["tile"])) > self.max_workspace:
            reason = f"its input takes {size} bytes when transformed, of max_workspace={self.max_workspace}"
        return Refusal(reason, node) if reason else None

    def rewrite(self, program: Program, match: Match) -> None:
        node, bound = match.root, bind(match.root)
        node.target = winograd.conv2d
        node.args = (bound["input"], bound["weight"], bound["bias"], pair(bound["padding"]), match["tile"])
        node.kwargs = {}
        node._rename("winograd")
        program.touch(node)
        refresh(program, [node])

    def _reason(self, node: fx.Node, stage: Any) -> str | None:
        """Why the transforms do not apply to a convolution, if so."""
        bound = bind(node)
        source, weight = val(bound["input"]), val(bound["weight"])
        values = [val(node), source, weight, *([val(bound["bias"])] if bound["bias"] is not None else [])]
        if any(has_symbols(value) for value in values):
            return "a size is known only when the program runs"
        if weight.device.type != "cpu":
            return f"the convolution runs on {weight.device.type}; kernels are generated for the CPU"
        if any(value.dtype != torch.float32 for value in values):
            return f"the dtype is {weight.dtype}; kernels are generated for float32"
        if source.ndim != 4 or tuple(weight.shape[2:]) != (winograd.FILTER,) * 2:
            return f"the filter is {' × '.join(map(str, weight.shape[2:]))}, not 3 × 3 over images"
        for name, only in (("stride", 1), ("dilation", 1)):
            if set(bound[name]) != {only}:
                return f"the {name} is {bound[name]}"
        if bound["groups"] != 1:
            return f"it has {bound['groups']} groups"
        if not val(node).numel():
            return "there is nothing to compute"
        if stage != WEIGHTS:
            return "the weight is computed from inputs of the call: it would be laid out anew at every step"
        return None

    def _cost(self, node: fx.Node, tile: int | None) -> float:
        """FLOPs, and what else takes as long as so many; without a tile of the direct sum."""
        outputs, channels = val(bind(node)["weight"]).shape[:2]
        batch, _, rows, columns = shape(node)
        read = self.flops_per_byte * nbytes(val(bind(node)["weight"]))
        if tile is None:
            return float(2 * winograd.FILTER**2 * outputs * channels * batch * rows * columns + read)
        points = winograd.transforms(tile).points ** 2
        tiles = batch * ceil(rows / tile) * ceil(columns / tile)
        lanes = max(16, ceil(tiles / 8) * 8)  # vectors of at least 8, of which two keep a core busy
        products = 2 * points * outputs * channels * lanes
        turned = self.weight_flops * points * outputs * channels * ceil(tiles / 64)  # again for each task of so many
        return float(products + self.transform_flops * points * tiles * (outputs + channels) + turned + read)

    def _workspace(self, node: fx.Node, tile: int) -> int:
        """Bytes of the input, transformed."""
        batch, _, rows, columns = shape(node)
        source, points = val(bind(node)["input"]), winograd.transforms(tile).points ** 2
        numbers = source.shape[1] * points * batch * ceil(rows / tile) * ceil(columns / tile)
        return int(source.element_size() * numbers)
