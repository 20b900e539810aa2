"""Shape rules of operators for which torch has none: those that take or give packed weights.

A packed weight is opaque (only oneDNN knows where its numbers lie); its recorded value has the logical shape and dtype,
and so the right number of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

mkldnn = torch.ops.mkldnn


def _packed(weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _linear_binary(source: torch.Tensor, other: torch.Tensor, weight: torch.Tensor, *args: Any) -> torch.Tensor:
    return source.new_empty((*source.shape[:-1], weight.shape[0]))


def _convolution_binary(source: torch.Tensor, other: torch.Tensor, *args: Any) -> torch.Tensor:
    return torch.empty_like(other, memory_format=torch.channels_last)


RULES: dict[Any, Callable[..., Any]] = (
    {
        mkldnn._reorder_linear_weight.default: _packed,
        mkldnn._reorder_convolution_weight.default: _packed,
        mkldnn._linear_pointwise.binary: _linear_binary,
        mkldnn._convolution_pointwise.binary: _convolution_binary,
    }
    if torch.backends.mkldnn.is_available()
    else {}
)
