"""How much of a sampling step is redundant, counted: what each pass of the exact pipeline removes from it.

    python -m benchmarks.redundancy                  everything (two to three minutes)
    python -m benchmarks.redundancy --models sd-like emoji-dit --json counts.json

No time is measured. Every diffusers pipeline runs a few steps twice on the eager target, so that what is only found
while a pipeline runs is found; every bare configuration runs a few calls. Then, for each module of the step:

- its step before and after all passes: nodes, FLOPs, bytes moved, and bytes of weights (or of what is kept in their
  place) read;
- the same by pass, in the order of the pipeline, those included that find nothing;
- the FLOPs of an image of 4, 20 and 50 steps, where what is computed once per request or once per timestep is counted
  as often as it was computed for a new request on a new schedule. (Timesteps seen before cost nothing; here none was.)

FLOPs count a multiply-add as two; bytes are operands read and results written as if nothing stayed in cache
(`graphopt.ir.cost`).
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field
from itertools import starmap
from pathlib import Path
from typing import Any

import diffusers
import torch

import graphopt
from benchmarks.models import Denoiser, denoisers
from benchmarks.pipelines import FULL, TINY, DiffusersPipeline, diffusers_pipelines
from graphopt.ir.rewrite import Pass
from graphopt.runtime.report import ModuleReport, Report, VariantReport

STEPS = (4, 20, 50)
_PROBES = (3, 5)  # steps of the two runs from which the work of an image of any number of steps follows
_NOT_STEP = ("text_encoder", "image_encoder", "vae")  # components that run once per image


@dataclass(frozen=True)
class Work:
    """Of one step of one module: nodes, FLOPs, bytes moved, bytes of weights read."""

    nodes: int
    flops: float
    bytes: float
    weights: float = 0.0  # not recorded by pass


@dataclass(frozen=True)
class PassRow:
    """One pass of the pipeline on one module: places rewritten, and the step before and after."""

    name: str
    fired: int
    before: Work
    after: Work
    error: str | None


@dataclass
class Counts:
    """One module of the step.

    `images` maps numbers of steps to the FLOPs of an image, (before, after); `stages` each stage to those of computing
    it once.
    """

    module: str
    before: Work
    after: Work
    passes: list[PassRow]
    stages: dict[str, float] = field(default_factory=dict)
    images: dict[int, tuple[float, float]] = field(default_factory=dict)
    asides: dict[str, int] = field(default_factory=dict)


def count(
    x: Any, run: Callable[[int, int], Any], pipeline: Sequence[Pass] | str | None = None, steps: Sequence[int] = STEPS
) -> list[Counts]:
    """Compile a pipeline or module and count.

    Parameters
    ----------
    run : of a seed and a number of steps: one request.
    steps : numbers of steps of the images to count.
    """
    graphopt.compile(x, target="eager", pipeline=pipeline)
    for seed in range(2):  # the first run finds what holds from step to step, the second runs what was made of it
        run(seed, _PROBES[0])
    done = []
    for seed, number in enumerate(_PROBES, start=2):
        forget(x)
        before = graphopt.report(x)
        run(seed, number)
        done.append(_computed(before, graphopt.report(x)))
    return [_counts(entry, done, steps) for entry in of_step(graphopt.report(x))]


def of_step(report: Report) -> list[ModuleReport]:
    """The modules that run once or more per step."""
    return [entry for entry in report.modules if entry.variants and not entry.name.startswith(_NOT_STEP)]


def forget(x: Any) -> None:
    """Drop what stages keep, so that the next request finds neither its prompt nor its schedule computed."""
    modules = [x] if isinstance(x, torch.nn.Module) else list(x.components.values())
    for module in modules:
        for variant in getattr(getattr(module, "_compiled_call_impl", None), "variants", ()):
            variant.forget()


@dataclass(frozen=True)
class _Run:
    """Of one module and one request: its calls, those it served itself, and how often each stage was computed."""

    calls: int
    aside: int
    stages: Counter[str]


def _computed(before: Report, after: Report) -> dict[str, _Run]:
    """What happened between two reports."""
    found = {}
    for was, now in zip(before.modules, after.modules, strict=True):
        if now.variants and len(was.variants) == len(now.variants):
            calls = now.calls - was.calls
            aside = sum(now.asides.values()) - sum(was.asides.values())
            pairs = zip(was.variants[0].stages, now.variants[0].stages, strict=True)
            times = Counter({new.name: new.misses - old.misses for old, new in pairs})
            times["step"] = calls - aside
            found[now.name] = _Run(calls, aside, times)
    return found


def _counts(entry: ModuleReport, done: list[dict[str, _Run]], steps: Sequence[int]) -> Counts:
    variant = entry.variants[0]
    step = next(stage for stage in variant.stages if stage.name == "step")
    before = Work(variant.captured_nodes, variant.captured_flops, variant.captured_bytes, variant.weight_bytes)
    after = Work(step.nodes, step.flops, step.bytes, step.weight_bytes)
    counts = Counts(entry.name, before, after, _rows(variant), asides=entry.asides)
    counts.stages = {stage.name: stage.flops for stage in variant.stages}
    few, many = (run[entry.name] for run in done)
    for number in steps:
        total = _line(few.aside, many.aside, number) * before.flops
        for name in counts.stages:
            if name != "weights":  # once for all images
                total += _line(few.stages[name], many.stages[name], number) * counts.stages[name]
        counts.images[number] = (before.flops * _line(few.calls, many.calls, number), total)
    return counts


def _line(few: int, many: int, steps: int) -> float:
    """What happens a fixed number of times per image and another number per step, at any number of steps."""
    slope = (many - few) / (_PROBES[1] - _PROBES[0])
    return few + slope * (steps - _PROBES[0])


def _rows(variant: VariantReport) -> list[PassRow]:
    rows = []
    for record in variant.passes:
        before, after = (Work(*entry) for entry in zip(record.nodes, record.flops, record.bytes, strict=True))
        rows.append(PassRow(record.name, record.fired, before, after, record.error))
    return rows


def of_pipeline(entry: DiffusersPipeline, pipeline: Sequence[Pass] | str | None = None) -> list[Counts]:
    """Count a diffusers pipeline."""
    pipe = entry.make()
    return count(pipe, lambda seed, steps: entry.call(pipe, seed, steps), pipeline)


def of_denoiser(entry: Denoiser, pipeline: Sequence[Pass] | str | None = None) -> list[Counts]:
    """Count a bare module, called as in a sampling loop."""
    module = entry.make()

    @torch.no_grad()
    def run(seed: int, steps: int) -> None:
        for number in range(steps):
            module(**entry.call(number))

    return count(module, run, pipeline)


def markdown(title: str, counts: Sequence[Counts]) -> str:
    """The tables of one pipeline."""
    lines = [f"## {title}", ""]
    for entry in counts:
        before, after = entry.before, entry.after
        lines += [
            f"### {entry.module}, one call", "",
            "| | nodes | MFLOP | MB moved | MB of weights read |", "|---|---|---|---|---|",
            f"| before | {_work(before)} |", f"| after | {_work(after)} |",
            f"| saved | {' | '.join(starmap(_saved, zip(astuple(before), astuple(after), strict=True)))} |", "",
            "| pass | fired | nodes | MFLOP | MB moved | FLOPs saved | bytes saved |", "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [_row(row, before) for row in entry.passes]
        lines.append("")
        lines += [f"- left to the module, {times} times: {reason}" for reason, times in entry.asides.items()]
    return "\n".join([*lines, *_images(counts), ""])


def _work(work: Work) -> str:
    return " | ".join([str(work.nodes), *(f"{value / 1e6:.1f}" for value in astuple(work)[1:])])


def _row(row: PassRow, whole: Work) -> str:
    """One pass; its savings are shares of the step as captured."""
    was, now = row.before, row.after
    return (
        f"| {row.name}{' (rolled back)' if row.error else ''} | {row.fired} | {was.nodes} → {now.nodes} "
        f"| {was.flops / 1e6:.1f} → {now.flops / 1e6:.1f} | {was.bytes / 1e6:.1f} → {now.bytes / 1e6:.1f} "
        f"| {_saved(was.flops, now.flops, whole.flops)} | {_saved(was.bytes, now.bytes, whole.bytes)} |"
    )


def _images(counts: Sequence[Counts]) -> list[str]:
    """FLOPs of whole images, over all modules of the step."""
    lines = ["| steps per image | GFLOP before | GFLOP after | saved |", "|---|---|---|---|"]
    for number in counts[0].images:
        before, after = (sum(entry.images[number][k] for entry in counts) for k in (0, 1))
        lines.append(f"| {number} | {before / 1e9:.2f} | {after / 1e9:.2f} | {_saved(before, after)} |")
    return lines


def _saved(before: float, after: float, whole: float | None = None) -> str:
    """A share in per cent of `whole`, of `before` when left out."""
    whole = before if whole is None else whole
    return f"{(before - after) / whole * 100:.2f} %" if whole else "–"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=None, help="diffusers pipelines and bare configurations by name")
    parser.add_argument("--pipeline", default=None, help="name of a pipeline of passes; the exact one by default")
    parser.add_argument("--tiny", action="store_true", help="small diffusers pipelines, to try the script out")
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.tiny else 2)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    pipelines = diffusers_pipelines(TINY if options.tiny else FULL)
    bare = {f"{name}, module alone": entry for name, entry in denoisers().items()}
    results = {}
    for name in options.models or [*pipelines, *bare]:
        if name not in pipelines and name not in bare:
            parser.error(f"unknown model '{name}'; known are {', '.join([*pipelines, *bare])}")
        found = (
            of_pipeline(pipelines[name], options.pipeline) if name in pipelines
            else of_denoiser(bare[name], options.pipeline)
        )  # fmt: skip
        results[name] = [asdict(entry) for entry in found]
        print(markdown(name, found), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
