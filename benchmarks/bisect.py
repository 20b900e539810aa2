"""Whether a bisection names the pass and the node that are wrong, and in how many runs.

    python -m benchmarks.bisect                     sixteen faults in a tiny pipeline, four in emoji-unet (half an hour)
    python -m benchmarks.bisect --faults dropped_bias wrong_gelu --seeds 0 1 2

Each fault of benchmarks/faults.py is planted in the middle of the exact pipeline, as a pass that is right wherever it
fires but in one place, which is drawn. The threshold is ten times the distance of the final latents from the original's
when the same pass makes no mistake. Runs are compiled ones; the bound is 3 (all
passes, none, all but what was found) + ceil(log2 passes) + ceil(log2 rewrites of the pass).

Exit status 1 when a fault is not found, or takes more runs than the bound.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import graphopt
from benchmarks.faults import FAULTS, Fault, Rig, planted
from benchmarks.pipelines import Scale, diffusers_pipelines
from graphopt.debug.bisect import bisect
from graphopt.debug.metrics import METRICS
from graphopt.ir.rewrite import pass_name

_STEPS = 3
_SCALE = Scale(channels=(64, 64), heads=1, blocks=3, side=8, unet_side=8, prompt=16)
_TRAINED = ("dropped_bias", "wrong_gelu", "wrong_softmax_axis", "wrong_padding")  # in emoji-unet as well


@dataclass(frozen=True)
class Found:
    """One fault and what the bisection said of it."""

    pipeline: str
    fault: str
    planted: str
    places: int
    right: float  # distance from the original without the mistake
    wrong: float | None  # and with it
    found: str
    doubts: tuple[str, ...]
    runs: int
    bound: int
    seconds: float

    @property
    def good(self) -> bool:
        return self.found == f"{self.fault} at {self.planted}" and self.runs <= self.bound and not self.doubts


def search(name: str, rig: Rig, kind: type[Fault], seed: int) -> Found:
    """Plant a fault and look for it."""
    exact, metric = graphopt.pipelines.exact, METRICS["latent"]
    plant = planted(kind, exact, len(exact) // 2, rig, seed)
    right, before, start = metric.measure(rig(None, ()), plant.right), rig.runs, time.perf_counter()
    found = bisect(rig, plant.passes, metric, 10 * max(right, 1e-8))
    fault, said = found.fault, "nothing"
    if fault and fault.rewrite and fault.attempt:
        said = f"{fault.pass_.name} at {fault.attempt.name}:{fault.rewrite.place.node}"
    of = fault.of if fault else plant.places
    bound = 3 + math.ceil(math.log2(len(plant.passes))) + math.ceil(math.log2(max(1, of)))
    doubts = (*found.doubts, *(fault.doubts if fault else ()))
    return Found(name, pass_name(kind), f"{plant.module}:{plant.node}", plant.places, right, found.all.value, said,
                 doubts, rig.runs - before, bound, time.perf_counter() - start)  # fmt: skip


def rig_of(name: str) -> Rig:
    """The final latents of a pipeline, tiny where it is not trained."""
    entry = diffusers_pipelines(_SCALE)[name]
    pipe = entry.make()
    return Rig(pipe, lambda: entry.call(pipe, 0, _STEPS, output_type="latent"))


def main() -> int:
    """Print a row per fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [pass_name(kind) for kind in FAULTS]
    parser.add_argument("--faults", nargs="+", choices=names, default=names)
    parser.add_argument("--pipelines", nargs="+", default=["sd-like", "emoji-unet"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    results = []
    print("| pipeline | fault | wrong place | of | found | off, right → wrong | runs | bound | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.pipelines:
        rig = rig_of(name)
        for kind in FAULTS:
            if pass_name(kind) not in options.faults or (name == "emoji-unet" and pass_name(kind) not in _TRAINED):
                continue
            for seed in options.seeds:
                found = search(name, rig, kind, seed)
                results.append(found)
                wrong = "none" if found.wrong is None else f"{found.wrong:.1e}"
                verdict = "yes" if found.good else f"no: {found.found}; {'; '.join(found.doubts)}"
                print(f"| {name} | {found.fault} | {found.planted} | {found.places} | {verdict} | {found.right:.1e} → "
                      f"{wrong} | {found.runs} | {found.bound} | {found.seconds:.0f} |", flush=True)  # fmt: skip
    good = sum(found.good for found in results)
    print(f"\n{good} of {len(results)} faults found, by pass and node, within the bound of runs.")
    if options.json:
        options.json.write_text(json.dumps([asdict(found) for found in results], indent=2) + "\n", encoding="utf-8")
    return 0 if good == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
