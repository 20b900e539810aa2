"""What the exact pipeline gains, measured: per step and per image, and by pass.

    python -m benchmarks.exact_gain                      everything (an hour on two cores)
    python -m benchmarks.exact_gain --models sd-like --steps 4 20
    python -m benchmarks.exact_gain --quick              no passes left out, images of four steps unless --steps says so
    python -m benchmarks.exact_gain --summary A.json     one table of what earlier runs wrote with --json; no run

Contenders are diffusers pipelines with the same weights: the original; a *ladder* of pipelines of passes on the eager
target, each of which adds to the one before; the exact pipeline *without* one pass, for each pass that fires; and what
users get of them: target ``("eager",)``, which keeps the original where that is faster (code that is generated is not
part of this: see `benchmarks.cpu_step`). All run in one process, interleaved: a round is one image of every contender,
in random order, from the same noise and prompt, and every round has other ones. A step is timed from one turn of the
sampling loop to the next, with scheduler and guidance, the first step left out (it computes what the request keeps).
Intervals are 95 % bootstrap intervals of the median of the round-by-round ratio; rounds are as many as time allows.

The ladder starts with the captured graph itself (no passes), then places what need not run at every step, then cleans
up; passes in between are added one by one, those that never fire with the next one that does. The placing passes stay
in every rung above: packed and joined weights are prepared in the weights stage, not at every step. Where leaving a
pass out makes the step move more bytes than the original, because other passes count on it, that is said and not timed.

Exit status 1 when what users get is slower than the original beyond the interval in any case, or outputs disagree. Of
sixty intervals of 95 % some lie above 1 by chance: such a case is measured anew, in three times the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import diffusers
import torch

import graphopt
from benchmarks.harness import Timing, fitting, interleave, paired, table
from benchmarks.pipelines import FULL, TINY, DiffusersPipeline, difference, diffusers_pipelines
from benchmarks.redundancy import of_step
from graphopt.ir.rewrite import Pass, spell

MOST_OFF = 1e-3  # largest difference of an output, relative to the largest value, after four steps
_LADDER_STEPS = 4
_LEAST = {4: 5, 20: 3}  # rounds, by steps per image; 2 for longer ones, of which each has many steps
_SHARES = {4: 0.5, 20: 0.2}  # of the time of a model after compiling; the rest for longer ones
ORIGINAL, EAGER, RACED = "original", "exact, eager", "exact, where faster"


@dataclass(frozen=True)
class Image:
    """One request: seconds of all of it, the median of its steps but the first, and its result."""

    seconds: float
    step: float
    result: torch.Tensor = field(repr=False)


class StepClock:
    """Stands in for a diffusers pipeline's progress bar and notes the time of every turn of the loop."""

    def __init__(self) -> None:
        self.turns: list[float] = []

    def __call__(self, iterable: Any = None, total: int | None = None) -> Any:
        self.turns = [] if iterable is not None else [time.perf_counter()]
        return self if iterable is None else self._each(iterable)

    def _each(self, iterable: Any) -> Iterator[Any]:
        for entry in iterable:
            self.turns.append(time.perf_counter())
            yield entry
        self.turns.append(time.perf_counter())

    def __enter__(self) -> StepClock:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, number: int = 1) -> None:
        self.turns.append(time.perf_counter())


class Contender:
    """A diffusers pipeline under a clock."""

    def __init__(self, entry: DiffusersPipeline, pipe: Any) -> None:
        self.entry, self.pipe, self.clock = entry, pipe, StepClock()
        pipe.progress_bar = self.clock

    def __call__(self, given: tuple[int, int]) -> Image:
        """The image of a seed in a number of steps."""
        seed, steps = given
        start = time.perf_counter()
        result = self.entry.call(self.pipe, seed, steps)
        spent = time.perf_counter() - start
        turns = self.clock.turns
        steady = [after - before for before, after in pairwise(turns[1:])]  # the first computes what the request keeps
        return Image(spent, statistics.median(steady), result)


@dataclass
class Result:
    """What was measured of one diffusers pipeline.

    Attributes
    ----------
    ladder : rungs by (against the original, against the rung below), per step.
    image : the same rungs against the original, per image of four steps.
    without : the exact pipeline against itself without a pass, per step; below 1 the pass helps.
    untimed : passes that were not left out, and why.
    gains : by steps per image: step and image of what users get and of the eager target, against the original.
    difference : the largest of any contender's output.
    runs : what runs, by module.
    """

    ladder: list[tuple[Timing, Timing]] = field(default_factory=list)
    image: list[Timing] = field(default_factory=list)
    without: list[Timing] = field(default_factory=list)
    untimed: dict[str, str] = field(default_factory=dict)
    gains: dict[int, dict[str, list[Timing]]] = field(default_factory=dict)
    difference: float = 0.0
    runs: dict[str, str] = field(default_factory=dict)
    compile_seconds: float = 0.0

    def complaints(self, name: str) -> Iterator[str]:
        """What makes the exit status 1."""
        if not self.difference <= MOST_OFF:
            yield f"{name}: outputs differ by {self.difference:.1e}"
        for steps, kinds in self.gains.items():
            for kind, timings in kinds.items():
                for timing in timings:
                    if timing.name == RACED and timing.low > 1.0:
                        yield f"{name}, {kind} at {steps} steps: {timing.low:.3f} to {timing.high:.3f}"


def parts(pipeline: Sequence[Pass]) -> tuple[tuple[Pass, ...], tuple[Pass, ...], tuple[Pass, ...]]:
    """A pipeline as what cleans up, what is its own, and what places: what it begins and ends with as others do."""
    others = [graphopt.pipelines.bitwise, graphopt.pipelines.exact]
    clean = tuple(entry[0] for entry in takewhile(_same, zip(pipeline, *others, strict=False)))
    backwards = zip(reversed(pipeline), *map(reversed, others), strict=False)
    place = tuple(entry[0] for entry in takewhile(_same, backwards))[::-1]
    place = place[max(0, len(clean) + len(place) - len(pipeline)) :]
    return clean, tuple(pipeline[len(clean) : len(pipeline) - len(place)]), place


def _same(entries: tuple[Pass, ...]) -> bool:
    return all(entry == entries[0] for entry in entries)


def ladder(pipeline: Sequence[Pass], fired: set[str]) -> dict[str, tuple[Pass, ...]]:
    """Pipelines by name, each with more passes than the one before; the last one is `pipeline`.

    `fired` are the spelled passes that did anything.
    """
    clean, own, place = parts(pipeline)
    rungs: dict[str, tuple[Pass, ...]] = {"captured, no passes": (), "+ placing": place, "+ cleaning": (*clean, *place)}
    last = max((number for number, entry in enumerate(own) if spell(entry) in fired), default=-1)
    for number, entry in enumerate(own):
        if spell(entry) in fired:
            upto = len(own) if number == last else number + 1
            rungs[f"+ {spell(entry)}"] = (*clean, *own[:upto], *place)
    return rungs


def leave_one_out(pipeline: Sequence[Pass], fired: set[str]) -> dict[str, tuple[Pass, ...]]:
    """The pipeline without each pass that fired, wherever it occurs, by the pass's name."""
    names = dict.fromkeys(entry.name for entry in pipeline if spell(entry) in fired)
    return {name: tuple(entry for entry in pipeline if entry.name != name) for name in names}


def fired_in(pipe: Any) -> set[str]:
    """Spelled passes that rewrote anything in any module of the step."""
    return {
        record.name for module in of_step(graphopt.report(pipe)) for record in module.variants[0].passes if record.fired
    }


def _moves_more(pipe: Any) -> bool:
    """Whether the steps after the passes move more bytes than those before."""
    variants = [module.variants[0] for module in of_step(graphopt.report(pipe))]
    after = sum(stage.bytes for variant in variants for stage in variant.stages if stage.name == "step")
    return bool(after > sum(variant.captured_bytes for variant in variants))


class Field:
    """The contenders of one model, compiled and warm, and how far their outputs are from the original's."""

    def __init__(self, entry: DiffusersPipeline) -> None:
        self.entry, self.difference = entry, 0.0
        self.known: dict[tuple[Pass, ...], Contender] = {}  # rungs that are the same pipeline are compiled once
        self.original = Contender(entry, entry.make())
        self.expected = [self.original((seed, _LADDER_STEPS)).result for seed in range(2)]

    def enter(self, passes: tuple[Pass, ...] | None) -> Contender:
        """A contender with these passes, or what users get (None)."""
        if passes is not None and passes in self.known:
            return self.known[passes]
        pipe = self.entry.make()
        if passes is None:
            graphopt.compile(pipe, target=("eager",))
        else:
            graphopt.compile(pipe, target="eager", pipeline=passes)
        contender = Contender(self.entry, pipe)
        for seed, expected in enumerate(self.expected):  # the second runs with what the first has found
            off = difference(contender((seed, _LADDER_STEPS)).result, expected)
            self.difference = max(self.difference, off)
        if passes is not None:
            self.known[passes] = contender
        return contender


def measure(
    entry: DiffusersPipeline, steps: Sequence[int], seconds: float, rounds: int | None = None, *, by_pass: bool = True
) -> Result:
    """Run all races of one model in about `seconds`."""
    result, start = Result(), time.perf_counter()
    exact = tuple(graphopt.pipelines.exact)
    group = Field(entry)
    raced, eager = group.enter(None), group.enter(exact)
    fired = fired_in(eager.pipe)
    rungs = {name: group.enter(passes) for name, passes in ladder(exact, fired).items()}
    without: dict[str, Contender] = {}
    for name, passes in leave_one_out(exact, fired).items() if by_pass else ():
        contender = group.enter(passes)
        if _moves_more(contender.pipe):
            result.untimed[name] = "without it the step moves more bytes than the original: other passes count on it"
        else:
            without[name] = contender
    result.difference = group.difference
    result.runs = {module.name: module.variants[0].runs for module in of_step(graphopt.report(raced.pipe))}
    result.compile_seconds = time.perf_counter() - start
    left = max(0.0, seconds - result.compile_seconds)
    for number in sorted({*steps, _LADDER_STEPS}):
        field_ = {ORIGINAL: group.original, RACED: raced}
        if number == _LADDER_STEPS:
            field_[EAGER] = eager
            field_ |= {f"rung {name}": contender for name, contender in rungs.items()}
            field_ |= {f"without {name}": contender for name, contender in without.items()}
        images = _race(field_, number, left * _SHARES.get(number, 0.3), rounds)
        result.gains[number] = _gains(images)
        if number == _LADDER_STEPS:
            _by_pass(result, images, list(rungs), list(without))
        if any(result.complaints(entry.name)):
            again = {ORIGINAL: group.original, RACED: raced}
            result.gains[number] = _gains(_race(again, number, 0.0, 3 * len(images[ORIGINAL])))
    return result


def _gains(images: Mapping[str, Sequence[Image]]) -> dict[str, list[Timing]]:
    shown = [name for name in (ORIGINAL, EAGER, RACED) if name in images]
    return {
        "step": [paired(name, _steps(images, name), _steps(images, ORIGINAL)) for name in shown],
        "image": [paired(name, _seconds(images, name), _seconds(images, ORIGINAL)) for name in shown],
    }


def _race(
    contenders: Mapping[str, Contender], steps: int, seconds: float, rounds: int | None
) -> dict[str, list[Image]]:
    """Images of `steps` steps; the same contender under several names runs once a round."""
    once = {id(contender): contender for contender in contenders.values()}
    clocked = {str(key): contender for key, contender in once.items()}
    warm = next(iter(once.values()))((0, 2)).step * steps * len(once)  # an estimate of one round
    count = rounds or fitting(seconds, warm, _LEAST.get(steps, 2), 30)
    images = interleave(clocked, lambda number: (100 + number, steps), rounds=count, warm_up=1 if steps <= 4 else 0)
    return {name: images[str(id(contender))] for name, contender in contenders.items()}


def _steps(images: Mapping[str, Sequence[Image]], name: str) -> list[float]:
    return [image.step for image in images[name]]


def _seconds(images: Mapping[str, Sequence[Image]], name: str) -> list[float]:
    return [image.seconds for image in images[name]]


def _by_pass(result: Result, images: Mapping[str, Sequence[Image]], rungs: list[str], without: list[str]) -> None:
    below = ORIGINAL
    for name in rungs:
        ours = _steps(images, f"rung {name}")
        result.ladder.append((paired(name, ours, _steps(images, ORIGINAL)), paired(name, ours, _steps(images, below))))
        result.image.append(paired(name, _seconds(images, f"rung {name}"), _seconds(images, ORIGINAL)))
        below = f"rung {name}"
    for name in without:
        result.without.append(paired(name, _steps(images, EAGER), _steps(images, f"without {name}")))


def markdown(name: str, notes: str, result: Result) -> str:
    """The tables of one model."""
    lines = [f"## {name}", "", f"{notes}; fp32, {torch.get_num_threads()} threads.", ""]
    for steps, kinds in sorted(result.gains.items()):
        for kind, timings in kinds.items():
            what = f"one step of {steps}" if kind == "step" else f"one image of {steps} steps"
            lines.append(table(f"{name}: {what}", timings))
    lines += [
        f"### {name}: the ladder, one step", "",
        "| rung | ms | of the original's time | 95 % interval | of the rung below | 95 % interval | image of 4 |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (whole, below), image in zip(result.ladder, result.image, strict=True):
        lines.append(
            f"| {whole.name} | {whole.seconds * 1e3:.2f} | {whole.ratio:.3f} | {whole.low:.3f} to {whole.high:.3f} "
            f"| {below.ratio:.3f} | {below.low:.3f} to {below.high:.3f} | {image.ratio:.3f} |"
        )
    if result.without or result.untimed:
        lines += [
            "", f"### {name}: by pass, one step", "",
            "| pass | with it, of the time without it | 95 % interval |", "|---|---|---|",
        ]  # fmt: skip
        lines += [f"| {t.name} | {t.ratio:.3f} | {t.low:.3f} to {t.high:.3f} |" for t in result.without]
        lines += [f"| {key} | – | {reason} |" for key, reason in result.untimed.items()]
    fired = {entry.name for entry, _ in result.ladder}
    idle = [spell(entry) for entry in parts(graphopt.pipelines.exact)[1] if f"+ {spell(entry)}" not in fired]
    lines += ["", f"Never fired: {', '.join(idle)}."] if idle else []
    lines += ["", f"Largest relative difference of outputs: {result.difference:.1e}.", ""]
    lines += [f"- {module}: {runs}" for module, runs in result.runs.items()]
    return "\n".join([*lines, ""])


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """What users get of every model, one line each, from `asdict` of its `Result`: shares of the original's time."""
    steps = sorted({int(number) for result in results.values() for number in result["gains"]})
    heads = [f"{kind} of {number}" for kind in ("step", "image") for number in steps]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, result in results.items():
        gains = {int(number): kinds for number, kinds in result["gains"].items()}
        cells = [
            _cell(gains[number][kind]) if number in gains else "" for kind in ("step", "image") for number in steps
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(timings: Sequence[Mapping[str, Any]]) -> str:
    raced = next(timing for timing in timings if timing["name"] == RACED)
    return f"**{raced['ratio']:.2f}** ({raced['low']:.2f} to {raced['high']:.2f})"


def main() -> int:
    """Run the races asked for; 1 when graphopt loses one or computes something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=None, help="diffusers pipelines by name (default: all)")
    parser.add_argument("--steps", nargs="*", type=int, default=None, help="steps per image (default: 4 20 50)")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of every race (default: what the time allows)")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all models together")
    parser.add_argument("--threads", type=int, default=2, help="of every contender (default: 2)")
    parser.add_argument("--quick", action="store_true", help="no passes left out; by default images of four steps")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script out; no verdict")
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    parser.add_argument("--summary", nargs="+", type=Path, metavar="FILE", help="show what --json wrote, and stop")
    options = parser.parse_args()
    if options.summary:
        known_results = [json.loads(file.read_text(encoding="utf-8")) for file in options.summary]
        print(summary({name: result for results in known_results for name, result in results.items()}))
        return 0
    if any(number < 3 for number in options.steps or ()):
        parser.error("an image needs at least three steps: the first one is not timed")
    torch.set_num_threads(1 if options.tiny else options.threads)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    known = diffusers_pipelines(TINY if options.tiny else FULL)
    names = options.models or list(known)
    for name in names:
        if name not in known:
            parser.error(f"unknown model '{name}'; known are {', '.join(known)}")
    steps = options.steps or ([_LADDER_STEPS] if options.quick else [4, 20, 50])
    results, bad, start = {}, list[str](), time.perf_counter()
    for number, name in enumerate(names):
        left = options.minutes * 60 - (time.perf_counter() - start)
        share = left / (len(names) - number)
        result = measure(known[name], steps, share, options.rounds, by_pass=not options.quick)
        print(markdown(name, known[name].notes, result), flush=True)
        results[name], bad = asdict(result), [*bad, *result.complaints(name)]
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"## What users get on torch's own kernels, of the original's time\n\n{summary(results)}")
    if options.tiny:
        return 0
    print("verdict: " + ("FAILED: " + "; ".join(bad) if bad else "what users get is never slower beyond the interval"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
