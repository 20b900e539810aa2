"""What torch does not say about operators: shapes, above all of those with packed weights, and meaning in float64.

A packed weight is opaque (only oneDNN knows where its numbers lie); its recorded value has the logical shape and dtype,
and so the right number of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional

aten = torch.ops.aten
mkldnn = torch.ops.mkldnn
Tensor = torch.Tensor


def _packed(weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _linear_binary(source: Tensor, other: Tensor, weight: Tensor, *args: Any) -> Tensor:
    return source.new_empty((*source.shape[:-1], weight.shape[0]))


def _convolution_binary(source: Tensor, other: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(other, memory_format=torch.channels_last)


def _view(source: Tensor, size: list[int]) -> Tensor:
    """Raises where strides allow no such view: fake tensors let some pass where dimensions of size 1 lie between."""
    if all(isinstance(entry, int) for entry in (*source.shape, *source.stride(), *size)):
        with unset_fake_temporarily():
            torch.empty_strided(source.shape, source.stride(), device="meta").view(size)
    result: Tensor = aten.view.default(source, size)
    return result


# -- meaning ---------------------------------------------------------------------------------------------------------

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "swish": functional.silu,
    "tanh": torch.tanh,
}


def _apply(result: Tensor, function: str, scalars: list[float], algorithm: str) -> Tensor:
    return functional.gelu(result, approximate=algorithm) if function == "gelu" else _FUNCTIONS[function](result)


def _weight(weight: Tensor, *args: Any) -> Tensor:
    return weight


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, *function: Any) -> Tensor:
    return _apply(functional.linear(x, weight, bias), *function)


def _linear_plus(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None, operation: str) -> Tensor:
    assert operation == "add"
    return functional.linear(x, weight, bias) + other


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int], stride: list[int], dilation: list[int],
    groups: int, *function: Any,
) -> Tensor:  # fmt: skip
    return _apply(functional.conv2d(x, weight, bias, stride, padding, dilation, groups), *function)


def _convolve_plus(
    x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int], stride: list[int],
    dilation: list[int], groups: int, operation: str, *scale: Any,
) -> Tensor:  # fmt: skip
    assert operation == "add" and scale[0] == 1
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups) + other


RULES: dict[Any, Callable[..., Any]] = {aten.view.default: _view}
MEANING: dict[Any, Callable[..., Any]] = {}
if torch.backends.mkldnn.is_available():
    RULES |= {
        mkldnn._reorder_linear_weight.default: _packed,
        mkldnn._reorder_convolution_weight.default: _packed,
        mkldnn._linear_pointwise.binary: _linear_binary,
        mkldnn._convolution_pointwise.binary: _convolution_binary,
    }
    MEANING = {
        mkldnn._reorder_linear_weight.default: _weight,
        mkldnn._reorder_convolution_weight.default: _weight,
        mkldnn._linear_pointwise.default: _linear,
        mkldnn._linear_pointwise.binary: _linear_plus,
        mkldnn._convolution_pointwise.default: _convolve,
        mkldnn._convolution_pointwise.binary: _convolve_plus,
    }
