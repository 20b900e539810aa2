"""Which meter works here, and why better ones do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphopt.energy.estimate import EstimateMeter
from graphopt.energy.meter import Meter, SumMeter, Unavailable
from graphopt.energy.nvml import NvmlMeter
from graphopt.energy.rapl import POWERCAP, RaplMeter


@dataclass(frozen=True)
class Choice:
    """A meter, and the reasons why others were not taken, by their name."""

    meter: Meter
    unavailable: dict[str, str] = field(default_factory=dict)


def best_meter(
    device: str = "cpu", *, watts_per_core: float | None = None, powercap: Path = POWERCAP, nvml: Any = None
) -> Choice:
    """The best meter for work on `device`.

    For ``cpu``: RAPL counters, else the estimate. For ``cuda``: NVML's counter, with RAPL added where it can be read;
    without NVML there is no estimate for a GPU, and the meter sees the processor alone, which its source says.

    Parameters
    ----------
    device : a torch device type, an index after a colon is ignored.
    watts_per_core : coefficient of the estimate.
    powercap, nvml : where to look, for tests and unusual machines.
    """
    cuda, reasons = device.split(":")[0] == "cuda", dict[str, str]()

    def attempt(name: str, make: Callable[[], Meter]) -> Meter | None:
        try:
            return make()
        except Unavailable as error:
            reasons[name] = str(error)
            return None

    gpu = attempt("NVML", lambda: NvmlMeter(nvml=nvml)) if cuda else None
    cpu = attempt("RAPL", lambda: RaplMeter(powercap))
    found = [meter for meter in (gpu, cpu) if meter]
    if not found:
        found = [EstimateMeter(watts_per_core)]
    best = found[0] if len(found) == 1 else SumMeter(found)
    if cuda and gpu is None:
        best.source += "; the GPU is not in it"
    return Choice(best, reasons)
