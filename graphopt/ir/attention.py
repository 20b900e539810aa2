"""Attention as models write it out, product, softmax, product, read back as queries, keys, values, scale and mask.

The second product names the place. Between the products may stand, in any order that keeps the meaning: numbers that
scale (also in front of the first product, on queries and keys), masks, casts, copies, inactive dropout, and views
that regroup the batch dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import fx

from graphopt.ir.effects import has_effect
from graphopt.ir.program import bind, dtype, shape, val

aten = torch.ops.aten

Fill: TypeAlias = tuple[float, bool]
_PRODUCTS: dict[Any, tuple[str, str]] = {
    aten.matmul.default: ("self", "other"),
    aten.bmm.default: ("self", "mat2"),
    aten.baddbmm.default: ("batch1", "batch2"),
}
_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default)
_COPIES = (aten._to_copy.default, aten.clone.default, aten.alias.default, aten.dropout.default)
_SCALES = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
_TURNS = (aten.transpose.int, aten.permute.default, aten.mT.default)
_MAX_MASKS = 4  # each addition is read both ways
_FILLS: dict[
    Any, tuple[str, str, str, bool]
] = {  # the names of: what is kept, the condition, the number that masks; and whether it does where that holds
    aten.masked_fill.Scalar: ("self", "mask", "value", True),
    aten.where.ScalarSelf: ("other", "condition", "self", True),
    aten.where.ScalarOther: ("self", "condition", "other", False),
}


@dataclass(frozen=True)
class Written:
    """Attention written out.

    Attributes
    ----------
    inner : the nodes between the products and the first product itself, each before those that it reads.
    softmax, value : the softmax, and what its result is multiplied with.
    scale : the product of all numbers after the first product.
    masked : the node that applies the last mask.
    masks : the masks, the last first; each with None where it is added, or for one of booleans the number that it puts
        in and whether it does so where it holds.
    reason : why this is no attention after all, where it is nearly that.
    """

    inner: tuple[fx.Node, ...]
    softmax: fx.Node
    value: fx.Node
    scale: float = 1.0
    masked: fx.Node | None = None
    masks: tuple[tuple[fx.Node, Fill | None], ...] = ()
    reason: str | None = None

    @property
    def product(self) -> fx.Node:
        """The first product: the scores before scale and mask."""
        return self.inner[-1]


def written_out(node: fx.Node) -> Written | None:
    """The attention whose second product is `node`, a ``matmul`` or ``bmm``; None where there is no softmax."""
    above, value = (bind(node)[name] for name in _PRODUCTS[node.target])
    weights = [above]
    while _passes_on(weights[-1]):
        weights.append(weights[-1].all_input_nodes[0])
    if weights[-1].target not in _SOFTMAX:
        return None
    found = _scores(bind(weights[-1])["self"], Written(tuple(weights), weights[-1], value))
    return None if found is None or value in found.inner else found


def operands(found: Written, kind: torch.dtype) -> tuple[fx.Node, fx.Node, bool, float]:
    """Queries, keys, whether these have one row each, and the scale: without numbers and casts from `kind` in front."""
    left, right = (bind(found.product)[name] for name in _PRODUCTS[found.product.target])
    (query, one), (key, two) = _bare(left, kind), _bare(right, kind)
    if key.target in _TURNS and _place(val(source := key.all_input_nodes[0]).mT) == _place(val(key)):
        key, three = _bare(source, kind)
        return query, key, True, found.scale * one * two * three
    return query, key, False, found.scale * one * two


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every float of `narrow` is one of `wide`."""
    return torch.promote_types(wide, narrow) == wide


# -- reading down from the softmax -----------------------------------------------------------------------------------


def _passes_on(node: fx.Node) -> bool:
    """Whether `node` is its only argument in another dtype or with other batch dimensions."""
    if node.target not in (*_COPIES, *_VIEWS) or has_effect(node):
        return False
    new, old = val(node), val(node.all_input_nodes[0])
    floats = new.is_floating_point() and old.is_floating_point()
    return floats and new.device == old.device and len(old.shape) > 1 and new.shape[-2:] == old.shape[-2:]


def _scores(node: Any, found: Written) -> Written | None:
    """What `node` computes, as scores; None where no product is found."""
    if not isinstance(node, fx.Node) or not isinstance(val(node), torch.Tensor):
        return None
    if node.op != "call_function":
        return None
    found, bound = replace(found, inner=(*found.inner, node)), bind(node)
    if node.target in _PRODUCTS:
        if bound.get("beta", 0) != 0:
            found = _with_mask(found, node, bound["self"], reason=None if bound["beta"] == 1 else "a mask is scaled")
        if found.masked is not None and shape(found.masked)[-2:] != shape(node)[-2:]:
            found = replace(found, reason=found.reason or "a mask has queries or keys that the scores lack")
        return replace(found, scale=found.scale * bound.get("alpha", 1))
    if _passes_on(node):
        return _scores(node.all_input_nodes[0], found)
    if factor := _factor(node):
        return _scores(node.args[0], replace(found, scale=found.scale * factor))
    if node.target in _SCALES and any(isinstance(entry, fx.Node) for entry in node.args[1:]):
        return _scores(node.args[0], replace(found, reason="the scale is a tensor"))
    if node.target is aten.add.Tensor and bound["alpha"] == 1:
        orders = ((bound["self"], bound["other"]), (bound["other"], bound["self"]))
        for source, mask in orders if len(found.masks) < _MAX_MASKS else ():
            if isinstance(mask, fx.Node) and mask is not source and (
                scores := _scores(source, _with_mask(found, node, mask))
            ):  # fmt: skip
                return scores
    if node.target in _FILLS:
        kept, condition, number, where = _FILLS[node.target]
        fill = (float(bound[number]), where)
        return _scores(bound[kept], _with_mask(found, node, bound[condition], fill))
    return None


def _with_mask(
    found: Written, node: fx.Node, mask: fx.Node, fill: Fill | None = None, reason: str | None = None
) -> Written:
    if found.masked is not None and shape(found.masked) != shape(node):
        reason = "masks are applied to scores of different shapes"
    elif found.scale != 1:
        reason = "a mask is scaled"
    masks = (*found.masks, (mask, fill))
    return replace(found, masked=found.masked or node, masks=masks, reason=found.reason or reason)


def _factor(node: fx.Node) -> float | None:
    """The number by which `node` multiplies floats of its own dtype; None for anything else."""
    if node.target not in _SCALES or len(node.args) != 2 or dtype(node.args[0]) != dtype(node):
        return None
    number, divides = node.args[1], node.target in (aten.div.Tensor, aten.div.Scalar)
    if isinstance(number, bool) or not isinstance(number, int | float) or (divides and number == 0):
        return None
    return 1 / number if divides else float(number)


def _bare(node: fx.Node, kind: torch.dtype) -> tuple[fx.Node, float]:
    """What `node` is a multiple of, cast back to `kind` where it was cast from that to hold more."""
    number = 1.0
    while node.op == "call_function":
        if factor := _factor(node):
            number *= factor
        elif node.target is not aten._to_copy.default or dtype(node.args[0]) != kind or not holds(dtype(node), kind):
            break
        node = node.all_input_nodes[0]
    return node, number


def _place(value: torch.Tensor) -> tuple[Any, ...]:
    return tuple(value.shape), value.stride(), value.storage_offset()
