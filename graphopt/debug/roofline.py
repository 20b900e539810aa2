"""The roofline of a step: what each kernel reaches, against what this machine can (Williams and others, 2009).

A kernel of f operations per byte can do no more than the lesser of the peak of operations and f times the bandwidth.
Bytes are those of its arguments: a kernel whose arguments are in a cache may lie above the line of main memory.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.debug.figures import scaled
from graphopt.debug.labels import label
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.targets.tvm.timing import KernelTime

_LEAST = 0.002  # share of the step below which a kernel is not drawn
_NAMED = 8  # kernels that are named: the slowest
FORMATS = (".svg", ".png", ".pdf")


def check_file(file: Path) -> None:
    """Raise UsageError where no picture can be written to a file of this name."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a roofline needs matplotlib", where="--roofline", hint="pip install 'graphopt[viz]'")
    if file.suffix not in FORMATS:
        raise UsageError(f"cannot draw a '{file.suffix}' file", where=str(file), hint=", ".join(FORMATS))
    if not file.parent.is_dir():
        raise UsageError(f"there is no folder {file.parent}", where="--roofline")


def roofline(
    kernels: Sequence[KernelTime], peaks: Mapping[str, float], bandwidths: Mapping[str, float], file: Path, title: str
) -> None:
    """Draw kernels under the lines of a machine; the area of a point is the kernel's share of the time.

    The slowest are named.

    Parameters
    ----------
    peaks : FLOP/s, by what is multiplied.
    bandwidths : bytes per second, by the name of the memory, the fastest first.
    file : see `check_file`.
    """
    figures: Any = importlib.import_module("matplotlib.figure")
    total = sum(entry.seconds for entry in kernels)
    drawn = [entry for entry in kernels if entry.flops and entry.seconds >= _LEAST * total]
    figure = figures.Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    points = {entry: (entry.flops / entry.bytes, entry.flops / entry.seconds) for entry in drawn}
    areas = {entry: 1500 * entry.seconds / total + 8 for entry in drawn}
    intensities = [intensity for intensity, _ in points.values()]
    slowest, peak = min(bandwidths.values()), max(peaks.values())
    left = min([0.5, *(0.5 * intensity for intensity in intensities)])
    right = max([4 * peak / slowest, *(2 * intensity for intensity in intensities)])
    for number, (name, bandwidth) in enumerate(bandwidths.items()):
        knee = peak / bandwidth
        shade = str(0.6 * number / len(bandwidths))
        axes.plot([left, knee], [left * bandwidth, peak], color=shade, linewidth=1)
        axes.text(1.1 * left, 1.1 * left * bandwidth, f"{name}, {scaled(bandwidth, 'B/s')}", color=shade, fontsize=8,
                  bbox={"color": "white", "alpha": 0.8, "pad": 1})  # fmt: skip
    for kind, reached in peaks.items():
        axes.plot([reached / max(bandwidths.values()), right], [reached, reached], color="black", linewidth=1)
        axes.annotate(f"products and sums of {kind} in registers, {scaled(reached, 'FLOP/s')}", (right, reached),
                      fontsize=8, ha="right", va="bottom")  # fmt: skip
    kinds = dict.fromkeys(_kind(entry) for entry in drawn)
    for number, kind in enumerate(kinds):
        some = [entry for entry in drawn if _kind(entry) == kind]
        share = sum(entry.seconds for entry in some) / total
        axes.scatter(
            *zip(*(points[entry] for entry in some), strict=True),
            [areas[entry] for entry in some],
            color=f"C{number}", alpha=0.6, label=f"{kind}, {share:.0%} of the time",
        )  # fmt: skip
    axes.set(xlabel="operations per byte of arguments", ylabel="operations per second", title=title, xlim=(left, right))
    axes.set_ylim(top=2 * peak)
    axes.grid(which="major", linewidth=0.3)
    axes.legend(loc="lower right", fontsize=8, markerscale=0.5)
    named = sorted(drawn, key=lambda entry: -entry.seconds)[:_NAMED]
    dots = [(points[entry], areas[entry]) for entry in drawn]
    label(figure, axes, [entry.name for entry in named], [points[entry] for entry in named], dots)
    figure.savefig(file, dpi=150)


def _kind(entry: KernelTime) -> str:
    return entry.name.rstrip("0123456789").rstrip("_")
