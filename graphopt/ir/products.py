"""Products of narrow factors, summed up in float32: ``f(x: bf16, w: bf16): f32 = f(wide(x), wide(w))``.

torch's own operators round their results to the dtype of their factors. These do not, and say by the dtype of what they
are given that a target may multiply narrow numbers: the product of two numbers of bfloat16 is exact in float32.

- ``graphopt.narrow_linear(x, w, bias)``
- ``graphopt.narrow_matmul(x, y)``
- ``graphopt.narrow_conv2d(x, w, bias, stride, padding, dilation)``

Biases are float32. Given float64, they compute in float64.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.ir.attention import written_out
from graphopt.ir.program import Program, bind, dtype

aten = torch.ops.aten

_LIBRARY = torch.library.Library("graphopt", "FRAGMENT")
_LIBRARY.define("narrow_linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor")
_LIBRARY.define("narrow_matmul(Tensor self, Tensor other) -> Tensor")
_LIBRARY.define(
    "narrow_conv2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, "
    "int[2] dilation=1) -> Tensor"
)


def wide(value: torch.Tensor) -> torch.Tensor:
    """A value in what it is summed up in."""
    return value if value.dtype == torch.float64 else value.float()


def _linear(source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return F.linear(wide(source), wide(weight), bias)


def _matmul(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.matmul(wide(one), wide(other))


def _conv2d(
    source: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> torch.Tensor:
    found = F.conv2d(wide(source), wide(weight), bias, tuple(stride), tuple(padding), tuple(dilation))
    return found.contiguous()


_LIBRARY.impl("narrow_linear", _linear, "CompositeExplicitAutograd")
_LIBRARY.impl("narrow_matmul", _matmul, "CompositeExplicitAutograd")
_LIBRARY.impl("narrow_conv2d", _conv2d, "CompositeExplicitAutograd")

linear = torch.ops.graphopt.narrow_linear.default
matmul = torch.ops.graphopt.narrow_matmul.default
conv2d = torch.ops.graphopt.narrow_conv2d.default

NARROW: dict[Any, Any] = {
    aten.linear.default: linear,
    aten.conv2d.default: conv2d,
    **dict.fromkeys((aten.matmul.default, aten.mm.default, aten.bmm.default), matmul),
}
"""By operators that multiply, those for factors of bfloat16."""


def factors(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """What a product of `NARROW` multiplies, in order."""
    one, other, *_ = bind(node).values()
    return one, other


_GAIN = 1.25  # times as fast that products of bfloat16 have to be; where they are as fast at all, about 2


def supported() -> bool:
    """Whether the CPU at hand multiplies numbers of bfloat16 in vectors, faster than those of float32.

    CPUs with AMX do not, by vectors: their ``vdpbf16ps`` takes four times as long as a multiply-add of float32.
    """
    cpu: Any = torch.cpu
    return bool(cpu._is_avx512_bf16_supported()) and not cpu._is_amx_tile_supported() and gain() >= _GAIN


def in_torch() -> bool:
    """Whether torch's products of bfloat16 are faster here than those of float32."""
    cpu: Any = torch.cpu
    return bool(cpu._is_amx_tile_supported()) or supported()


@cache
def gain() -> float:
    """How many times as fast as in float32 torch multiplies matrices of bfloat16: measured, in turns, in 20 ms.

    A CPU may have the instructions and be faster without: it says that it has them, and not what they take.
    """
    with _disable_current_modes(), torch.autocast("cpu", enabled=False), torch.no_grad():
        wide, narrow = (torch.ones(256, 256, dtype=kind, device="cpu") for kind in (torch.float32, torch.bfloat16))
        seconds = [(_seconds(wide), _seconds(narrow)) for _ in range(24)][4:]
    return min(first for first, _ in seconds) / min(second for _, second in seconds)


def _seconds(matrix: torch.Tensor) -> float:
    """That the product of a matrix with itself takes."""
    begin = time.perf_counter()
    torch.mm(matrix, matrix)
    return time.perf_counter() - begin


def of_float16_in_torch() -> bool:
    """The same of float16."""
    return bool(torch.cpu._is_amx_fp16_supported())


# -- in programs -----------------------------------------------------------------------------------------------------

_MATMULS = (aten.matmul.default, aten.bmm.default)


def outside_attention(program: Program) -> Iterator[fx.Node]:
    """Products of `NARROW` that are no part of attention written out."""
    found = [found for node in program.calls(*_MATMULS) if (found := written_out(node))]
    attention = {entry for each in found for entry in each.inner}
    for node in program.calls(*NARROW):
        if node not in attention and not (node.target in _MATMULS and written_out(node)):
            yield node


def is_widened(node: fx.Node) -> bool:
    """Whether a node copies numbers of bfloat16 to a wider type."""
    return node.target is aten._to_copy.default and dtype(node.all_input_nodes[0]) == torch.bfloat16


def rounds(node: fx.Node) -> bool:
    """Whether a node is there to round what is computed in float32."""
    copies = node.target is aten._to_copy.default and dtype(node) == torch.bfloat16
    return copies and all(is_widened(user) or user.target in NARROW.values() for user in node.users)


def round_factors(program: Program, node: fx.Node) -> None:
    """Let a product of `NARROW` read the numbers of bfloat16 nearest to its factors."""
    for factor in factors(node):
        node.replace_input_with(factor, _rounded(program, factor))


def _rounded(program: Program, factor: fx.Node) -> fx.Node:
    """The numbers of bfloat16 nearest to a factor's, in float32."""
    if is_widened(factor):
        return factor
    for narrow in filter(rounds, factor.users):
        for wide in narrow.users:
            if is_widened(wide) and dtype(wide) == torch.float32:
                return wide
    narrow = program.call(aten._to_copy.default, factor, before=factor.next, like=factor, dtype=torch.bfloat16)
    wide = program.call(aten._to_copy.default, narrow, before=narrow.next, like=factor, dtype=torch.float32)
    narrow._rename(f"{factor.name}_narrow")
    wide._rename(f"{factor.name}_rounded")
    return wide
