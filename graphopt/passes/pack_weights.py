"""``linear(x, w, b) → linear_pointwise(x, pack(w), b)`` and ``conv2d(x, w, b) → convolution_pointwise(x, pack(w), b)``.

where: on the CPU with oneDNN; float32 or bfloat16; the weight depends on weights alone, so that packing it happens once
    and again when weights change; sizes known; the bias, if any, contiguous; enough work (`min_flops`) that a faster
    kernel outweighs a slower call.
because: oneDNN runs at the machine's peak when the weight lies in the order in which its kernels read it, in blocks of
    output channels. ATen packs at every call (convolution) or calls another library (linear), which on CPUs of other
    makers than its own does without their widest vectors. Packed convolutions give channels-last results, and so do
    the elementwise operations between them: no layout is converted on the way.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     linear = ops.aten.linear.default(x, w, b)
...     return (linear,)
... ''', x="f32[64, 256]", w="weight f32[512, 256]", b="weight f32[512]")
>>> print(before.rewritten(PackWeights()).body)
pack = ops.mkldnn._reorder_linear_weight.default(w, 64)  # f32[512, 256]
linear = ops.mkldnn._linear_pointwise.default(x, pack, b, 'none', [], '')  # f32[64, 512]
return (linear,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..ir.cost import node_cost
from ..ir.layers import pair
from ..ir.layout import has_symbols, refresh
from ..ir.program import Program, bind, shape, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.stages import WEIGHTS, stages

aten = torch.ops.aten
mkldnn = torch.ops.mkldnn


@dataclass(frozen=True)
class PackWeights(Pass):
    """Pack the weights of linear layers and convolutions for oneDNN; rounding.

    Attributes
    ----------
    min_flops : FLOPs below which the call itself is what takes the time, and ATen's call is the cheaper one.
    max_terms : terms of a convolution's sums beyond which it stays as it is; None: any number. oneDNN adds up a
        channels-last convolution in one running sum, ATen's contiguous one in blocks, so that with many terms the
        packed kernel's rounding error is two to three times as large.
    """

    min_flops: int = 2 << 20
    max_terms: int | None = None

    accuracy: ClassVar[Accuracy] = "rounding"
    repeat: ClassVar[bool] = False  # a packed layer is no match, and what was refused stays so

    def find(self, program: Program) -> Iterable[Match]:
        known = stages(program)
        for node in program.calls(aten.linear.default, aten.conv2d.default):
            weight = bind(node)["weight"]
            yield Match(node, captures={"weight": weight, "stage": known[weight]})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        node, bound, weight = match.root, bind(match.root), val(match["weight"])
        values = [val(node), val(bound["input"]), weight, *([val(bound["bias"])] if bound["bias"] is not None else [])]
        reason = None
        if not torch.backends.mkldnn.is_available():
            reason = "this build of torch has no oneDNN"
        elif weight.device.type != "cpu":
            reason = f"the layer runs on {weight.device.type}; oneDNN packs for the CPU"
        elif weight.dtype not in (torch.float32, torch.bfloat16):
            reason = f"the dtype is {weight.dtype}; oneDNN packs float32 and bfloat16"
        elif weight.dtype == torch.bfloat16 and not mkldnn._is_mkldnn_bf16_supported():
            reason = "this CPU has no instructions for bfloat16"
        elif match["stage"] != WEIGHTS:
            reason = "the weight is computed from inputs of the call: it would be packed at every step"
        elif any(has_symbols(value) for value in values):
            reason = "a size is known only when the program runs"
        elif node.target is aten.conv2d.default and len(shape(node)) != 4:
            reason = "the convolution has no batch dimension"
        elif node.target is aten.linear.default and weight.ndim != 2:
            reason = "the weight is a vector"
        elif node.target is aten.conv2d.default and self.max_terms is not None and weight[0].numel() > self.max_terms:
            reason = f"sums of {weight[0].numel()} terms, more than max_terms={self.max_terms}: less exact when packed"
        elif bound["bias"] is not None and not _lies_plain(val(bound["bias"]), weight.shape[0]):
            reason = "the bias is strided or broadcast; oneDNN reads it as if its numbers lay one after the other"
        elif node_cost(node).flops < self.min_flops:
            reason = f"{node_cost(node).flops} FLOPs, fewer than min_flops={self.min_flops}: the call takes the time"
        return Refusal(reason, node) if reason else None

    def rewrite(self, program: Program, match: Match) -> None:
        node, bound = match.root, bind(match.root)
        source, weight = bound["input"], match["weight"]
        sizes = list(shape(source))
        if node.target is aten.linear.default:
            rows = val(source).numel() // sizes[-1]
            packed = program.call(mkldnn._reorder_linear_weight.default, weight, rows, before=node)
            geometry: tuple[Any, ...] = ()
            node.target = mkldnn._linear_pointwise.default
        else:
            padding, stride, dilation = (pair(bound[name]) for name in ("padding", "stride", "dilation"))
            geometry = (padding, stride, dilation, bound["groups"])
            packed = program.call(mkldnn._reorder_convolution_weight.default, weight, *geometry, sizes, before=node)
            node.target = mkldnn._convolution_pointwise.default
        packed._rename("pack")
        node.args, node.kwargs = (source, packed, bound["bias"], *geometry, "none", [], ""), {}
        program.touch(node)
        refresh(program, [node])


def _lies_plain(bias: torch.Tensor, size: int) -> bool:
    """Whether a bias is one contiguous number per output channel."""
    return tuple(bias.shape) == (size,) and bias.is_contiguous()
