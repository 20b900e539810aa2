"""What the target knows about torch's operators: views as maps of indices, pointwise operations as TensorIR.

A view is a function from an index of its result to the index of its source that it shows. Elements in between two
views need no memory: a kernel that reads through them reads the source.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx
from tvm import tirx

from ...ir.program import bind, val
from .emit import Emitter, Expr

aten = torch.ops.aten

Index: TypeAlias = tuple[Expr, ...]

_ZERO = tirx.const(0, "int32")


def is_float(value: Any) -> bool:
    """Whether a value is a float32 tensor on the CPU of known size."""
    return (
        isinstance(value, torch.Tensor)
        and value.dtype == torch.float32
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and all(isinstance(size, int) for size in value.shape)
        and value.numel() < 1 << 31
    )


# -- views -----------------------------------------------------------------------------------------------------------


def reindexed(index: Index, shape: Sequence[int], source: Sequence[int]) -> Index:
    """The index in `source` of the element that has `index` in `shape`, in row-major order: both have as many.

    Dimensions are matched from the front in runs of equal products, so that what stays whole needs no division.
    """
    found: list[Expr] = []
    at = 0
    place = 0
    while place < len(source) or at < len(shape):
        here, there = [], []
        left = right = 1
        if place < len(source):
            there.append(source[place])
            right *= source[place]
            place += 1
        if at < len(shape):
            here.append(at)
            left *= shape[at]
            at += 1
        while left != right:
            if left < right:
                here.append(at)
                left *= shape[at]
                at += 1
            else:
                there.append(source[place])
                right *= source[place]
                place += 1
        found += _run([index[dim] for dim in here], [shape[dim] for dim in here], there)
    return tuple(found)


def _run(index: Sequence[Expr], shape: Sequence[int], source: Sequence[int]) -> list[Expr]:
    moving = [size for size in source if size != 1]
    flat: Expr = _ZERO
    for entry, size in zip(index, shape, strict=True):
        flat = flat * size + entry if size != 1 else flat
    if len(moving) < 2:
        return [flat if size != 1 else _ZERO for size in source]
    return list(unflattened(flat, source))


def unflattened(flat: Expr, shape: Sequence[int]) -> Index:
    """The index of the element at a row-major position."""
    found: list[Expr] = []
    step = math.prod(shape)
    first = True
    for size in shape:
        if size == 1:
            found.append(_ZERO)
            continue
        step //= size
        entry = flat if step == 1 else tirx.floordiv(flat, step)
        found.append(entry if first else tirx.floormod(entry, size))
        first = False
    return tuple(found)


def _expand(node: fx.Node, source: fx.Node, index: Index) -> Index:
    return broadcast(index, val(source).shape)


def broadcast(index: Index, shape: Sequence[int]) -> Index:
    """The index in a tensor of `shape` of what is broadcast to where `index` points."""
    kept = index[len(index) - len(shape) :] if len(shape) else ()
    return tuple(_ZERO if size == 1 else entry for entry, size in zip(kept, shape, strict=True))


def _permute(order: Sequence[int], index: Index) -> Index:
    found: list[Expr] = [_ZERO] * len(order)
    for place, dim in enumerate(order):
        found[dim] = index[place]
    return tuple(found)


def _transposed(node: fx.Node, source: fx.Node, index: Index) -> Index:
    bound, rank = bind(node), len(index)
    order = list(range(rank))
    one, other = bound["dim0"] % rank, bound["dim1"] % rank
    order[one], order[other] = order[other], order[one]
    return _permute(order, index)


def _matrix_transposed(node: fx.Node, source: fx.Node, index: Index) -> Index:
    return tuple(reversed(index))


def _permuted(node: fx.Node, source: fx.Node, index: Index) -> Index:
    return _permute([dim % len(index) for dim in bind(node)["dims"]], index)


def _sliced(node: fx.Node, source: fx.Node, index: Index) -> Index:
    bound, shape = bind(node), val(source).shape
    dim = bound["dim"] % len(shape)
    start, _, step = slice(bound["start"], bound["end"], bound["step"]).indices(shape[dim])
    return (*index[:dim], index[dim] * step + start, *index[dim + 1 :])


def _selected(node: fx.Node, source: fx.Node, index: Index) -> Index:
    bound, shape = bind(node), val(source).shape
    dim = bound["dim"] % len(shape)
    return (*index[:dim], tirx.const(bound["index"] % shape[dim], "int32"), *index[dim:])


def _reshaped(node: fx.Node, source: fx.Node, index: Index) -> Index:
    return reindexed(index, val(node).shape, val(source).shape)


def _same(node: fx.Node, source: fx.Node, index: Index) -> Index:
    return index


def _part(node: fx.Node, source: fx.Node, index: Index) -> Index:
    """A part of what was split: `source` is the tensor, `node` the `getitem`."""
    split: Any = node.args[0]
    bound, shape = bind(split), val(source).shape
    which: Any = node.args[1]
    if split.target is aten.unbind.int:
        dim = bound["dim"] % len(shape)
        return (*index[:dim], tirx.const(which % shape[dim], "int32"), *index[dim:])
    dim = bound["dim"] % len(shape)
    start = sum(part.shape[dim] for part in list(val(split))[:which])
    return (*index[:dim], index[dim] + start, *index[dim + 1 :])


def _upsampled(node: fx.Node, source: fx.Node, index: Index) -> Index:
    old, new = val(source).shape, val(node).shape
    return (*index[:2], *(tirx.floordiv(index[dim], new[dim] // old[dim]) for dim in (2, 3)))


def _permuted_by_equation(node: fx.Node, source: fx.Node, index: Index) -> Index:
    before, after = _equation(node)
    return tuple(index[after.index(letter)] for letter in before)


def _equation(node: fx.Node) -> tuple[str, str]:
    """The letters of an einsum's operand and of its result; empty where it does not only permute one operand."""
    before, _, after = bind(node)["equation"].replace(" ", "").partition("->")
    alone = len(bind(node)["tensors"]) == 1 and len(set(before)) == len(before) and sorted(before) == sorted(after)
    return (before, after) if alone and before.isalpha() else ("", "")


SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)

VIEWS: dict[Any, Callable[[fx.Node, fx.Node, Index], Index]] = {
    aten.view.default: _reshaped,
    aten.reshape.default: _reshaped,
    aten._unsafe_view.default: _reshaped,
    aten.flatten.using_ints: _reshaped,
    aten.unflatten.int: _reshaped,
    aten.unsqueeze.default: _reshaped,
    aten.squeeze.default: _reshaped,
    aten.squeeze.dim: _reshaped,
    aten.squeeze.dims: _reshaped,
    aten.expand.default: _expand,
    aten.expand_as.default: _expand,
    aten.permute.default: _permuted,
    aten.transpose.int: _transposed,
    aten.t.default: _matrix_transposed,
    aten.slice.Tensor: _sliced,
    aten.select.int: _selected,
    aten.clone.default: _same,
    aten.contiguous.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten._to_copy.default: _same,
    aten.upsample_nearest2d.vec: _upsampled,
    aten.einsum.default: _permuted_by_equation,
    operator.getitem: _part,
}


def view_source(node: fx.Node) -> fx.Node | None:
    """What a node shows other indices of, if it does nothing else."""
    if node.op != "call_function" or node.target not in VIEWS or not is_float(val(node)):
        return None
    source: Any = node.args[0]
    if node.target is aten.einsum.default:
        source = bind(node)["tensors"][0] if _equation(node)[0] else None
    if not isinstance(source, fx.Node):
        return None
    if node.target is aten.upsample_nearest2d.vec:
        # By whole factors, the pixel that the source's own scale names is the one that sizes name.
        whole = all(new % old == 0 for old, new in zip(val(source).shape[2:], val(node).shape[2:], strict=True))
        return source if whole and is_float(val(source)) else None
    if node.target is operator.getitem:
        if source.target not in SPLITS:
            return None
        source = source.args[0]
        if not isinstance(source, fx.Node):
            return None
    return source if is_float(val(source)) else None


# -- pointwise operations --------------------------------------------------------------------------------------------


def _scaled(emitter: Emitter, value: Any, factor: Any) -> Any:
    return value if factor == 1 else value * emitter.number(float(factor))


def _called(name: str) -> Callable[..., Expr]:
    return lambda emitter, self: emitter.call(name, self)


def _power(emitter: Emitter, self: Any, exponent: Any) -> Expr:
    return emitter.let(self) * self if exponent == 2 else emitter.let(self) * self * self


def _gelu(emitter: Emitter, self: Any, approximate: str) -> Expr:
    return emitter.call("gelu_tanh" if approximate == "tanh" else "gelu", self)


def _lerp(emitter: Emitter, self: Any, end: Any, weight: Any) -> Expr:
    """From the nearer end, as torch has it: infinite ends then give what they give there."""
    return self + (end - self) * weight if abs(weight) < 0.5 else end - (end - self) * (1 - weight)


def _clamp(emitter: Emitter, self: Any, min: Any, max: Any) -> Expr:
    if min is not None:
        self = emitter.call("maximum", self, emitter.number(float(min)))
    return self if max is None else emitter.call("minimum", self, emitter.number(float(max)))


# Arguments by position as in the schema; tensors as vectors, numbers as numbers.
POINTWISE: dict[Any, Callable[..., Expr]] = {
    aten.add.Tensor: lambda e, self, other, alpha: self + _scaled(e, other, alpha),
    aten.sub.Tensor: lambda e, self, other, alpha: self - _scaled(e, other, alpha),
    aten.rsub.Scalar: lambda e, self, other, alpha: other - _scaled(e, self, alpha),
    aten.mul.Tensor: lambda e, self, other: self * other,
    aten.mul.Scalar: lambda e, self, other: self * other,
    aten.div.Tensor: lambda e, self, other: self / other,
    aten.div.Scalar: lambda e, self, other: self / other,
    aten.neg.default: lambda e, self: e.number(-1.0) * self,
    aten.reciprocal.default: lambda e, self: e.number(1.0) / self,
    aten.pow.Tensor_Scalar: _power,
    aten.addcmul.default: lambda e, self, tensor1, tensor2, value: self + _scaled(e, tensor1, value) * tensor2,
    aten.lerp.Scalar: _lerp,
    aten.clamp.default: _clamp,
    aten.gelu.default: _gelu,
    aten.maximum.default: lambda e, self, other: e.call("maximum", self, other),
    aten.minimum.default: lambda e, self, other: e.call("minimum", self, other),
    aten.abs.default: _called("abs"),
    aten.cos.default: _called("cos"),
    aten.erf.default: _called("erf"),
    aten.exp.default: _called("exp"),
    aten.log.default: _called("log"),
    aten.relu.default: _called("relu"),
    aten.rsqrt.default: _called("rsqrt"),
    aten.sigmoid.default: _called("sigmoid"),
    aten.silu.default: _called("silu"),
    aten.sin.default: _called("sin"),
    aten.sqrt.default: _called("sqrt"),
    aten.tanh.default: _called("tanh"),
}


def is_pointwise(node: fx.Node) -> bool:
    """Whether a node computes each element from elements of its float32 operands, in a way that `POINTWISE` has."""
    if node.op != "call_function" or node.target not in POINTWISE or not is_float(val(node)):
        return False
    if node.target is aten.pow.Tensor_Scalar and bind(node)["exponent"] not in (2, 3):
        return False
    return all(_is_operand(value) for value in bind(node).values())


def _is_operand(value: Any) -> bool:
    if isinstance(value, fx.Node):
        return is_float(val(value))
    return value is None or isinstance(value, int | float | str)
