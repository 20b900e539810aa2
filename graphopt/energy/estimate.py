"""No counter: processor time, priced at so many watts per busy core."""

from __future__ import annotations

import os
import resource
import time

from graphopt.energy.meter import Meter
from graphopt.errors import UsageError

VARIABLE = "GRAPHOPT_WATTS_PER_CORE"
DEFAULT_WATTS = 6.0
"""W per busy core: thermal design power over cores of current server processors, by their vendors' specifications
(AMD EPYC 9554: 360 W, 64 cores, 5.6; Intel Xeon Platinum 8480+: 350 W, 56 cores, 6.3)."""


class EstimateMeter(Meter):
    """CPU-seconds of this process, and of children that have ended, times watts per core. An estimate, never more.

    It follows how long cores were busy, not what they did: see docs/energy.md for what it does not see.

    Parameters
    ----------
    watts_per_core : W; when left out the environment variable GRAPHOPT_WATTS_PER_CORE, else `DEFAULT_WATTS`.

    Raises
    ------
    UsageError : the coefficient is no positive number.
    """

    measured = False

    def __init__(self, watts_per_core: float | None = None) -> None:
        self.watts = _coefficient() if watts_per_core is None else watts_per_core
        if not 0 < self.watts < float("inf"):
            raise UsageError(f"watts per core must be a positive number, not {self.watts}", where=VARIABLE)
        self.source = f"estimate: CPU-seconds of the process × {self.watts:g} W per core"

    def read(self) -> dict[str, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {"cpu": self.watts * (time.process_time() + children.ru_utime + children.ru_stime)}


def _coefficient() -> float:
    text = os.environ.get(VARIABLE)
    if not text:
        return DEFAULT_WATTS
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is no number of watts", where=VARIABLE) from error
