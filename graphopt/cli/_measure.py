"""Original against compiled: the same prompts and seeds, batch by batch in turns, so that both share what drifts."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.cli._load import call_arguments, device_of
from graphopt.energy import Meter, Reading
from graphopt.errors import UsageError

_WARM_STEPS = 4  # after which it is known what the steps of a run share
_WARM_RUNS = 4, 8  # of a batch size, at least and at most; for the same reason

Pictures = npt.NDArray[np.uint8]  # [count, height, width, channels]


@dataclass
class Spread:
    """Median, and the range it was found in."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], trim: float = 0.0) -> Spread:
        """Of `values`; `trim` is the share left out of the range at each end."""
        ordered = sorted(values)
        skip = int(trim * len(ordered))
        return cls(statistics.median(ordered), ordered[skip], ordered[len(ordered) - 1 - skip], len(ordered))


@dataclass
class Sampled:
    """What one pipeline made: pictures, and per batch the seconds, seconds per step, and energy."""

    pictures: list[Pictures] = field(default_factory=list)
    batch_seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    step_seconds: list[list[float]] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)

    @property
    def stack(self) -> Pictures:
        return np.concatenate(self.pictures)

    @property
    def image_seconds(self) -> list[float]:
        """Seconds per image, one entry per batch."""
        return [seconds / size for seconds, size in zip(self.batch_seconds, self.sizes, strict=True)]

    @property
    def steps(self) -> list[float]:
        return [seconds for batch in self.step_seconds for seconds in batch]

    @property
    def joules_per_image(self) -> float:
        return sum(reading.joules for reading in self.readings) / sum(self.sizes)

    @property
    def above_idle_per_image(self) -> float | None:
        above = [reading.above_idle for reading in self.readings]
        known = [joules for joules in above if joules is not None]
        return sum(known) / sum(self.sizes) if len(known) == len(above) else None


class Sampler:
    """A pipeline with its settings; every picture has a seed of its own, so that batching changes nothing else."""

    def __init__(self, pipe: Any, arguments: dict[str, Any], on_step: Callable[[], None] = lambda: None) -> None:
        self.pipe, self.arguments, self.on_step = pipe, arguments, on_step

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], into: Sampled, meter: Meter | None = None) -> None:
        """Generate one batch and note what it took."""
        import torch

        arguments = call_arguments(self.pipe, {**self.arguments, "output_type": "np", "prompt": list(prompts)})
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with meter or nullcontext(), _ticks(self.pipe, self.on_step) as ticks, torch.no_grad():
            start = time.perf_counter()
            images = self.pipe(**arguments, generator=generators).images
            if device_of(self.pipe) == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        into.pictures.append((np.asarray(images) * 255).round().astype(np.uint8))
        into.batch_seconds.append(seconds)
        into.sizes.append(len(prompts))
        into.step_seconds.append([after - before for before, after in pairwise(ticks)])
        if meter:
            into.readings.append(meter.reading)

    def warm_up(self, sizes: Sequence[int]) -> float:
        """Seconds for a few short runs at each batch size, with other prompts: what is done once comes here.

        A compiled pipeline learns from its first runs what calls share, and builds again: it runs until it does not.
        """
        start = time.perf_counter()
        short = Sampler(self.pipe, {**self.arguments, "num_inference_steps": _WARM_STEPS})
        for size in dict.fromkeys(sizes):
            for turn in range(_WARM_RUNS[1]):
                before = self._built()
                short.sample([f"warm-up {turn}"] * size, range(turn, turn + size), Sampled())
                if self._built() == before and (turn + 1 >= _WARM_RUNS[0] or not before):
                    break
        return time.perf_counter() - start

    def _built(self) -> list[int]:
        """What graphopt has compiled of the pipeline by now."""
        from graphopt.compile import compiled_calls

        try:
            return [id(variant) for entry in compiled_calls(self.pipe) for variant in entry.variants]
        except UsageError:  # the original
            return []


@contextmanager
def _ticks(pipe: Any, on_step: Callable[[], None]) -> Iterator[list[float]]:
    """The time of every scheduler step. Two neighbours enclose all of a step: denoiser, guidance and scheduler."""
    scheduler, times = pipe.scheduler, list[float]()
    original = scheduler.step

    @functools.wraps(original)  # pipelines look at its signature
    def step(*args: Any, **kwargs: Any) -> Any:
        times.append(time.perf_counter())
        on_step()
        return original(*args, **kwargs)

    scheduler.step = step
    try:
        yield times
    finally:
        del scheduler.step


def in_turns(
    original: Sampler, compiled: Sampler, prompts: Sequence[str], seed: int, batch: int, meter: Meter,
    on_batch: Callable[[int, str], None] = lambda turn, which: None,
) -> tuple[Sampled, Sampled]:  # fmt: skip
    """All prompts by both, batch after batch, the order within a pair changing from pair to pair.

    `on_batch` is told before each which batch it is and whose: ``0, "original"``.
    """
    ours, theirs = Sampled(), Sampled()
    for turn, start in enumerate(range(0, len(prompts), batch)):
        some = prompts[start : start + batch]
        seeds = range(seed + start, seed + start + len(some))
        pair = [("original", original, ours), ("compiled", compiled, theirs)]
        for which, sampler, into in pair if turn % 2 == 0 else pair[::-1]:
            on_batch(turn, which)
            sampler.sample(some, seeds, into, meter)
    return ours, theirs


@dataclass
class Comparison:
    """Seconds of both and their ratio, original / compiled: above 1 the compiled pipeline is faster."""

    original: Spread
    compiled: Spread
    ratio: Spread


def per_image(original: Sampled, compiled: Sampled) -> Comparison:
    pairs = zip(original.batch_seconds, compiled.batch_seconds, strict=True)
    return Comparison(
        Spread.of(original.image_seconds), Spread.of(compiled.image_seconds), Spread.of([a / b for a, b in pairs])
    )


def per_step(original: Sampled, compiled: Sampled) -> Comparison | None:
    """None when runs have a single step."""
    if not original.steps or not compiled.steps:
        return None
    medians = [
        statistics.median(a) / statistics.median(b)
        for a, b in zip(original.step_seconds, compiled.step_seconds, strict=True)
    ]
    return Comparison(Spread.of(original.steps, 0.1), Spread.of(compiled.steps, 0.1), Spread.of(medians))


@dataclass
class Difference:
    """How far the pictures are apart, in grey levels of 0 to 255."""

    largest: int
    mean: float
    count: int  # of values (a pixel has three) that differ
    values: int

    @classmethod
    def of(cls, original: Pictures, compiled: Pictures) -> Difference:
        apart = np.abs(original.astype(np.int16) - compiled.astype(np.int16))
        return cls(int(apart.max()), float(apart.mean()), int((apart > 0).sum()), apart.size)
