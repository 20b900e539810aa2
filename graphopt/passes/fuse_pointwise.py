"""``f(packed(x))  →  packed(x, attr=f)`` and ``packed(x) + y  →  packed.binary(x, y, attr=add)``.

where: the packed linear layer or convolution (`pack_weights`) has no other reader and applies no function yet; f is
    sigmoid, silu, tanh or gelu (not relu: oneDNN's gives 0 for NaN); y has the shape and dtype of the result; both
    operations depend on the same inputs, so that nothing that could be kept from an earlier stage moves into a later.
because: oneDNN applies the function to a block of results while it is in registers. The result is written and read once
    less, one call falls away, and its gelu and tanh are vectorised polynomials where ATen's are scalar calls.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     pack = ops.mkldnn._reorder_linear_weight.default(w, 4)
...     linear = ops.mkldnn._linear_pointwise.default(x, pack, None, 'none', [], '')
...     gelu = ops.aten.gelu.default(linear, approximate='tanh')
...     return (gelu,)
... ''', x="f32[4, 8]", w="weight f32[6, 8]")
>>> print(before.rewritten(FusePointwise()).body)
pack = ops.mkldnn._reorder_linear_weight.default(w, 4)  # f32[6, 8]
gelu = ops.mkldnn._linear_pointwise.default(x, pack, None, 'gelu', [], 'tanh')  # f32[4, 6]
return (gelu,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir.layout import refresh
from ..ir.program import Program, bind, dtype, shape
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.stages import placement, stages

aten = torch.ops.aten
mkldnn = torch.ops.mkldnn

UNARY: dict[Any, str] = {
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "swish",
    aten.tanh.default: "tanh",
    aten.gelu.default: "gelu",
}
BINARY = {
    mkldnn._linear_pointwise.default: mkldnn._linear_pointwise.binary,
    mkldnn._convolution_pointwise.default: mkldnn._convolution_pointwise.binary,
}


@dataclass(frozen=True)
class FusePointwise(Pass):
    """Let packed layers apply the function or the addition that follows them; rounding."""

    accuracy: ClassVar[Accuracy] = "rounding"

    def find(self, program: Program) -> Iterable[Match]:
        known = stages(program)
        for node in program.calls(*UNARY, aten.add.Tensor):
            for layer in reversed(node.all_input_nodes):
                if layer.target in BINARY:
                    yield Match(node, (layer,), {"layer": layer, "same": known[layer] == known[node]})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        node, layer = match.root, match["layer"]
        reason = None
        if node.target not in (*UNARY, aten.add.Tensor):
            reason = "the operation was fused into another layer"
        elif len(layer.users) > 1:
            reason = "the layer's result is read elsewhere too"
        elif _attribute(layer) != "none":
            reason = f"the layer applies {_attribute(layer)} already"
        elif not match["same"] or placement(node) != placement(layer):
            reason = "the layer could be kept from an earlier stage than the operation"
        elif node.target is aten.add.Tensor:
            reason = self._addable(node, layer)
        return Refusal(reason, node) if reason else None

    def _addable(self, node: fx.Node, layer: fx.Node) -> str | None:
        bound, other = bind(node), _other(node, layer)
        if bound["alpha"] != 1:
            return "the addition scales its argument"
        if not isinstance(other, fx.Node) or other is layer:
            return "it adds a number, or the result to itself"
        if shape(other) != shape(layer) or dtype(other) != dtype(layer):
            return f"it adds a {dtype(other)} tensor of shape {shape(other)} to a {dtype(layer)} of {shape(layer)}"
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        node, layer = match.root, match["layer"]
        head = layer.args[:-3]
        if node.target is aten.add.Tensor:
            other = _other(node, layer)
            scale: tuple[Any, ...] = () if layer.target is mkldnn._linear_pointwise.default else (1, None, [], None)
            node.target, args = BINARY[layer.target], (head[0], other, *head[1:], "add", *scale)
        else:
            algorithm = bind(node)["approximate"] if node.target is aten.gelu.default else ""
            args = (*head, UNARY[node.target], [], algorithm)
            node.target = layer.target
        node.args, node.kwargs = args, {}
        program.graph.erase_node(layer)
        program.touch(node)
        refresh(program, [node])


def _attribute(layer: fx.Node) -> str:
    return str(layer.args[-3])


def _other(node: fx.Node, layer: fx.Node) -> Any:
    """What an addition adds to `layer`."""
    bound = bind(node)
    return bound["other"] if bound["self"] is layer else bound["self"]
