"""The image after every pass: a run for each pass that changes anything, compiled with it and those before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.debug.bisect import Run, Sample, measured
from graphopt.debug.limit import Limit
from graphopt.debug.metrics import METRICS, Metric, Result
from graphopt.errors import GraphoptError
from graphopt.ir.driver import check_order
from graphopt.ir.rewrite import Pass, spell


@dataclass(frozen=True)
class Frame:
    """The image after a pass.

    Attributes
    ----------
    position : of the pass, from 1; 0 without any.
    name : of the pass as the command line spells it.
    fired : how often it did, in all modules.
    run : what it gave; its value is the peak signal-to-noise ratio against the original, in dB.
    largest : the largest difference in grey levels of 255; None where the run has no image.
    """

    position: int
    name: str
    fired: int
    run: Run
    largest: int | None


@dataclass(frozen=True)
class Film:
    """All frames in order, the one without passes first.

    Attributes
    ----------
    still : passes that never fired, in none of their places, and have no frame.
    rolled_back : pass, module and reason.
    """

    original: Result
    frames: tuple[Frame, ...]
    still: tuple[str, ...]
    rolled_back: tuple[tuple[str, str, str], ...]
    metric: Metric
    notes: tuple[str, ...]


def film(
    sample: Sample, passes: Sequence[Pass], *, on_run: Callable[[int, int, Run], None] = lambda number, of, run: None
) -> Film:
    """Sample the original, then with all passes, with none, and with those up to each that fired.

    Raises
    ------
    GraphoptError : the original's image is not finite.
    PassError : the order of the passes is not legal.
    """
    check_order(passes)
    original, metric, notes = sample(None, ()), METRICS["psnr"], list[str]()
    if not np.isfinite(original).all():
        raise GraphoptError("the original's own image is not finite", where="the uncompiled run",
                            hint="another seed, prompt or dtype: there is nothing to compare with")  # fmt: skip
    names = [spell(entry) for entry in passes]
    every, moving, runs = None, list[int](), dict[int, Run]()
    waiting = [len(passes)]
    while waiting:
        place = waiting.pop(0)
        what = (
            "all passes"
            if every is None
            else f"{place} of {len(passes)} passes, to {names[place - 1]}"
            if place
            else "no pass"
        )
        run, said = measured(sample, what, passes[:place], Limit(-1), original, metric, metric.threshold)
        notes.extend(said)
        if every is None:
            every = run
            moving = [at for at, _ in enumerate(names, 1) if run.limit.fired(at - 1)]
            waiting = [0, *moving[:-1]] if moving else []
            place = moving[-1] if moving else 0  # those after it change nothing
        runs[place] = run
        on_run(len(runs), len(moving) + 1, run)
    assert every is not None
    frames = [
        Frame(place, names[place - 1] if place else "no passes", every.limit.fired(place - 1) if place else 0, run,
              _largest(original, run))
        for place, run in sorted(runs.items())
    ]  # fmt: skip
    back = [(names[at], module, why) for at, module, why in every.limit.rolled_back]
    named = {names[at - 1] for at in moving} | {name for name, _, _ in back}
    still = [name for name in names if name not in named]
    return Film(original, tuple(frames), tuple(dict.fromkeys(still)), tuple(back), metric, tuple(dict.fromkeys(notes)))


def _largest(original: Result, run: Run) -> int | None:
    if run.value is None or run.result is None:
        return None
    return int(METRICS["max"].measure(original, run.result))
