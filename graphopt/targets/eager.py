"""The reference target: the FX graph as generated Python, one torch operator after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import fx

from ..ir.stages import Part
from .base import Kernel, Target

aten = torch.ops.aten

# Functions that reach the same kernel as the operator, with the same arguments in the same order, through torch's own
# argument parser: a call of `torch.ops.aten.add.Tensor` costs 1.5 µs, one of `torch.add` 0.9 µs.
_BUILTINS: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.cat.default: torch.cat,
    aten.clone.default: torch.clone,
    aten.conv2d.default: torch.conv2d,
    aten.expand.default: torch.Tensor.expand,
    aten.gelu.default: torch._C._nn.gelu,
    aten.group_norm.default: torch.group_norm,
    aten.layer_norm.default: torch.layer_norm,
    aten.linear.default: torch._C._nn.linear,
    aten.permute.default: torch.permute,
    aten.reshape.default: torch.reshape,
    aten.scaled_dot_product_attention.default: torch._C._nn.scaled_dot_product_attention,
    aten.silu.default: torch._C._nn.silu,
    aten.split_with_sizes.default: torch.split_with_sizes,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.view.default: torch.Tensor.view,
}


class Eager(Target):
    """Runs the stage's graph on torch's own kernels. Builds anything, at once, on every device."""

    name: ClassVar[str] = "eager"

    def build(self, part: Part, examples: Sequence[Any]) -> Kernel:
        # The bound method, not the module: a module call costs more than most of the operators it would call.
        return cast(Kernel, fx.GraphModule(part.root, lowered(part.graph), class_name=f"Stage_{part.name}").forward)


def lowered(graph: fx.Graph) -> fx.Graph:
    """A copy that calls what the target calls; the stage keeps its operators, which other targets and reports read."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    for node in copy.nodes:
        node.target = _BUILTINS.get(node.target, node.target)
    return copy
