"""What a meter is: counters of joules that only grow, read before and after a window."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from graphopt.errors import GraphoptError


class Unavailable(GraphoptError):
    """A meter that cannot work here; says why, and what would make it work."""


@dataclass(frozen=True)
class Reading:
    """The energy of one window.

    Attributes
    ----------
    joules : all that the counters saw, in J.
    seconds : length of the window on the wall, in s.
    source : what was read, and how, in words.
    measured : whether a physical counter gave the number; False for an estimate.
    idle_watts : what the same counters show when nothing runs, in W, where that was measured; else None.
    """

    joules: float
    seconds: float
    source: str
    measured: bool
    idle_watts: float | None = None

    @property
    def above_idle(self) -> float | None:
        """Joules above what the machine would have drawn at rest; None where that is unknown."""
        return None if self.idle_watts is None else max(0.0, self.joules - self.idle_watts * self.seconds)


class Meter(ABC):
    """Measures the ``with`` block it stands over; `reading` holds the result afterwards, until the next block.

    A meter may be used for any number of windows, one after the other. It is not for two threads at once.

    Attributes
    ----------
    source : what is read, and how, in words.
    measured : whether readings are measurements.
    idle_watts : set by `measure_idle`; goes into each `Reading`.
    """

    source: str
    measured: bool
    idle_watts: float | None = None
    _reading: Reading | None = None

    @abstractmethod
    def read(self) -> dict[str, float]:
        """Every counter by its name, in J since some moment in the past."""

    def ranges(self) -> dict[str, float]:
        """The value at which a counter starts again from zero, in J, for the counters that do."""
        return {}

    def measure_idle(self, seconds: float = 1.0) -> float:
        """Watts at rest: sleeps for a while and remembers what the counters show. Call it before the work."""
        self.idle_watts = None
        with self:
            time.sleep(seconds)
        self.idle_watts = self.reading.joules / self.reading.seconds
        return self.idle_watts

    @property
    def reading(self) -> Reading:
        """Of the last finished window. Raises GraphoptError when there was none."""
        if self._reading is None:
            raise GraphoptError("the meter has measured nothing yet", hint="read it after its `with` block")
        return self._reading

    def __enter__(self) -> Meter:
        self._reading = None
        self._before, self._start = self.read(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds, after, ranges = time.perf_counter() - self._start, self.read(), self.ranges()
        joules = sum(_grown(self._before[name], after[name], ranges.get(name)) for name in self._before)
        self._reading = Reading(joules, seconds, self.source, self.measured, self.idle_watts)


def _grown(before: float, after: float, range_: float | None) -> float:
    """How far a counter went, through its end at most once."""
    return after - before if after >= before or range_ is None else after - before + range_


class SumMeter(Meter):
    """Several meters as one, for a machine whose parts have counters of their own (processor and accelerator)."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self.meters = tuple(meters)
        self.source = " + ".join(meter.source for meter in meters)
        self.measured = all(meter.measured for meter in meters)

    def read(self) -> dict[str, float]:
        return {f"{k} {name}": joules for k, meter in enumerate(self.meters) for name, joules in meter.read().items()}

    def ranges(self) -> dict[str, float]:
        return {f"{k} {name}": joules for k, meter in enumerate(self.meters) for name, joules in meter.ranges().items()}
