"""What the target knows about torch's operators: views as maps of indices, pointwise operations as TensorIR.

A view is a function from an index of its result to the index of its source that it shows. Elements in between two
views need no memory: a kernel that reads through them reads the source.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx
from tvm import tirx

from ...ir.program import bind, val
from .emit import Emitter, Expr, dtype_of, lanes_of

aten = torch.ops.aten

Index: TypeAlias = tuple[Expr, ...]

_ZERO = tirx.const(0, "int32")


# As which kernels read numbers from memory, by dtype; results are float32, int64 or bool, and bfloat16 of conversions.
STORED = {
    torch.float32: "float32",
    torch.bfloat16: "uint16",  # its bits
    torch.float64: "float64",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.uint8: "uint8",
    torch.bool: "int8",
}


def is_float(value: Any) -> bool:
    """Whether a value is a float32 tensor on the CPU of known size."""
    return is_tensor(value) and value.dtype == torch.float32


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor on the CPU of known size and of a dtype that kernels read."""
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in STORED
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
    return (*index[:2], *(tirx.floordiv(index[dim], new[dim] // old[dim]) for dim in range(2, len(old))))


def _repeated(node: fx.Node, source: fx.Node, index: Index) -> Index:
    shape = val(source).shape
    return tuple(
        tirx.floormod(entry, size) for entry, size in zip(index[len(index) - len(shape) :], shape, strict=True)
    )


def _repeated_each(node: fx.Node, source: fx.Node, index: Index) -> Index:
    bound = bind(node)
    if bound["dim"] is None:
        (flat,) = index
        return unflattened(tirx.floordiv(flat, bound["repeats"]), val(source).shape)
    dim = bound["dim"] % len(index)
    return (*index[:dim], tirx.floordiv(index[dim], bound["repeats"]), *index[dim + 1 :])


def _flipped(node: fx.Node, source: fx.Node, index: Index) -> Index:
    shape = val(source).shape
    dims = {dim % len(shape) for dim in bind(node)["dims"]}
    return tuple(shape[dim] - 1 - entry if dim in dims else entry for dim, entry in enumerate(index))


def _rolled(node: fx.Node, source: fx.Node, index: Index) -> Index:
    bound, shape = bind(node), val(source).shape
    if not bound["dims"]:
        return unflattened(tirx.floormod(_flat(index, shape) - bound["shifts"][0], math.prod(shape)), shape)
    found = list(index)
    for dim, shift in zip(bound["dims"], bound["shifts"], strict=True):
        size = shape[dim % len(shape)]
        found[dim % len(shape)] = tirx.floormod(found[dim % len(shape)] + (-shift) % size, size)
    return tuple(found)


def _flat(index: Index, shape: Sequence[int]) -> Expr:
    """The row-major position of an element."""
    flat: Expr = _ZERO
    for entry, size in zip(index, shape, strict=True):
        flat = flat * size + entry
    return flat


def _shuffled(node: fx.Node, source: fx.Node, index: Index) -> Index:
    factor = bind(node)["upscale_factor"]
    *front, channel, row, column = index
    inner = tirx.floormod(row, factor) * factor + tirx.floormod(column, factor)
    return (*front, channel * factor**2 + inner, tirx.floordiv(row, factor), tirx.floordiv(column, factor))


def _unshuffled(node: fx.Node, source: fx.Node, index: Index) -> Index:
    factor = bind(node)["downscale_factor"]
    *front, channel, row, column = index
    inner = tirx.floormod(channel, factor**2)
    down, right = tirx.floordiv(inner, factor), tirx.floormod(inner, factor)
    return (*front, tirx.floordiv(channel, factor**2), row * factor + down, column * factor + right)


def _padded(node: fx.Node, source: fx.Node, index: Index) -> Index:
    """With what is there: the edge, or what mirrors in it, or what comes from the other side."""
    mode, shape = padding_mode(node), val(source).shape
    found = list(index)
    for dim, (before, _) in pads(node).items():
        at, size = index[dim] - before, shape[dim]
        if mode == "replicate":
            at = tirx.max(0, tirx.min(at, size - 1))
        elif mode == "reflect":
            at = size - 1 - tirx.abs(size - 1 - tirx.abs(at))
        else:
            at = tirx.floormod(at + size, size)
        found[dim] = at
    return tuple(found)


def pads(node: fx.Node) -> dict[int, tuple[int, int]]:
    """How many elements a padding adds before and after, by dimension."""
    given, rank = bind(node)["pad"], val(node).ndim
    pairs = zip(given[::2], given[1::2], strict=True)
    return {rank - 1 - place: pair for place, pair in enumerate(pairs) if pair != (0, 0)}


def padding_mode(node: fx.Node) -> str:
    """What a padding holds: constant, reflect, replicate or circular."""
    return str(bind(node).get("mode", "constant"))


def _inner(node: fx.Node, source: fx.Node, index: Index) -> Index:
    dims = bind(node)
    return _permute(_moved(len(index), dims["source"], dims["destination"]), index)


def _moved(rank: int, source: Sequence[int], destination: Sequence[int]) -> list[int]:
    """The order of dimensions in which some are moved to other places."""
    places = {to % rank: of % rank for of, to in zip(source, destination, strict=True)}
    rest = iter(dim for dim in range(rank) if dim not in places.values())
    return [places[place] if place in places else next(rest) for place in range(rank)]


def _narrowed(node: fx.Node, source: fx.Node, index: Index) -> Index:
    bound, shape = bind(node), val(source).shape
    dim = bound["dim"] % len(shape)
    start = bound["start"] + (shape[dim] if bound["start"] < 0 else 0)
    return (*index[:dim], index[dim] + start, *index[dim + 1 :])


def _permuted_by_equation(node: fx.Node, source: fx.Node, index: Index) -> Index:
    before, after = _equation(node)
    return tuple(index[after.index(letter)] for letter in before)


def _equation(node: fx.Node) -> tuple[str, str]:
    """The letters of an einsum's operand and of its result; empty where it does not only permute one operand."""
    before, _, after = bind(node)["equation"].replace(" ", "").partition("->")
    alone = len(bind(node)["tensors"]) == 1 and len(set(before)) == len(before) and sorted(before) == sorted(after)
    return (before, after) if alone and before.isalpha() else ("", "")


SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)

KEEPING = (_reshaped, _same)  # views that show all elements in their order

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
    aten.copy.default: _expand,
    aten.dropout.default: _same,
    aten.type_as.default: _same,
    aten.view_as.default: _reshaped,
    aten.reshape_as.default: _reshaped,
    aten.movedim.intlist: _inner,
    aten.narrow.default: _narrowed,
    aten.repeat.default: _repeated,
    aten.repeat_interleave.self_int: _repeated_each,
    aten.flip.default: _flipped,
    aten.roll.default: _rolled,
    aten.pixel_shuffle.default: _shuffled,
    aten.pixel_unshuffle.default: _unshuffled,
    aten.pad.default: _padded,
    aten.upsample_nearest1d.vec: _upsampled,
    aten.upsample_nearest2d.vec: _upsampled,
    aten.upsample_nearest3d.vec: _upsampled,
    aten._upsample_nearest_exact2d.vec: _upsampled,
    aten.einsum.default: _permuted_by_equation,
    operator.getitem: _part,
}


def view_source(node: fx.Node) -> fx.Node | None:
    """What a node shows other indices of, if it does nothing else."""
    if node.op != "call_function" or node.target not in VIEWS or not is_tensor(val(node)):
        return None
    source: Any = node.args[1 if node.target is aten.copy.default else 0]
    if node.target is aten.einsum.default:
        source = bind(node)["tensors"][0] if _equation(node)[0] else None
    if not isinstance(source, fx.Node):
        return None
    if VIEWS[node.target] is _upsampled:
        # By whole factors, the pixel that the source's own scale names is the one that sizes name.
        whole = all(new % old == 0 for old, new in zip(val(source).shape[2:], val(node).shape[2:], strict=True))
        return source if whole and is_float(val(source)) else None
    if node.target is aten.dropout.default and bind(node)["train"] and bind(node)["p"] != 0:
        return None
    if node.target is aten.pad.default and (
        padding_mode(node) == "constant" or any(min(pair) < 0 for pair in pads(node).values())
    ):
        return None
    if node.target is operator.getitem:
        if source.target not in SPLITS:
            return None
        source = source.args[0]
        if not isinstance(source, fx.Node):
            return None
    return source if is_tensor(val(source)) and val(source).dtype == val(node).dtype else None


# -- pointwise operations --------------------------------------------------------------------------------------------


def _scaled(emitter: Emitter, value: Any, factor: Any) -> Any:
    if factor == 1:
        return value
    return value * (factor if isinstance(value, int | float) else emitter.number(factor, like=value))


def _called(name: str) -> Callable[..., Expr]:
    return lambda emitter, self: emitter.call(name, self)


def _power(emitter: Emitter, self: Any, exponent: Any) -> Expr:
    if exponent in (1, 2, 3):
        return math.prod([emitter.let(self)] * (int(exponent) - 1), start=self)
    if exponent in (-1, 0.5, -0.5):
        root = self if exponent == -1 else emitter.call("sqrt", self)
        return root if exponent == 0.5 else emitter.number(1.0) / root
    return emitter.call("pow", self, emitter.number(float(exponent)))


def _gelu(emitter: Emitter, self: Any, approximate: str) -> Expr:
    return emitter.call("gelu_tanh" if approximate == "tanh" else "gelu", self)


def _lerp(emitter: Emitter, self: Any, end: Any, weight: Any) -> Expr:
    """From the nearer end, as torch has it: infinite ends then give what they give there."""
    return self + (end - self) * weight if abs(weight) < 0.5 else end - (end - self) * (1 - weight)


def _extreme(emitter: Emitter, how: str, self: Any, other: Any) -> Expr:
    """The larger (``maximum``) or smaller (``minimum``) of two numbers; not a number where either is that."""
    if isinstance(other, int | float):
        other = emitter.number(other, like=self)
    if dtype_of(self) == "float32":
        return emitter.call(how, self, other)
    other = emitter.spread(other, lanes_of(self))
    return tirx.Max(self, other) if how == "maximum" else tirx.Min(self, other)


def _clamp(emitter: Emitter, self: Any, min: Any = None, max: Any = None) -> Expr:
    if min is not None:
        self = _extreme(emitter, "maximum", self, min)
    return self if max is None else _extreme(emitter, "minimum", self, max)


def _compared(holds: str, *, turned: bool = False, no: bool = False) -> Callable[..., Expr]:
    """A comparison of two numbers: whether it `holds`, or does so with them `turned` around, or does `no`t.

    Those of floats are functions: TVM 0.27 takes a number to equal itself, which not-a-number does not.
    """
    of_integers = {"equal": tirx.EQ, "less": tirx.LT, "at_most": tirx.LE}[holds]

    def rule(emitter: Emitter, self: Any, other: Any) -> Expr:
        self, other = (_of(emitter, value, like) for value, like in ((self, other), (other, self)))
        pair = (other, self) if turned else (self, other)
        if dtype_of(self) == "float32":
            found = emitter.call(holds, *pair)
            return 1.0 - found if no else found
        return emitter.truth(of_integers(*pair), 1 - no, int(no))

    return rule


def _of(emitter: Emitter, value: Any, like: Any) -> Expr:
    """A number or value with the lanes and dtype of another value."""
    if isinstance(like, bool | int | float):
        return value
    value = emitter.number(value, like=like) if isinstance(value, bool | int | float) else value
    return emitter.spread(value, lanes_of(like))


def _where(emitter: Emitter, condition: Any, self: Any, other: Any) -> Expr:
    holds = tirx.NE(condition, _of(emitter, 0, condition))
    return tirx.Select(holds, _of(emitter, self, condition), _of(emitter, other, condition))


def _positive(emitter: Emitter, self: Any, yes: Any, no: Any) -> Expr:
    return tirx.Select(self > emitter.spread(0.0, lanes_of(self)), yes, no)


def _elu(emitter: Emitter, self: Any, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Expr:
    below = _scaled(emitter, emitter.call("expm1", _scaled(emitter, self, input_scale)), alpha * scale)
    return _positive(emitter, self, _scaled(emitter, self, scale), below)


def _softplus(emitter: Emitter, self: Any, beta: Any, threshold: Any) -> Expr:
    scaled = emitter.let(_scaled(emitter, self, beta))
    soft = _scaled(emitter, emitter.call("softplus", scaled), 1 / beta)
    return tirx.Select(scaled > emitter.spread(float(threshold), lanes_of(self)), self, soft)


def _hard(emitter: Emitter, self: Any) -> Expr:
    """relu6(x + 3) / 6."""
    return _clamp(emitter, self + 3.0, 0.0, 6.0) / emitter.number(6.0)


def _arange(emitter: Emitter, place: Any, start: Any, step: Any) -> Expr:
    return _scaled(emitter, place, step) + _of(emitter, start, place)


def _filled(emitter: Emitter, place: Any, value: Any, step: Any) -> Expr:
    return _of(emitter, value, place)


@dataclass(frozen=True)
class Tap:
    """An element that a weighted sum reads.

    Attributes
    ----------
    weight : of the element.
    factors : further ones: ``offset + scale · n`` with n a function of the index, as (n, scale, offset).
    """

    index: Index
    weight: float = 1.0
    factors: tuple[tuple[Expr, float, float], ...] = ()


def weighted(taps: Sequence[Tap]) -> Callable[..., Expr]:
    """The rule of a weighted sum: its operands are the elements, and then the numbers of all factors."""

    def rule(emitter: Emitter, *operands: Any) -> Expr:
        values, numbers = operands[: len(taps)], iter(operands[len(taps) :])
        total: Any = None
        for tap, value in zip(taps, values, strict=True):
            for _, scale, offset in tap.factors:
                number = next(numbers) * emitter.number(scale)
                value = value * (number if offset == 0 else number + emitter.number(offset))
            value = _scaled(emitter, value, tap.weight)
            total = value if total is None else total + value
        return total

    return rule


def _averaged(node: fx.Node, source: fx.Node, index: Index) -> list[Tap]:
    bound = bind(node)
    rows, columns = pair(bound["kernel_size"])
    down, right = pair(bound["stride"] or bound["kernel_size"])
    *front, row, column = index
    return [
        Tap((*front, row * down + i, column * right + j), 1 / (rows * columns))
        for i in range(rows)
        for j in range(columns)
    ]


def _interpolated(node: fx.Node, source: fx.Node, index: Index) -> list[Tap]:
    """From the two nearest pixels in each direction, by distance."""
    taps = [Tap(index[:2])]
    for dim in (2, 3):
        old, new, at = val(source).shape[dim], val(node).shape[dim], index[dim]
        if bind(node)["align_corners"]:
            number, whole = at * (old - 1), max(new - 1, 1)
        else:
            number, whole = tirx.max(0, (at * 2 + 1) * old - new), 2 * new
        low, part = tirx.floordiv(number, whole), tirx.floormod(number, whole)
        high = tirx.min(low + 1, old - 1)
        taps = [
            Tap((*tap.index, place), 1.0, (*tap.factors, (part, scale, offset)))
            for tap in taps
            for place, scale, offset in ((low, -1 / whole, 1.0), (high, 1 / whole, 0.0))
        ]
    return taps


def pair(value: Sequence[int]) -> tuple[int, int]:
    """An option of a convolution for both dimensions: one number holds for both."""
    return value[0], value[-1]


def _samples(node: fx.Node) -> bool:
    """Whether a weighted sum is one that `SAMPLED` has."""
    bound = bind(node)
    if node.target is aten.avg_pool2d.default:
        whole = not any(bound["padding"]) and not bound["ceil_mode"] and bound["divisor_override"] is None
        return whole and math.prod(pair(bound["kernel_size"])) <= _TAPS
    old, new = val(bound["input"]).shape[2:], val(node).shape[2:]
    scales = bound["scale_factors"]
    return scales is None or all(size * scale == to for size, scale, to in zip(old, scales, new, strict=True))


_TAPS = 16  # elements of a weighted sum at most: each is code of its own

SAMPLED: dict[Any, Callable[[fx.Node, fx.Node, Index], list[Tap]]] = {
    aten.avg_pool2d.default: _averaged,
    aten.upsample_bilinear2d.vec: _interpolated,
}


def looked_up(node: fx.Node) -> tuple[fx.Node, fx.Node, int, Callable[[Index], Index]]:
    """The table of a look-up, the indices, the dimension of the table that they are of, and where each lies."""
    bound = bind(node)
    if node.target is aten.embedding.default:
        rank = val(bound["indices"]).ndim
        return bound["weight"], bound["indices"], 0, lambda index: index[:rank]
    dim = bound["dim"] % max(val(node).ndim, 1)
    return bound["self"], bound["index"], dim, lambda index: index[dim : dim + 1]


LOOKUPS = frozenset({aten.embedding.default, aten.index_select.default})


def _range(bound: Mapping[str, Any]) -> tuple[Any, Any]:
    return bound.get("start", 0), bound.get("step", 1)


def _constant(value: Any) -> Callable[[Mapping[str, Any]], tuple[Any, Any]]:
    return lambda bound: (bound["fill_value"] if value is None else value, 0)


# Operators whose elements depend on nothing but their place: what `_arange` or `_filled` makes of it.
POSITIONS: dict[Any, Callable[[Mapping[str, Any]], tuple[Any, Any]]] = {
    aten.arange.default: _range,
    aten.arange.start: _range,
    aten.arange.start_step: _range,
    aten.full.default: _constant(None),
    aten.full_like.default: _constant(None),
    aten.zeros.default: _constant(0),
    aten.ones.default: _constant(1),
    aten.empty.memory_format: _constant(0),
    aten.empty_like.default: _constant(0),
    aten.zeros_like.default: _constant(0),
    aten.ones_like.default: _constant(1),
}

# Arguments that have one number per channel, which is the second dimension.
CHANNELWISE: dict[Any, tuple[str, ...]] = {
    aten.prelu.default: ("weight",),
}

_COMPARISONS: dict[str, Callable[..., Expr]] = {
    "eq": _compared("equal"),
    "ne": _compared("equal", no=True),
    "lt": _compared("less"),
    "le": _compared("at_most"),
    "gt": _compared("less", turned=True),
    "ge": _compared("at_most", turned=True),
}
_LOGICAL: dict[str, Callable[..., Expr]] = {
    "and": lambda e, self, other: self * other,
    "or": lambda e, self, other: e.call("maximum", self, other),
    "xor": lambda e, self, other: e.call("abs", self - other),
    "not": lambda e, self: 1.0 - self,
}

_BINARY = ("and", "or", "xor")

# Arguments by position as in the schema; tensors as vectors, numbers as numbers.
POINTWISE: dict[Any, Callable[..., Expr]] = {
    aten.add.Tensor: lambda e, self, other, alpha: self + _scaled(e, other, alpha),
    aten.sub.Tensor: lambda e, self, other, alpha: self - _scaled(e, other, alpha),
    aten.rsub.Scalar: lambda e, self, other, alpha: other - _scaled(e, self, alpha),
    aten.mul.Tensor: lambda e, self, other: self * other,
    aten.mul.Scalar: lambda e, self, other: self * other,
    aten.div.Tensor: lambda e, self, other: self / other,
    aten.div.Scalar: lambda e, self, other: self / other,
    aten.neg.default: lambda e, self: e.number(-1, like=self) * self,
    aten.reciprocal.default: lambda e, self: e.number(1.0) / self,
    aten.pow.Tensor_Scalar: _power,
    aten.addcmul.default: lambda e, self, tensor1, tensor2, value: self + _scaled(e, tensor1, value) * tensor2,
    aten.lerp.Scalar: _lerp,
    aten.clamp.default: _clamp,
    aten.gelu.default: _gelu,
    aten.maximum.default: lambda e, self, other: _extreme(e, "maximum", self, other),
    aten.minimum.default: lambda e, self, other: _extreme(e, "minimum", self, other),
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
    aten.ceil.default: _called("ceil"),
    aten.exp2.default: _called("exp2"),
    aten.expm1.default: _called("expm1"),
    aten.floor.default: _called("floor"),
    aten.round.default: _called("round"),
    aten.square.default: lambda e, self: e.let(self) * self,
    aten.addcdiv.default: lambda e, self, tensor1, tensor2, value: self + _scaled(e, tensor1, value) / tensor2,
    aten.lerp.Tensor: lambda e, self, end, weight: tirx.Select(
        e.call("abs", weight) < e.spread(0.5, lanes_of(weight)),
        self + (end - self) * weight,
        end - (end - self) * (1.0 - weight),
    ),
    aten.pow.Scalar: lambda e, self, exponent: e.call("pow", _of(e, float(self), exponent), exponent),
    aten.pow.Tensor_Tensor: lambda e, self, exponent: e.call("pow", self, exponent),
    aten.clamp_min.default: lambda e, self, min: _clamp(e, self, min),
    aten.clamp_max.default: lambda e, self, max: _clamp(e, self, None, max),
    aten.clamp.Tensor: _clamp,
    aten.hardtanh.default: _clamp,
    aten.relu6.default: lambda e, self: _clamp(e, self, 0.0, 6.0),
    aten.hardsigmoid.default: _hard,
    aten.hardswish.default: lambda e, self: self * _hard(e, self),
    aten.elu.default: _elu,
    aten.leaky_relu.default: lambda e, self, slope: _positive(e, self, self, _scaled(e, self, slope)),
    aten.prelu.default: lambda e, self, weight: _positive(e, self, self, weight * self),
    aten.softplus.default: _softplus,
    aten.mish.default: lambda e, self: self * e.call("tanh", e.call("softplus", self)),
    aten._to_copy.default: lambda e, self, *options: self,
    aten.type_as.default: lambda e, self, other: self,
    aten.where.self: _where,
    aten.where.ScalarSelf: _where,
    aten.where.ScalarOther: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: lambda e, self, mask, value: _where(e, mask, value, self),
    aten.masked_fill.Tensor: lambda e, self, mask, value: _where(e, mask, value, self),
    **dict.fromkeys((aten.arange.default, aten.arange.start, aten.arange.start_step), _arange),
    **{target: _filled for target in POSITIONS if "arange" not in str(target)},
    **dict.fromkeys(LOOKUPS, lambda e, self: self),
    **dict.fromkeys(SAMPLED, lambda e, *operands: operands[0]),
    **{getattr(aten, name).Tensor: rule for name, rule in _COMPARISONS.items()},
    **{getattr(aten, name).Scalar: rule for name, rule in _COMPARISONS.items()},
    **{getattr(aten, f"logical_{name}").default: rule for name, rule in _LOGICAL.items()},
    **{getattr(aten, f"bitwise_{name}").Tensor: _LOGICAL[name] for name in _BINARY},
    **{getattr(aten, f"__{name}__").Tensor: _LOGICAL[name] for name in _BINARY},
    aten.bitwise_not.default: _LOGICAL["not"],
}

_COMPARING = frozenset(getattr(getattr(aten, name), kind) for name in _COMPARISONS for kind in ("Tensor", "Scalar"))
_DECIDING = frozenset(
    {
        *(getattr(aten, f"logical_{name}").default for name in _LOGICAL),
        *(getattr(aten, f"bitwise_{name}").Tensor for name in _BINARY),
        *(getattr(aten, f"__{name}__").Tensor for name in _BINARY),
        aten.bitwise_not.default,
    }
)
_CHOOSING = frozenset(target for target, rule in POINTWISE.items() if "where" in str(target) or "masked" in str(target))
_CASTING = (aten._to_copy.default, aten.type_as.default)
# Operators whose results may be integers; of a choice or a conversion they may be bool, too.
_WHOLE = frozenset(
    {
        *(aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor, aten.mul.Scalar, aten.neg.default),
        *(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default),
        *(aten.maximum.default, aten.minimum.default, *_CASTING, *_CHOOSING, *POSITIONS),
    }
)
_ANYTHING = frozenset({*_CASTING, *_CHOOSING})


def computed_in(node: fx.Node) -> str | None:
    """What operands of a pointwise operation are converted to, or None where it is no dtype that kernels compute in."""
    result = val(node).dtype
    if node.target in _COMPARING:
        bound = bind(node)
        given = [val(entry) if isinstance(entry, fx.Node) else entry for entry in (bound["self"], bound["other"])]
        dtype = torch.result_type(*given)
        return "int64" if dtype in (torch.bool, torch.int32, torch.uint8) else _NUMBERS.get(dtype)
    if node.target in _DECIDING:
        return "bool" if result == torch.bool else None
    if result == torch.float32:
        return "float32"
    if result == torch.int64 and node.target in _WHOLE:
        return "int64"
    if result == torch.bfloat16:
        return "float32" if node.target in _CASTING else None
    return "bool" if result == torch.bool and node.target in _ANYTHING else None


_NUMBERS = {torch.float32: "float32", torch.int64: "int64"}


def narrowed(rule: Callable[..., Expr]) -> Callable[..., Expr]:
    """A rule whose result is rounded to bfloat16; it stays float32."""
    return lambda emitter, *operands: emitter.extern("bf16_rounded", "float32", rule(emitter, *operands))


def is_pointwise(node: fx.Node) -> bool:
    """Whether a node computes each element from elements of its operands, in a way that `POINTWISE` has."""
    if node.op != "call_function" or node.target not in POINTWISE or not is_tensor(val(node)):
        return False
    bound, dtype = bind(node), computed_in(node)
    if dtype is None or not all(_is_operand(name, value) for name, value in bound.items()):
        return False
    floats = [value for value in bound.values() if isinstance(value, fx.Node) and val(value).is_floating_point()]
    if dtype == "int64" and floats:
        return False  # conversions to integers
    if node.target in SAMPLED:
        return _samples(node)
    if node.target in LOOKUPS:
        table, rows, _, _ = looked_up(node)
        known = table.op in ("placeholder", "get_attr") and is_float(val(table))
        return (
            known and val(rows).dtype == torch.int64 and (node.target is aten.embedding.default or val(rows).ndim == 1)
        )
    if node.target in POSITIONS:
        return not isinstance(bound.get("fill_value"), fx.Node)
    if node.target is aten.bitwise_not.default:
        return bool(val(bound["self"]).dtype == torch.bool)
    if node.target in (aten.clamp.Tensor, aten.pow.Scalar):
        return dtype == "float32"
    return True


def _is_operand(name: str, value: Any) -> bool:
    if isinstance(value, fx.Node):
        return is_tensor(val(value))
    return name in _OPTIONS or value is None or isinstance(value, bool | int | float | str)


_OPTIONS = frozenset(
    {"dtype", "layout", "device", "pin_memory", "memory_format", "size", "kernel_size", "stride", "padding"}
    | {"output_size", "scale_factors", "non_blocking"}
)
