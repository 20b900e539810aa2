"""NVIDIA GPUs through NVML's counter of total energy (Volta and later)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from graphopt.energy.meter import Meter, Unavailable


class NvmlMeter(Meter):
    """Sums the GPUs, memory and board included; the machine around them is not in it.

    The driver updates the counter some tens of times a second: a window should be a second or longer, and end with
    ``torch.cuda.synchronize()``.

    Parameters
    ----------
    indices : GPUs as NVML counts them (``CUDA_VISIBLE_DEVICES`` does not change that); all when left out.
    nvml : the module to use instead of ``pynvml``.

    Raises
    ------
    Unavailable : no pynvml, no driver, no GPU, or one without the counter.
    """

    measured = True

    def __init__(self, indices: Sequence[int] | None = None, nvml: Any = None) -> None:
        self._nvml = nvml or _import()
        try:
            self._nvml.nvmlInit()
            chosen = range(self._nvml.nvmlDeviceGetCount()) if indices is None else indices
            self._handles = {f"GPU {index}": self._nvml.nvmlDeviceGetHandleByIndex(index) for index in chosen}
        except self._nvml.NVMLError as error:
            raise Unavailable(f"NVML does not work here: {error}", hint="is there an NVIDIA driver?") from error
        if not self._handles:
            raise Unavailable("NVML finds no GPU")
        self.read()
        self.source = f"NVML energy counter ({', '.join(self._handles)})"

    def read(self) -> dict[str, float]:
        try:
            get = self._nvml.nvmlDeviceGetTotalEnergyConsumption  # millijoules since the driver was loaded
            return {name: get(handle) / 1e3 for name, handle in self._handles.items()}
        except self._nvml.NVMLError as error:
            raise Unavailable(f"the GPU has no readable energy counter: {error}") from error


def _import() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise Unavailable("pynvml is not installed", hint="pip install nvidia-ml-py") from error
