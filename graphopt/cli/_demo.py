"""What `graphopt demo` does, once torch may be imported."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

import graphopt
from graphopt.cli._app import errors, told
from graphopt.cli._grid import Column, amplified, grid
from graphopt.cli._load import device_of, load
from graphopt.cli._measure import Comparison, Difference, Sampled, Sampler, Spread, in_turns, per_image, per_step
from graphopt.cli._show import remark, show_modules, table
from graphopt.debug.figures import duration
from graphopt.energy import Choice, best_meter
from graphopt.ir.rewrite import Pass
from graphopt.runtime.report import Report
from graphopt.targets import Target


@dataclass
class Result:
    """Everything one pipeline's comparison gave."""

    name: str
    kind: str
    folder: Path
    device: str
    original: Sampled
    compiled: Sampled
    original_warm_up: float
    compiled_warm_up: float
    difference: Difference
    factor: int
    energy: Choice
    report: Report
    load: float  # others' programs that wanted to run when the comparison began, per processor

    @property
    def building(self) -> float:
        """Seconds of capture, passes and code generation, of all modules and variants."""
        return sum(variant.seconds for module in self.report.modules for variant in module.variants)


def compare(
    name: str, captions: Sequence[str], folder: Path, settings: dict[str, Any], watts: float | None,
    target: str | Target | tuple[Target, ...], passes: Sequence[Pass] | None,
) -> Result:  # fmt: skip
    """Sample `captions` with the bundled pipeline and with its compiled copy; save the pictures in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    load_before = os.getloadavg()[0] / (os.cpu_count() or 1)
    sizes = [min(settings["batch"], len(captions) - k) for k in range(0, len(captions), settings["batch"])]
    with _phases(name, 2 * settings["steps"] * len(sizes)) as (say, advance):
        say("loading")
        arguments = {"num_inference_steps": settings["steps"], "guidance_scale": settings["guidance_scale"]}
        original, compiled = (Sampler(load(name), arguments, advance) for _ in range(2))
        device = device_of(original.pipe)
        energy = best_meter(device, watts_per_core=watts)
        if energy.meter.measured:
            say("power at rest")
            energy.meter.measure_idle()
        say("first runs of the original")
        original_warm_up = original.warm_up(sizes)
        say("compiling, first runs of the compiled")
        graphopt.compile(compiled.pipe, target=target, pipeline=passes)
        compiled_warm_up = compiled.warm_up(sizes)
        ours, theirs = in_turns(
            original, compiled, captions, settings["seed"], settings["batch"], energy.meter,
            lambda turn, which: say(f"batch {turn + 1} of {len(sizes)}, {which}"),
        )  # fmt: skip
    before, after = ours.stack, theirs.stack
    apart, factor = amplified(before, after)
    difference = Difference.of(before, after)
    steps = f"{settings['steps']} steps, guidance {settings['guidance_scale']:g}, seeds from {settings['seed']}"
    equal = "all pixels are equal" if not difference.largest else (
        f"at most {difference.largest} of 255 grey levels apart; shown {factor} times as bright"
    )  # fmt: skip
    pair = [Column(before, "original"), Column(after, "compiled")]
    for file, shown, title in (
        ("original", [Column(before)], f"{name}, original: {steps}"),
        ("compiled", [Column(after)], f"{name}, compiled by graphopt: {steps}"),
        ("difference", [Column(apart, smooth=False)], f"{name}, |original - compiled|: {equal}"),
        ("side_by_side", pair, f"{name}: {steps}; {equal.split(';')[0]}"),
    ):  # fmt: skip
        grid(shown, captions, title).save(folder / f"{file}.png")
    return Result(name, type(original.pipe).__name__, folder, device, ours, theirs, original_warm_up, compiled_warm_up,
                  difference, factor, energy, graphopt.report(compiled.pipe), load_before)  # fmt: skip


@contextmanager
def _phases(name: str, steps: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """What to call at each phase and at each step.

    On stderr there is a line when a phase begins, one for what is compiled in it, and one when it ends; on a terminal
    also a bar.
    """
    console = errors()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    begun: list[float] = []

    def ends() -> None:
        if begun:
            console.print(Text(f"  took {duration(time.perf_counter() - begun.pop())}"))

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=steps)

        def say(text: str) -> None:
            ends()
            console.print(Text(f"{name}: {text}"))
            progress.update(task, description=f"{name}: {text}")
            begun.append(time.perf_counter())

        with told(lambda line: console.print(Text(f"  {line}"))):
            yield say, lambda: progress.advance(task)
        ends()


def show(console: Console, result: Result) -> None:
    """The comparison as tables."""
    images = sum(result.original.sizes)
    console.rule(f"[bold]{result.name}[/] ({result.kind}, {images} images on {result.device})", align="left")
    rows = table("", "", "original", "compiled", "original / compiled")
    image, step = per_image(result.original, result.compiled), per_step(result.original, result.compiled)
    rows.add_row("time per image", *_cells(image))
    if step:
        rows.add_row("time per step of a batch", *_cells(step))
    ours, theirs = result.original.joules_per_image, result.compiled.joules_per_image
    word = "measured" if result.energy.meter.measured else "estimated"
    ratio = f"{ours / theirs:.3f}" if theirs else ""
    rows.add_row(f"energy per image\n[dim]{word}[/]", f"{ours:.3g} J", f"{theirs:.3g} J", ratio)
    above = result.original.above_idle_per_image, result.compiled.above_idle_per_image
    if above[0] and above[1]:
        rows.add_row("  above rest", f"{above[0]:.3g} J", f"{above[1]:.3g} J", f"{above[0] / above[1]:.3f}")
    rows.add_row(
        "warm-up\n[dim]not in the above[/]", duration(result.original_warm_up), duration(result.compiled_warm_up), ""
    )
    console.print(rows)
    batches = len(result.original.sizes)
    remark(
        console,
        f"[dim]Times: median and range of {batches} batch{'es' * (batches > 1)}, for steps the middle 80 %. "
        "Ratios: batch against its twin; above 1 compiled is faster.[/]",
    )
    remark(console, f"[dim]Energy: {result.energy.meter.source}.[/]")
    if result.load > 0.5:
        remark(
            console,
            f"[yellow]Other programs kept this machine busy (load {result.load:.1f} per processor at the start): "
            "times are unsteady; repeat on a quiet machine.[/]",
        )
    for name, reason in result.energy.unavailable.items():
        remark(console, Text(f"No {name} counter: {reason.splitlines()[0]}.", style="dim"))
    remark(
        console,
        f"Compiling took {duration(result.building)} (capture, passes, code). The rest of the warm-up is first calls, "
        "which are checked against the original's, in values and (target auto) in time.",
    )
    apart = result.difference
    remark(console, "Images: [bold green]all pixels are equal[/]" if not apart.largest else
        f"Images: the largest difference of a pixel is [bold]{apart.largest}[/] of 255 grey levels; "
        f"{apart.count} of {apart.values} values differ"
    )  # fmt: skip
    remark(console, Text(f"Pictures: {result.folder}/{{original,compiled,difference,side_by_side}}.png\n"))
    show_modules(console, result.report, full=False)
    console.print()


def _cells(found: Comparison) -> tuple[str, str, str]:
    def cell(spread: Spread) -> str:
        low, high = duration(spread.low).split(), duration(spread.high).split()
        span = f"{low[0]}{f' {low[1]}' if low[1] != high[1] else ''} – {' '.join(high)}"
        return f"{duration(spread.median)}\n[dim]{span}[/]" if spread.count > 1 else duration(spread.median)

    ratio = found.ratio
    style = "green" if ratio.low > 1 else "red" if ratio.high < 1 else "yellow"
    spread = f"\n[dim]{ratio.low:.3f} – {ratio.high:.3f}[/]" if ratio.count > 1 else ""
    return cell(found.original), cell(found.compiled), f"[{style}]{ratio.median:.3f}[/]{spread}"


def as_dict(settings: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """``report.json``; seconds, joules, grey levels of 0 to 255."""
    return {
        "graphopt": graphopt.__version__,
        "torch": torch.__version__,
        "processor": {"architecture": platform.machine(), "threads": torch.get_num_threads()},
        "settings": settings,
        "pipelines": [_pipeline(result) for result in results],
    }


def _pipeline(result: Result) -> dict[str, Any]:
    step, image = per_step(result.original, result.compiled), per_image(result.original, result.compiled)
    choice, apart = result.energy, result.difference
    return {
        "name": result.name,
        "pipeline": result.kind,
        "device": result.device,
        "images": sum(result.original.sizes),
        "folder": str(result.folder),
        "seconds_per_image": asdict(image),
        "seconds_per_step": asdict(step) if step else None,
        "batch_seconds": {"original": result.original.batch_seconds, "compiled": result.compiled.batch_seconds},
        "warm_up_seconds": {"original": result.original_warm_up, "compiled": result.compiled_warm_up},
        "compile_seconds": result.building,
        "difference": {
            "largest_grey_levels": apart.largest,
            "mean_grey_levels": apart.mean,
            "values_that_differ": apart.count,
            "values": apart.values,
            "picture_factor": result.factor,
        },
        "load_before": result.load,
        "energy": {
            "joules_per_image": {
                "original": result.original.joules_per_image,
                "compiled": result.compiled.joules_per_image,
            },
            "joules_per_image_above_idle": {
                "original": result.original.above_idle_per_image,
                "compiled": result.compiled.above_idle_per_image,
            },
            "measured": choice.meter.measured,
            "source": choice.meter.source,
            "unavailable": choice.unavailable,
        },
        "report": result.report.to_dict(),
    }
