"""What this machine reaches at best: the two ceilings of a roofline, measured.

Source of the model: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from graphopt.ir.cost import Cost

_PRODUCT = 1024  # rows and columns of the matrices whose product sets the ceiling for FLOPs
_COPY = 64 << 20  # bytes that the copy for the ceiling of bytes reads, and again writes
_CEILING_SECONDS = 0.25  # spent on each ceiling


@dataclass(frozen=True)
class Machine:
    """What this machine reaches at best, with as many threads as torch uses now.

    Attributes
    ----------
    flops : per second, of a product of two matrices of `dtype`.
    bytes : per second, read and written, of a copy.
    """

    device: str
    dtype: str
    threads: int
    flops: float
    bytes: float

    def seconds(self, cost: Cost) -> float:
        """The roofline: what a cost takes at least."""
        return max(float(cost.flops) / self.flops, float(cost.bytes) / self.bytes)


def measure_machine(dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Machine:
    """Measure both ceilings; takes about half a second."""
    device = device or torch.device("cpu")
    left, right = (torch.rand(_PRODUCT, _PRODUCT, device=device).to(dtype) for _ in range(2))
    source = torch.ones(_COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copy = _best(lambda: left @ right), _best(lambda: target.copy_(source))
    return Machine(
        str(device),
        str(dtype).removeprefix("torch."),
        torch.get_num_threads(),
        2 * _PRODUCT**3 / product,
        2 * _COPY / copy,
    )


def _best(call: Callable[[], torch.Tensor]) -> float:
    """The shortest time of a call, after it was warmed up."""
    synchronise(call())
    best, end = math.inf, time.perf_counter() + _CEILING_SECONDS
    while time.perf_counter() < end or best == math.inf:
        start = time.perf_counter()
        synchronise(call())
        best = min(best, time.perf_counter() - start)
    return best


def synchronise(result: Any) -> None:
    """Wait until a result is there; on the CPU it is."""
    first = result[0] if isinstance(result, list | tuple) and result else result
    if isinstance(first, torch.Tensor) and first.is_cuda:
        torch.cuda.synchronize(first.device)
