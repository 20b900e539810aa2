"""``linear(x * s, w, b)  →  linear(x, w * s, b)``, ``linear(x, w, b) * s  →  linear(x, s * w, s * b)``, and alike.

where: s is a number, or a vector along the layer's inputs (outputs) that depends on weights alone; the layer is linear
    or a convolution; nothing else reads the value in between. Also ``x / s``; the weight of ``rms_norm``; weight and
    bias of ``layer_norm`` (`layer_norms`); ``x ± t`` of a rounded x, adding ``w @ t`` where the layer does not pad.
because: an operation on x at every call becomes one on a weight when weights change.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     mul = ops.aten.mul.Tensor(x, s)
...     linear = ops.aten.linear.default(mul, w, b)
...     return (linear,)
... ''', x="f32[4, 8]", s="weight f32[8]", w="weight f32[6, 8]", b="weight f32[6]")
>>> print(before.rewritten(FoldScales()).body)
folded = ops.aten.mul.Tensor(w, s)  # f32[6, 8]
linear = ops.aten.linear.default(x, folded, b)  # f32[4, 6]
return (linear,)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir.cost import nbytes
from ..ir.layers import LAYERS, along, double, fixed, is_along, layer_weights, place, reads_once, rounded, set_layer
from ..ir.layout import has_symbols, refresh
from ..ir.price import kept_weights
from ..ir.program import Program, bind, dtype, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.stages import WEIGHTS, Stage, placement, stages

aten = torch.ops.aten
_SCALES = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
_SHIFTS = (aten.add.Tensor, aten.sub.Tensor)
_NORMS = (aten.layer_norm.default, aten.rms_norm.default)
# Not float16: a weight times a scale may leave its small range where the value times the scale does not.
_KINDS = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class FoldScales(Pass):
    """Let layers take in the scales and shifts of what they read or write; rounding.

    Attributes
    ----------
    layer_norms : also those of ``layer_norm``, whose kernel applies them on the way and vectorises float32 only so.
    max_bytes : bytes of all kept weights of the program together, at most.
    """

    layer_norms: bool = False
    max_bytes: int = 1 << 30

    accuracy: ClassVar[Accuracy] = "rounding"

    def find(self, program: Program) -> Iterable[Match]:
        known = stages(program)
        for node in program.calls(*_SCALES, *_SHIFTS, *_NORMS):
            source, scale, shift = _terms(node, known)
            if known[node] == WEIGHTS or (scale is None and shift is None) or not isinstance(source, fx.Node):
                continue
            found = {"stages": known, "source": source, "scale": scale, "shift": shift}
            if any(user.target in LAYERS and bind(user)["input"] is node for user in node.users):
                yield Match(node, tuple(node.users), {**found, "between": node})
            elif source.target in LAYERS and node.target in _SCALES:
                yield Match(node, (source,), {**found, "between": source})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        node, between, reason = match.root, match["between"], None
        factors = [entry for entry in (match["scale"], match["shift"]) if entry is not None]
        if node.target is aten.layer_norm.default and not self.layer_norms:
            reason = "layer_norm applies its weight and bias on the way (layer_norms=False)"
        elif program.output in between.users:
            reason = "the value in between leaves the program"
        elif len(between.users) > 1 if between is not node else not all(reads_once(user, node) for user in match.nodes):
            reason = "the value in between is read elsewhere too"
        elif any(isinstance(entry, fx.Node) and match["stages"][entry] != WEIGHTS for entry in factors):
            reason = "the scale or shift is computed from inputs of the call"
        elif not all(isinstance(entry, fx.Node) or _is_plain(node, entry) for entry in factors):
            reason = "the number scales by nothing finite, or shifts"
        elif node.target in _SHIFTS and bind(node)["alpha"] != 1:
            reason = "the shift is scaled"
        elif node.target in _SHIFTS and not _is_rounded(match["source"]):
            reason = "an exact value, which the shift may cancel but not the products of both"
        for layer in match.nodes:
            reason = reason or _unfit(match, layer, [entry for entry in factors if isinstance(entry, fx.Node)])
        added = 0 if reason else sum(nbytes(val(bind(layer)["weight"])) for layer in match.nodes)
        if added and kept_weights(program) + added > self.max_bytes:
            reason = f"with the folded ones, kept weights would exceed max_bytes={self.max_bytes}"
        return Refusal(reason, node) if reason else None

    def rewrite(self, program: Program, match: Match) -> None:
        node, source, scale, shift = match.root, match["source"], match["scale"], match["shift"]
        operation = aten.mul.Tensor if node.target in _NORMS else node.target
        if match["between"] is source:
            bound = bind(source)
            weight = _scaled(program, operation, bound["weight"], scale, LAYERS[source.target] - 1, node)
            bias = bound["bias"] and _scaled(program, operation, bound["bias"], scale, 0, node)
            set_layer(program, node, source, weight=weight, bias=bias)
        for layer in match.nodes if match["between"] is node else ():
            weight, bias, before = bind(layer)["weight"], bind(layer)["bias"], place(match.nodes, layer)
            if shift is not None:
                pair = [double(program, value, before) for value in (weight, along(program, shift, 0, before))]
                product = program.call(aten.einsum.default, "om...,m->o", pair, before=before)
                if node.target is aten.sub.Tensor:
                    product = program.call(aten.neg.default, product, before=before)
                bias = rounded(program, product, bias, dtype(weight), before)
            if scale is not None:
                weight = _scaled(program, operation, weight, scale, LAYERS[layer.target] - 2, before)
            set_layer(program, layer, layer, input=node if node.target in _NORMS else source, weight=weight, bias=bias)
        if node.target in _NORMS:
            bare = {name: None if name in ("weight", "bias") else value for name, value in bind(node).items()}
            node.args, node.kwargs = tuple(bare.values()), {}
            program.touch(node)
        else:
            program.graph.erase_node(match["between"])
        refresh(program, [entry for entry in (node, *match.nodes) if not entry._erased])


def _terms(node: fx.Node, known: dict[fx.Node, Stage]) -> tuple[fx.Node, Any, Any]:
    """What is scaled or shifted, the scale and the shift (or None); of a product or sum, what depends on weights."""
    bound = bind(node)
    if node.target in _NORMS:
        return bound["input"], bound["weight"], bound.get("bias")
    source, factor = bound["self"], bound["other"]
    if node.target in (aten.mul.Tensor, aten.add.Tensor) and known.get(source, WEIGHTS) == WEIGHTS:  # or a number
        source, factor = factor, source
    return (source, None, factor) if node.target in _SHIFTS else (source, factor, None)


def _is_plain(node: fx.Node, number: Any) -> bool:
    """Whether a number scales what it is applied to, and gives finite weights: it is real, and no division by 0."""
    scales = _SCALES if number else _SCALES[:2]
    return node.target in scales and isinstance(number, int | float) and math.isfinite(number)


def _is_rounded(node: fx.Node) -> bool:
    """Whether a value is off by its own rounding, so that an error of that size in its products is none worse."""
    return node.target in (*LAYERS, *_NORMS) or (node.target in _SCALES and len(node.all_input_nodes) == 2)


def _unfit(match: Match, layer: fx.Node, vectors: list[fx.Node]) -> str | None:
    """Why a layer cannot take in the scale and shift, if so."""
    node, bound, source = match.root, bind(layer), match["source"]
    kinds = {dtype(value) for value in (node, source, *layer_weights(layer), *vectors)}
    axis = -1 if layer.target is aten.linear.default else -3
    if reason := fixed(layer, match["stages"]):
        return reason
    if len(kinds) > 1 or not kinds <= set(_KINDS):
        return f"dtypes must agree, and not be float16: {', '.join(sorted(map(str, kinds)))}"
    if any(has_symbols(val(entry)) or not is_along(val(entry), val(source), axis) for entry in vectors):
        return "the scale or shift is no vector along the layer's channels"
    if match["between"] is node and bound.get("groups", 1) != 1 and vectors:
        return "the convolution is grouped"
    if match["shift"] is not None and any(bound.get("padding", ())):
        return "the convolution pads with zeros, which the shift does not reach"
    return None if placement(layer) == placement(node) else "the layer is computed in another stage"


def _scaled(program: Program, operation: Any, value: fx.Node, scale: Any, trailing: int, before: fx.Node) -> fx.Node:
    """``value * scale`` (or ``/``), the scale along the dimension that `trailing` others follow."""
    vector = along(program, scale, trailing, before) if isinstance(scale, fx.Node) else scale
    folded = program.call(operation, value, vector, before=before)
    folded._rename("folded")
    return folded
