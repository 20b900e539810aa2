"""Memory: the original, compiled for each target, and compiled with weights evicted that no step reads.

    python -m benchmarks.memory

Every figure is from a fresh process that makes the model, runs two whole schedules (compiling in the first) and then
times the steps of a third. Resident memory is Linux's VmRSS, at the peak VmHWM, less what the process took before it
made the model, when all libraries were loaded; the part that is pages of files can be dropped by the kernel at any
time. Peaks are of the first schedule, with all that compiling takes, and of the two after it. Graphs and code are those
that a process before has kept, as from the second time on that a model is used; ``--cold`` compiles anew.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch

import graphopt
from benchmarks.harness import in_a_process
from benchmarks.models import Denoiser, _random, _steps, denoisers

WAYS = ("original", "eager", "eager, evicted", "tvm", "tvm, evicted")


def models() -> dict[str, Denoiser]:
    """Two public configurations, and PixArt's at a quarter of its width and half its depth."""
    known = denoisers()
    pixart = Denoiser(
        "pixart-like",
        _random(
            diffusers.PixArtTransformer2DModel,
            num_attention_heads=8,
            attention_head_dim=36,
            num_layers=14,
            sample_size=32,
            caption_channels=4096,
            cross_attention_dim=288,
            use_additional_conditions=False,
        ),
        _steps(
            (2, 4, 32, 32),
            "timestep",
            "hidden_states",
            encoder_hidden_states=torch.randn(2, 32, 4096, generator=torch.Generator().manual_seed(1)),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ),
    )
    return {"sd-like u-net": known["sd-like u-net"], "dit-s/2": known["dit-s/2"], "pixart-like": pixart}


def resident() -> dict[str, int]:
    """Bytes in memory, and those of them that are private memory rather than pages of files."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    keys = {"all": "VmRSS", "private": "RssAnon", "peak": "VmHWM"}
    return {name: int(lines[key].split()[0]) * 1024 for name, key in keys.items()}


def measure(name: str, way: str, steps: int) -> dict[str, Any]:
    """One figure, in this process."""
    model = models()[name]
    for library in ("graphopt.compile", "graphopt.runtime.shelf", "graphopt.targets.tvm.build", "sqlite3"):
        importlib.import_module(library)  # code of Python and of TVM is no part of what is measured, as torch's is not
    call, before = model.call, resident()
    module = model.make()
    if way != "original":
        graphopt.compile(module, target=way.partition(",")[0], evict="file" if way.endswith("evicted") else None)
    times, compiling = list[float](), 0
    with torch.no_grad():
        for run in range(3):
            if run == 1:
                compiling = resident()["peak"]
                Path("/proc/self/clear_refs").write_text("5")  # the peak is that of what follows
            for step in range(steps):
                given = call(step)
                start = time.perf_counter()
                module(**given)
                if run == 2:
                    times.append(time.perf_counter() - start)
    after = resident()
    report = graphopt.report(module).modules[0].eviction if way != "original" else None
    return {
        "model": name,
        "way": way,
        **{key: after[key] - before["all" if key == "peak" else key] for key in after},
        "compiling": compiling - before["all"],
        "weights": sum(value.nbytes for value in module.state_dict().values()),
        "seconds": statistics.median(times),
        "eviction": str(report) if report else "",
    }


def main() -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(models()), choices=list(models()))
    parser.add_argument("--steps", type=int, default=8, help="of a schedule")
    parser.add_argument("--cold", action="store_true", help="with nothing kept of earlier processes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WAY"), help="measure in this process")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.one:
        name, way = options.one
        print(json.dumps(measure(name, way, options.steps)))
        return 0
    rows = []
    print("| | weights | resident | of which private | peak of steps | peak with compiling | step |")
    print(f"|{'---|' * 7}")
    for name in options.models:
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                for _ in range(1 if options.cold or way == "original" else 2):
                    arguments = "--steps", str(options.steps), "--one", name, way
                    row = in_a_process("memory", *arguments, GRAPHOPT_CACHE_DIR=folder)
            rows.append(row)
            sizes = " | ".join(f"{row[key] / 1e6:.0f} MB" for key in ("weights", "all", "private", "peak", "compiling"))
            print(f"| {name}, {way} | {sizes} | {row['seconds'] * 1e3:.0f} ms |", flush=True)
    for row in rows:
        if row["eviction"]:
            print(f"\n{row['model']}: {row['eviction']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
