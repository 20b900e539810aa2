"""How the fastest of several compiled calls is found: whole calls, the module's own among them, in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from graphopt.targets import Target

ORIGINAL = "original"  # the module's own call, among the names of targets
SHORTEST = 5e-3  # seconds of a module's call from which on target auto spends seconds on generating code for it
_ROUNDS = (5, 15)  # least and most, both odd
_SECONDS = 3.0  # that the rounds take, where that is enough for the least


@dataclass(frozen=True)
class Choice:
    """What builds the step of a module: a target, or the fastest of several.

    Attributes
    ----------
    targets : in the order in which they are built.
    measured : whether the fastest is found by measurement, and must be faster than the module itself.
    shortest : seconds that a call of the module has to take for targets after the first to be built.
    """

    targets: tuple[Target, ...]
    measured: bool = False
    shortest: float = 0.0


@dataclass
class Race:
    """Original against compiled on the example inputs, in pairs: the median of compiled / original, its interval.

    `seconds` is the median of the compiled call's times.
    """

    ratio: float
    low: float
    high: float
    pairs: int
    seconds: float

    @classmethod
    def of(cls, times: Sequence[tuple[float, float]]) -> Race:
        """Of seconds of the original and of the compiled call, pair by pair.

        Ratios are of times within a pair: on a busy machine times of different pairs do not compare. The
        interval is of order statistics and holds in about nine of ten cases.
        """
        ratios = sorted(compiled / original for original, compiled in times)
        n = len(ratios)
        cut = max(0, int(n / 2 - 0.82 * n**0.5))
        seconds = statistics.median(compiled for _, compiled in times)
        return cls(statistics.median(ratios), ratios[cut], ratios[n - 1 - cut], n, seconds)

    @property
    def won(self) -> bool:
        """Whether the compiled call is faster beyond the interval."""
        return self.high < 1.0


@dataclass
class Contest:
    """What was measured of a module's call.

    Attributes
    ----------
    original : median seconds of the module's own call; 0 where nothing was measured.
    races : by target, against the original.
    left_out : targets that took no part, and why.
    """

    original: float = 0.0
    races: dict[str, Race] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, times: Sequence[Mapping[str, float]]) -> None:
        """Take over the seconds of each, round by round."""
        self.original = statistics.median(entry[ORIGINAL] for entry in times)
        for name in times[0]:
            if name != ORIGINAL:
                self.races[name] = Race.of([(entry[ORIGINAL], entry[name]) for entry in times])

    @property
    def fastest(self) -> str:
        """The target whose calls took the smallest share of the original's time, of those beyond doubt if there are."""
        return min(self.races, key=lambda name: (not self.races[name].won, self.races[name].ratio))


def rounds(targets: Sequence[str], run: Callable[[str, int], float]) -> list[dict[str, float]]:
    """Seconds of the module's own call and of each target's, in rounds of one call each.

    A first round warms up and settles how many follow. Another one begins each round, so that none always runs after
    the same other one.

    Parameters
    ----------
    run : performs a call of the module (`ORIGINAL`) or of a target at the k-th of successive times; its seconds.
    """
    names = (ORIGINAL, *targets)
    warm = {name: run(name, 1) for name in names}
    fitting = int(_SECONDS / max(sum(warm.values()), 1e-6))
    count = min(max(fitting, _ROUNDS[0]), _ROUNDS[1]) | 1
    found = []
    for number in range(count):
        first = number % len(names)
        found.append({name: run(name, number + 2) for name in (*names[first:], *names[:first])})
    return found
