"""Linear layers and convolutions as one kind of node: contract channels with a weight, add a bias.

What passes that rewrite weights have in common: which layers allow it, and how new weights are formed in float64, so
that they are rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from graphopt.ir.layout import has_symbols
from graphopt.ir.program import Program, bind, dtype, shape, val
from graphopt.ir.stages import WEIGHTS, Stage

aten = torch.ops.aten

LAYERS: dict[Any, int] = {aten.linear.default: 2, aten.conv2d.default: 4}  # with the rank of their weights


def layer_weights(layer: fx.Node) -> list[fx.Node]:
    """The weight of a layer, and its bias if it has one."""
    bound = bind(layer)
    return [value for value in (bound["weight"], bound["bias"]) if value is not None]


def reads_once(node: fx.Node, value: fx.Node) -> bool:
    """Whether `node` is a layer that reads `value` as its input and as nothing else."""
    first, *others = bind(node).values()
    return node.target in LAYERS and first is value and value not in others


def fixed(layer: fx.Node, known: Mapping[fx.Node, Stage]) -> str | None:
    """Why new weights cannot take the place of a layer's, if so.

    Parameters
    ----------
    known : the stages of nodes; those it lacks were made by the pass at work, from weights.
    """
    weights = layer_weights(layer)
    if any(known.get(value, WEIGHTS) != WEIGHTS for value in weights):
        return "a weight is computed from inputs of the call: the new one would be, at every step"
    if any(has_symbols(val(value)) for value in weights):
        return "a size is known only when the program runs"
    if len(shape(weights[0])) != LAYERS[layer.target] or any(len(shape(bias)) != 1 for bias in weights[1:]):
        return "a weight is no matrix, or a bias no vector"
    return None


def pair(value: list[int]) -> list[int]:
    """A convolution's option for both dimensions: ``[1]`` means ``[1, 1]``."""
    return list(value) * 2 if len(value) == 1 else list(value)


def place(layers: Sequence[fx.Node], layer: fx.Node) -> fx.Node:
    """Before which node to form new weights of one of several layers: the first, so that all can be merged there.

    A layer whose weights are computed later has its new ones in front of itself.
    """
    first = min(layers)
    return first if all(value < first for value in layer_weights(layer)) else layer


def double(program: Program, value: fx.Node, before: fx.Node) -> fx.Node:
    """Insert the cast to float64 of what is not float64."""
    if dtype(value) == torch.float64:
        return value
    return program.call(aten._to_copy.default, value, dtype=torch.float64, before=before)


def rounded(program: Program, value: fx.Node, plus: fx.Node | None, kind: torch.dtype, before: fx.Node) -> fx.Node:
    """Insert the contiguous cast of ``value + plus``, added in float64."""
    if plus is not None:
        value = program.call(aten.add.Tensor, value, double(program, plus, before), before=before)
    plain = torch.contiguous_format
    return program.call(aten._to_copy.default, value, dtype=kind, memory_format=plain, before=before)


def is_along(vector: torch.Tensor, value: torch.Tensor, axis: int) -> bool:
    """Whether a (fake) tensor varies along one axis, counted from the end, of what it is applied to, or nowhere."""
    varies = {dim - vector.ndim: size for dim, size in enumerate(vector.shape) if size != 1}
    return vector.ndim <= value.ndim and (not varies or varies == {axis: value.shape[axis]})


def along(program: Program, vector: fx.Node, trailing: int, before: fx.Node) -> fx.Node:
    """The numbers of `vector` along the dimension that `trailing` others follow."""
    sizes = (val(vector).numel(), *[1] * trailing)
    return vector if shape(vector) == sizes else program.call(aten.reshape.default, vector, list(sizes), before=before)


def set_layer(program: Program, node: fx.Node, layer: fx.Node, **changes: Any) -> None:
    """Let `node` be what `layer` is but for `changes`: its arguments by name."""
    bound = {**bind(layer), **changes}
    node.target, node.args, node.kwargs = layer.target, tuple(bound.values()), {}
    if node.target is aten.linear.default and bound["bias"] is None:
        node.args = node.args[:2]
    program.touch(node)
