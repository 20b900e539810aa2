"""Joules of a window of work: measured where a counter can be read, estimated and labelled so where none can.

>>> from graphopt.energy import EstimateMeter
>>> with EstimateMeter(watts_per_core=5.0) as meter:
...     total = sum(range(1000))
>>> meter.reading.measured
False
"""

from __future__ import annotations

from graphopt.energy.best import Choice, best_meter
from graphopt.energy.estimate import EstimateMeter
from graphopt.energy.meter import Meter, Reading, SumMeter, Unavailable
from graphopt.energy.nvml import NvmlMeter
from graphopt.energy.rapl import RaplMeter
from graphopt.energy.work import WorkEstimate

__all__ = [
    "Choice",
    "EstimateMeter",
    "Meter",
    "NvmlMeter",
    "RaplMeter",
    "Reading",
    "SumMeter",
    "Unavailable",
    "WorkEstimate",
    "best_meter",
]
