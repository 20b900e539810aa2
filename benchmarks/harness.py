"""Interleaved, paired timing: every round runs every contender once, in random order, on the same fresh inputs.

A machine's speed drifts; the ratio of two runs a moment apart does not. Figures are medians over rounds and intervals
are 95 % bootstrap intervals of the median of the round-by-round ratio.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """One contender: median seconds, and its ratio to the first contender with an interval (below 1 is faster)."""

    name: str
    seconds: float
    ratio: float
    low: float
    high: float
    rounds: int


def race(
    contenders: Mapping[str, Callable[[Any], Any]],
    inputs: Callable[[int], Any],
    *,
    rounds: int,
    warm_up: int = 2,
    seed: int = 0,
) -> list[Timing]:
    """Time all contenders side by side.

    Parameters
    ----------
    contenders : by name; each takes one input. The first is what the others are compared with.
    inputs : makes the input of a round; called once per round, and the result is given to all contenders.
    """

    def timed(contender: Callable[[Any], Any]) -> Callable[[Any], float]:
        def seconds(given: Any) -> float:
            start = time.perf_counter()
            contender(given)
            return time.perf_counter() - start

        return seconds

    clocked = {name: timed(contender) for name, contender in contenders.items()}
    times = interleave(clocked, inputs, rounds=rounds, warm_up=warm_up, seed=seed)
    base = next(iter(times.values()))
    return [paired(name, spent, base) for name, spent in times.items()]


def interleave(
    contenders: Mapping[str, Callable[[Any], T]],
    inputs: Callable[[int], Any],
    *,
    rounds: int,
    warm_up: int = 0,
    seed: int = 0,
) -> dict[str, list[T]]:
    """What every contender returns in every round, those that warm up left out."""
    order = list(contenders)
    shuffle = random.Random(seed)
    found: dict[str, list[T]] = {name: [] for name in order}
    for number in range(rounds + warm_up):
        given = inputs(number)
        for name in shuffle.sample(order, len(order)):
            with torch.no_grad():
                result = contenders[name](given)
            if number >= warm_up:
                found[name].append(result)
    return found


def paired(name: str, times: Sequence[float], base: Sequence[float]) -> Timing:
    """One contender's seconds, round by round, against another's."""
    ratios = [ours / theirs for ours, theirs in zip(times, base, strict=True)]
    low, high = bootstrap(ratios)
    return Timing(name, statistics.median(times), statistics.median(ratios), low, high, len(times))


def fitting(seconds: float, round_seconds: float, least: int, most: int) -> int:
    """Rounds that fit into some seconds, within bounds."""
    return max(least, min(most, int(seconds / max(round_seconds, 1e-9))))


def bootstrap(
    values: Sequence[float], *, samples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the median."""
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(samples))
    edge = int(samples * (1 - level) / 2)
    return medians[edge], medians[-1 - edge]


def in_a_process(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """What ``python -m benchmarks.<module>`` prints in its last line, as JSON; with more in its environment."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(title: str, timings: Sequence[Timing], *, unit: str = "ms") -> str:
    """A Markdown table of one race."""
    scale = {"ms": 1e3, "s": 1.0}[unit]
    lines = [f"### {title}", "", f"| | {unit} | of the original's time | 95 % interval |", "|---|---|---|---|"]
    lines += [f"| {t.name} | {t.seconds * scale:.2f} | {t.ratio:.3f} | {t.low:.3f} to {t.high:.3f} |" for t in timings]
    return "\n".join(lines) + f"\n\n{timings[0].rounds} rounds.\n"
