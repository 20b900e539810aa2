"""``linear(linear(x, v, b), w, c)  →  linear(x, w @ v, w @ b + c)``, and convolutions of which one is 1×1.

where: all readers of the inner result are such layers, and it does not leave the program; weights and biases depend on
    weights alone; float32 or float64. A convolution composes with a 1×1 one that follows it or that it follows; where
    the outer one pads, the inner has no bias: at its border it sees zeros, not that bias.
because: one product instead of two, where it has fewer FLOPs, and enough fewer to make up for composing (`calls`). The
    product of the weights is formed in float64, so that it is off by one rounding.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     inner = ops.aten.linear.default(x, v)
...     outer = ops.aten.linear.default(inner, w)
...     return (outer,)
... ''', x="f64[4, 8]", v="weight f64[16, 8]", w="weight f64[6, 16]")
>>> print(before.rewritten(ComposeLinears()).body)
einsum_default = ops.aten.einsum.default('om,mi->oi', [w, v])  # f64[6, 8]
composed = ops.aten._to_copy.default(einsum_default, dtype=torch.float64, memory_format=torch.contiguous_format)  # f64[6, 8]
outer = ops.aten.linear.default(x, composed)  # f64[4, 6]
return (outer,)
"""  # noqa: E501 — the printed program is as wide as it is

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir.cost import node_cost
from ..ir.layers import LAYERS, double, fixed, layer_weights, place, reads_once, rounded, set_layer
from ..ir.layout import has_symbols, refresh
from ..ir.price import kept_weights
from ..ir.program import Program, bind, dtype, shape, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.stages import placement, stages

aten = torch.ops.aten
# Indices of the outer and the inner weight, the composed one, and how the outer contracts the inner bias.
_LINEAR = ("om,mi->oi", "om,m->o")
_POINT_FIRST = ("omhw,mixy->oihw", "omhw,m->o")
_POINT_LAST = ("omxy,mihw->oihw", "omxy,m->o")


@dataclass(frozen=True)
class ComposeLinears(Pass):
    """Let a linear layer or convolution that only others of its kind read be part of these; rounding.

    Attributes
    ----------
    calls : calls after which composing the weights must have saved as many FLOPs as it took.
    max_bytes : bytes of all kept weights of the program together, at most.
    """

    calls: int = 100
    max_bytes: int = 1 << 30

    accuracy: ClassVar[Accuracy] = "rounding"

    def find(self, program: Program) -> Iterable[Match]:
        known = stages(program)
        for node in program.calls(*LAYERS):
            if any(user.target is node.target and bind(user)["input"] is node for user in node.users):
                yield Match(node, tuple(node.users), {"stages": known})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        inner, reason = match.root, None
        if program.output in inner.users:
            reason = "the inner result leaves the program"
        elif any(outer.target is not inner.target or not reads_once(outer, inner) for outer in match.nodes):
            reason = "the inner result is read elsewhere too"
        for outer in match.nodes:
            reason = reason or _apart(match, outer)
        reason = reason or self._unpaid(program, match)
        return Refusal(reason, inner) if reason else None

    def _unpaid(self, program: Program, match: Match) -> str | None:
        """Why composing costs more than it saves, if so."""
        inner = match.root
        sizes = [_composed(inner, outer) for outer in match.nodes]
        saved = sum(node_cost(layer).flops for layer in (inner, *match.nodes))
        saved -= sum(2 * val(o).numel() * prod(size[1:]) for o, size in zip(match.nodes, sizes, strict=True))
        numbers = sum(map(prod, sizes))
        if saved <= 0:
            return f"the composed layers would have {-saved} more FLOPs"
        if 2 * int(shape(bind(inner)["weight"])[0]) * numbers > self.calls * saved:
            return f"composing takes more FLOPs than calls={self.calls} would save, {saved} each"
        if kept_weights(program) + numbers * dtype(inner).itemsize > self.max_bytes:
            return f"with the composed ones, kept weights would exceed max_bytes={self.max_bytes}"
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        inner, kind, first = match.root, dtype(match.root), bind(match.root)
        inside = [double(program, value, min(match.nodes)) for value in layer_weights(inner)]
        for outer in match.nodes:
            last, before = bind(outer), place(match.nodes, outer)
            wide, bias = double(program, last["weight"], before), last["bias"]
            is_last = _is_point(last)
            weights, biases = (_LINEAR, _POINT_FIRST, _POINT_LAST)["groups" in last and 1 + is_last]
            product = program.call(aten.einsum.default, weights, [wide, inside[0]], before=before)
            weight = rounded(program, product, None, kind, before)
            weight._rename("composed")
            if first["bias"] is not None:
                product = program.call(aten.einsum.default, biases, [wide, inside[1]], before=before)
                bias = rounded(program, product, bias, kind, before)
            set_layer(program, outer, inner if is_last else outer, input=first["input"], weight=weight, bias=bias)
        program.graph.erase_node(inner)
        refresh(program, match.nodes)


def _apart(match: Match, outer: fx.Node) -> str | None:
    """Why two layers are not one, if so."""
    inner = match.root
    weights = [*layer_weights(inner), *layer_weights(outer)]
    if reason := fixed(inner, match["stages"]) or fixed(outer, match["stages"]):
        return reason
    if any(dtype(value) not in (torch.float32, torch.float64) for value in weights):
        return f"the dtype is {dtype(inner)}; composed weights are exact enough in float32 and float64"
    if any(dtype(value) != dtype(inner) for value in weights):
        return "the layers' weights have different dtypes"
    if any(has_symbols(val(value)) for value in (inner, outer)):
        return "a size is known only when the program runs"
    if placement(inner) != placement(outer):
        return "the layers are computed in different stages"
    return _unjoined(bind(inner), bind(outer)) if "groups" in bind(inner) else None


def _unjoined(inner: dict[str, Any], outer: dict[str, Any]) -> str | None:
    """Why two convolutions are not one, if so."""
    if inner["groups"] != 1 or outer["groups"] != 1:
        return "a convolution is grouped"
    if not _is_point(inner) and not _is_point(outer):
        return "neither convolution is 1×1, of stride 1 and without padding"
    if inner["bias"] is not None and any(outer["padding"]):
        return "the outer convolution pads with zeros where the inner one would give its bias"
    return None


def _is_point(bound: dict[str, Any]) -> bool:
    """Whether a layer reads one place for each that it writes; linear layers do."""
    ones = {*shape(bound["weight"])[2:], *bound.get("stride", ())}
    return ones <= {1} and not any(bound.get("padding", ()))


def _composed(inner: fx.Node, outer: fx.Node) -> list[int]:
    """Shape of the composed weight: one of the kernels is 1×1."""
    last, first = shape(bind(outer)["weight"]), shape(bind(inner)["weight"])
    return [int(n) for n in (last[0], first[1], *map(max, last[2:], first[2:]))]
