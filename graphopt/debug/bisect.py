"""Which pass, and which of its rewrites, takes the final result across a threshold: two binary searches.

A run compiles with the first passes of a pipeline, of which the last may be allowed its first rewrites only, and
samples once. First the shortest row of passes is found whose result is off, then the fewest rewrites of its last pass.
The runs on both sides of the boundary differ by one rewrite, whether or not results get worse monotonically; that it is
the only fault is then checked, by a run with everything but this rewrite.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from graphopt.debug.limit import Attempt, Limit, Rewrite
from graphopt.debug.metrics import Metric, Result
from graphopt.errors import GraphoptError, UsageError
from graphopt.ir.driver import check_order
from graphopt.ir.rewrite import Observer, Pass, spell

# Samples once: with what these passes make of the modules, seen by these observers; None: the original, uncompiled.
Sample: TypeAlias = Callable[[Sequence[Pass] | None, Sequence[Observer]], Result]


@dataclass(frozen=True)
class Run:
    """One sampling run.

    Attributes
    ----------
    what : it was compiled with.
    value : of the metric, against the original; None where the run has no result that could be measured.
    good : whether the value is within the threshold.
    trouble : why there is no value: the run crashed, or its result is not finite.
    result : the images or latents; None after a crash.
    limit : what the passes did.
    """

    what: str
    value: float | None
    good: bool
    trouble: str
    result: Result | None
    limit: Limit

    def text(self, metric: Metric, *, named: bool = True) -> str:
        """``psnr 78.3 dB``, without the metric's name ``78.3 dB``; or what went wrong."""
        if self.value is None:
            return self.trouble
        return f"{metric.name} {metric.text(self.value)}" if named else metric.text(self.value)


@dataclass(frozen=True)
class Fault:
    """Where results cross the threshold.

    Attributes
    ----------
    position : of the pass in the pipeline, from 0.
    number, of : of the rewrite, from 1, among those of the pass in all modules; 0 where the pass rewrote nothing.
    rewrite, attempt : that rewrite, and the Programs before and after it; None where the pass rewrote nothing.
    without, with_ : the runs before and after the boundary.
    alone : the run of the whole pipeline without this pass at this node of this module, however often that is
        compiled; None where the pass rewrote nothing.
    doubts : why this may not be the whole truth.
    sides : observers for more runs on both sides of the boundary, with the passes up to this; empty without a rewrite.
    """

    pass_: Pass
    position: int
    number: int
    of: int
    rewrite: Rewrite | None
    attempt: Attempt | None
    without: Run
    with_: Run
    alone: Run | None
    doubts: tuple[str, ...]
    sides: tuple[Limit, ...] = ()


@dataclass
class Bisection:
    """What a search has found.

    Attributes
    ----------
    original : the result of the uncompiled pipeline.
    runs : all compiled ones, in order.
    within : whether the result of all passes is within the threshold.
    fault : None where it is, and where no pass is to blame (`doubts` says why).
    rolled_back : passes that were, in the run with all: pass, module, reason.
    still : names of passes that fired in none of their places, in the run with all.
    notes : warnings of the runs.
    """

    metric: Metric
    threshold: float
    passes: tuple[Pass, ...]
    original: Result
    runs: list[Run] = field(default_factory=list)
    within: bool = False
    fault: Fault | None = None
    rolled_back: list[tuple[str, str, str]] = field(default_factory=list)
    still: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> Run:
        """The run with all passes."""
        return self.runs[0]


def bisect(
    sample: Sample, passes: Sequence[Pass], metric: Metric, threshold: float | None = None, *,
    on_run: Callable[[int, int, Run], None] = lambda number, about, run: None,
) -> Bisection:  # fmt: skip
    """Find the first pass, then the first of its rewrites, that takes the result across the threshold.

    Needs at most ``2 + ceil(log2 passes) + ceil(log2 rewrites) + 1`` compiled runs: all passes, none, the two searches,
    and all but the rewrite found.

    Parameters
    ----------
    on_run : told after each run its number, how many there will be (about, until the pass is known), and the run.

    Raises
    ------
    GraphoptError : the original's result is not finite. What the original itself raises goes to the caller.
    PassError : the order of the passes is not legal.
    """
    check_order(passes)
    original = sample(None, ())
    if not np.isfinite(original).all():
        raise GraphoptError("the original's own result is not finite", where="the uncompiled run",
                            hint="another seed, prompt or dtype: there is nothing to compare with")  # fmt: skip
    threshold = metric.threshold if threshold is None else threshold
    found = Bisection(metric, threshold, tuple(passes), original)
    search = _Search(sample, found, on_run)
    search.find()
    found.notes = tuple(dict.fromkeys(search.notes))
    return found


def measured(
    sample: Sample, what: str, passes: Sequence[Pass], limit: Limit, original: Result, metric: Metric, threshold: float
) -> tuple[Run, list[str]]:
    """Compile, sample, measure; and what graphopt warned of. Whatever the run raises makes it a bad one."""
    result, value, trouble = None, None, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            result = sample(passes, [limit])
        except UsageError:
            raise
        except Exception as error:
            trouble = f"crashed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")
    if result is not None and result.shape != original.shape:
        trouble = f"of shape {result.shape}, not {original.shape}"
    elif result is not None and not np.isfinite(result).all():
        trouble = f"not finite: {int((~np.isfinite(result)).sum())} of {result.size} values"
    elif result is not None:
        value = metric.measure(original, result)
    good = value is not None and metric.within(value, threshold)
    notes = [text for entry in caught if _of_interest(text := str(entry.message))]
    return Run(what, value, good, trouble, result, limit), notes


class _Search:
    """The state of a search: prefixes and rewrites that were run."""

    def __init__(self, sample: Sample, found: Bisection, on_run: Callable[[int, int, Run], None]) -> None:
        self.sample, self.found, self.on_run = sample, found, on_run
        self.about = 0
        self.notes: list[str] = []

    def find(self) -> None:
        found, passes = self.found, self.found.passes
        self.about = 3 + _halvings(len(passes)) + 4
        every = self.run("all passes", passes, Limit(len(passes) - 1))
        found.within = every.good
        names = [spell(entry) for entry in passes]
        found.rolled_back = [(names[at], module, why) for at, module, why in every.limit.rolled_back]
        fired = {entry.name for k, entry in enumerate(passes) if every.limit.fired(k)}
        tried = fired | {passes[at].name for at, _, _ in every.limit.rolled_back}
        found.still = tuple(dict.fromkeys(entry.name for entry in passes if entry.name not in tried))
        if every.good:
            return
        most = max([every.limit.fired(k) for k in range(len(passes))], default=0)
        self.about = 3 + _halvings(len(passes)) + _halvings(most)
        none = self.run("no pass", (), Limit(-1)) if passes else every
        if not none.good:
            found.doubts = (self._before_any_pass(),)
            return
        prefixes = {0: none, len(passes): every}
        good, bad = 0, len(passes)
        while bad - good > 1:
            middle = (good + bad) // 2
            what = f"{middle} of {len(passes)} passes, to {names[middle - 1]}"
            prefixes[middle] = self.run(what, passes[:middle], Limit(middle - 1))
            good, bad = (middle, bad) if prefixes[middle].good else (good, middle)
        self.first_rewrite(bad - 1, prefixes[good], prefixes[bad])

    def first_rewrite(self, position: int, without: Run, with_: Run) -> None:
        """Search the rewrites of one pass, between a run without it and one with all of it."""
        found, name = self.found, spell(self.found.passes[position])
        order, attempts = with_.limit.order, list(enumerate(with_.limit.attempts))
        closed = frozenset(number for number, entry in attempts if position in entry.failed and entry.used)
        free = frozenset(number for number, entry in attempts if not entry.used)
        watch = partial(Limit, position, closed=closed, free=free)
        good, bad, doubts = 0, len(order), list[str]()
        self.about = len(found.runs) + _halvings(bad) + bool(order)
        while bad - good > 1:
            middle = (good + bad) // 2
            limit = watch(most=middle)
            run = self.run(f"{middle} of {len(order)} rewrites of {name}", found.passes[: position + 1], limit)
            if limit.order != order[:middle]:
                doubts.append(_unlike(limit, middle, name))
            if run.good:
                good, without = middle, run
            else:
                bad, with_ = middle, run
        if not order:
            doubts.append(f"{name} rewrote nothing: what it says that it exploits is enough to change the result")
            found.fault = Fault(found.passes[position], position, 0, 0, None, None, without, with_, None, tuple(doubts))
            return
        rewrite = order[bad - 1]
        where = with_.limit.attempts[rewrite.attempt].name, rewrite.place.node
        alone = self.run(f"all but {name} at {where[1]}", found.passes, watch(without=where))
        if not alone.good:
            doubts.append(
                f"with all passes but this rewrite the result is still off ({alone.text(found.metric)}): something "
                "else is wrong as well, or needs it; mend this one and bisect again"
            )
        before = with_.limit.attempts[rewrite.attempt].before
        if good:  # the run on the other side made it with all rewrites but this
            before = without.limit.attempts[rewrite.attempt].after
        last = with_.limit.attempts[rewrite.attempt]
        attempt = Attempt(last.name, last.number, before, last.after)
        sides = watch(most=bad - 1), watch(most=bad)
        found.fault = Fault(found.passes[position], position, bad, len(order), rewrite, attempt, without, with_, alone,
                            tuple(dict.fromkeys(doubts)), sides)  # fmt: skip

    def run(self, what: str, passes: Sequence[Pass], limit: Limit) -> Run:
        found = self.found
        run, notes = measured(self.sample, what, passes, limit, found.original, found.metric, found.threshold)
        self.notes += notes
        self.found.runs.append(run)
        self.on_run(len(self.found.runs), max(self.about, len(self.found.runs)), run)
        return run

    def _before_any_pass(self) -> str:
        """Why the result is off although no pass ran."""
        again, original = self.sample(None, ()), self.found.original
        if again.shape != original.shape or not (again == original).all():
            return "two runs of the original differ: it draws random numbers that the seed does not settle"
        return "it is off without any pass: the fault is in the capture, the stages or the target"


def _halvings(count: int) -> int:
    """How often a row of this length is halved until one is left."""
    return max(0, count - 1).bit_length()


def _unlike(limit: Limit, most: int, name: str) -> str:
    back = [(module, why) for at, module, why in limit.rolled_back if at == limit.position]
    if back:
        module, why = back[-1]
        return f"{name} with {most} rewrites alone is rolled back in {module} ({why.splitlines()[0]})"
    return f"{name} found other places when it was allowed {most} rewrites: results may not be due to one of them"


def _of_interest(text: str) -> bool:
    """Warnings of graphopt but those that a search reports itself."""
    return text.startswith("graphopt: ") and "was rolled back" not in text
