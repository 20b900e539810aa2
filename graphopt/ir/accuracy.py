"""How far one value is off another: the measure that profiles, first calls and the report page share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


def relative_error(expected: Any, result: Any, *, least: float = 1e-30) -> float:
    """The largest difference between tensors, relative to the largest finite value expected, but at least to `least`.

    0.0 where every bit agrees (0.0 and -0.0, and NaN and NaN, count as equal); infinite where shapes or dtypes do not
    agree, or one is finite where the other is not. Several values: the largest of them. What is no tensor, and weights
    packed for oneDNN, cannot be compared and count as equal.
    """
    pairs = tree_leaves(expected), tree_leaves(result)
    if len(pairs[0]) != len(pairs[1]):
        return math.inf
    return max((_apart(old, new, least) for old, new in zip(*pairs, strict=True)), default=0.0)


def _apart(old: Any, new: Any, least: float) -> float:
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor) or old.is_mkldnn or new.is_mkldnn:
        return 0.0  # of packed weights, what is computed from them is compared
    if old.shape != new.shape or old.dtype != new.dtype:
        return math.inf
    if torch.equal(old, new):
        return 0.0
    finite = old.isfinite()
    if not torch.equal(old[~finite].nan_to_num(), new[~finite].nan_to_num()) or not bool(new[finite].isfinite().all()):
        return math.inf
    if not torch.equal(old.isnan(), new.isnan()):
        return math.inf
    wide = torch.complex128 if old.is_complex() else torch.float64
    old, new = old[finite].to(wide), new[finite].to(wide)
    off = (old - new).abs().max().item() if old.numel() else 0.0
    return float(off / max(old.abs().max().item(), least)) if off else 0.0
