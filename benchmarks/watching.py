"""What graphopt's watching costs: per call of a compiled module, and once to record a sampling run.

    python -m benchmarks.watching                    about three minutes
    python -m benchmarks.watching --tiny             small tensors only: a minute

(a) A compiled call does more than run its kernel: it takes the call apart, checks that the module is as it was, looks
for what is kept, and puts the result together. Calls of a denoiser are noted while its pipeline samples, then replayed
through the compiled module, with everything kept. Overhead is the processor time of the calling thread in the call,
less that in the step's kernel within that very call (other programs' turns do not count); a second replay, with clocks
in the parts of the call, shows where it goes. (Clocks take time as well, so that the parts add up to more.) The first
call of each run, which digests weights, is shown by itself.

(b) The first image of a freshly compiled pipeline, less the seconds of compiling and an image of the original: what it
costs to observe the loop. (It holds one more call of each module, whose results are compared.)

Exit status 1 when a call of a step of about 1,000 nodes has more than a millisecond of overhead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch

import graphopt
from benchmarks.pipelines import FULL, TINY, DiffusersPipeline, diffusers_pipelines
from benchmarks.redundancy import of_step
from graphopt.capture.calls import CallTaker
from graphopt.capture.guards import ModuleGuard
from graphopt.runtime import installed
from graphopt.runtime.memo import Memo
from graphopt.runtime.trajectory import Trajectories
from graphopt.runtime.weights import Weights

BOUND = 1e-3  # seconds of overhead of a call of a step of about 1,000 nodes
_STEPS = 8
# What a call does besides its kernel, and where; of functions that call one another each has its own time.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "taking the call apart": [(CallTaker, "take")],
    "guards: state outside": [(installed, "outside"), (installed, "call_state")],
    "guards: the module": [(ModuleGuard, "holds")],
    "guards: weights fit": [(Weights, "fit")],
    "reading weights": [(Weights, "read")],
    "trajectory and epoch": [(Trajectories, "step")],
    "keys and digests": [(installed, "key_part"), (Memo, "get")],
    "rebuilding the output": [(installed, "tree_unflatten")],
}

Noted = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Overhead:
    """Median seconds of a compiled call and of its kernel, and processor seconds of what else the call does.

    `overhead` is that of calls within a run, `first` that of the first one, `parts` how the former is made up.
    """

    name: str
    nodes: int
    step_nodes: int
    submodules: int
    weights: int
    call: float
    kernel: float
    overhead: float
    first: float
    parts: dict[str, float]


def noted(entry: DiffusersPipeline) -> tuple[torch.nn.Module, list[Noted]]:
    """The denoiser of a diffusers pipeline, and its calls in one image."""
    pipe, calls = entry.make(), list[Noted]()
    module: torch.nn.Module = getattr(pipe, "unet", None) or pipe.transformer

    def note(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return module._call_impl(*args, **kwargs)

    module._compiled_call_impl = note
    entry.call(pipe, 0, _STEPS)
    module._compiled_call_impl = None
    return module, calls


class _Clocks:
    """Own processor time of named functions that call one another, and the time that the kernel takes."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.kernel = 0.0
        self._inner = [0.0]

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begin, start = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time() - start
                self.spent[name] = self.spent.get(name, 0.0) + spent - self._inner.pop()
                self._inner[-1] += spent
                if name == "kernel":
                    self.kernel = time.perf_counter() - begin

        return timed


@contextlib.contextmanager
def _clocked(variant: Any, clocks: _Clocks, parts: bool) -> Iterator[None]:
    """Clocks around the kernel of the step and, when asked for, around all `PARTS`."""
    kernels = variant.built.kernels
    kernel = kernels[-1]
    with ExitStack() as stack:
        kernels[-1] = clocks.around("kernel", kernel)
        stack.callback(kernels.__setitem__, -1, kernel)
        for name, places in PARTS.items() if parts else ():
            for owner, attribute in places:
                clocked = clocks.around(name, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, clocked))
        yield


def overhead(name: str, module: torch.nn.Module, calls: list[Noted], seconds: float) -> Overhead:
    """Replay noted calls for about `seconds`."""
    graphopt.compile(module, target="eager", strict=True)
    with torch.no_grad():
        for _ in range(2):
            for args, kwargs in calls:
                module(*args, **kwargs)
    entry = module._compiled_call_impl
    assert isinstance(entry, installed.Installed)
    variant = entry.variants[0]
    plain, split = (_replay(module, calls, variant, seconds / 2, parts) for parts in (False, True))
    steady = [call for call in plain if call.number]
    inside = [call.parts for call in split if call.number]
    report = of_step(graphopt.report(module))[0].variants[0]
    return Overhead(
        name=name,
        nodes=report.captured_nodes,
        step_nodes=next(stage.nodes for stage in report.stages if stage.name == "step"),
        submodules=sum(1 for _ in module.modules()),
        weights=sum(1 for _ in module.parameters()),
        call=statistics.median(call.call for call in steady),
        kernel=statistics.median(call.kernel for call in steady),
        overhead=statistics.median(call.overhead for call in steady),
        first=statistics.median(call.overhead for call in plain if not call.number),
        parts={part: statistics.median(call.get(part, 0.0) for call in inside) for part in [*PARTS, "the rest"]},
    )


@dataclass(frozen=True)
class _Replayed:
    """One call: its place in the run, its seconds, those of its kernel, and processor seconds of all else, by part."""

    number: int
    call: float
    kernel: float
    overhead: float
    parts: dict[str, float]


def _replay(module: torch.nn.Module, calls: list[Noted], variant: Any, seconds: float, parts: bool) -> list[_Replayed]:
    clocks, until, found = _Clocks(), time.perf_counter() + seconds, list[_Replayed]()
    with torch.no_grad(), _clocked(variant, clocks, parts):
        while time.perf_counter() < until:
            for number, (args, kwargs) in enumerate(calls):
                clocks.spent.clear()
                begin, start = time.perf_counter(), time.thread_time()
                module(*args, **kwargs)
                own, call = time.thread_time() - start, time.perf_counter() - begin
                spent = dict(clocks.spent)
                overhead = own - spent.pop("kernel")
                spent["the rest"] = overhead - sum(spent.values())
                found.append(_Replayed(number, call, clocks.kernel, overhead, spent))
    return found


def recording(entry: DiffusersPipeline, steps: int = _STEPS) -> dict[str, float]:
    """Seconds of an image of the original, of the first and a later compiled image, of compiling, and what is left."""

    def image(pipe: Any, seed: int) -> float:
        start = time.perf_counter()
        entry.call(pipe, seed, steps)
        return time.perf_counter() - start

    original, pipe = entry.make(), graphopt.compile(entry.make(), target="eager")
    image(original, 0)
    before, first = image(original, 1), image(pipe, 1)
    compiling = sum(variant.seconds for module in graphopt.report(pipe).modules for variant in module.variants)
    later = image(pipe, 2)
    return {
        "original": before, "first": first, "compiling": compiling, "later": later,
        "recording": first - compiling - before,
    }  # fmt: skip


def markdown(found: list[Overhead]) -> str:
    """Both tables of (a)."""
    lines = [
        "| | nodes captured → step | submodules | weights | call, ms | kernel, ms | overhead, ms | of the first call |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        lines.append(
            f"| {row.name} | {row.nodes} → {row.step_nodes} | {row.submodules} | {row.weights} | {row.call * 1e3:.3f} "
            f"| {row.kernel * 1e3:.3f} | {row.overhead * 1e3:.3f} | {row.first * 1e3:.3f} |"
        )
    lines += ["", "| ms | " + " | ".join(row.name for row in found) + " |", "|---|" + "---|" * len(found)]
    for part in found[0].parts:
        lines.append(f"| {part} | " + " | ".join(f"{row.parts[part] * 1e3:.3f}" for row in found) + " |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Print the tables; 1 when the overhead is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["flux-like", "sd-like"], help="diffusers pipelines by name")
    parser.add_argument("--seconds", type=float, default=20.0, help="of replaying each case")
    parser.add_argument("--tiny", action="store_true", help="small tensors only, and no recording")
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    options = parser.parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    # About 1,000 nodes, whatever the width.
    scales = {"small tensors": replace(TINY, layers=2, blocks=24)}
    if not options.tiny:
        scales["real sizes"] = replace(FULL, layers=2, blocks=24)
    found = []
    for size, scale in scales.items():
        torch.set_num_threads(1 if scale.heads == TINY.heads else 2)
        for name in options.models:
            module, calls = noted(diffusers_pipelines(scale)[name])
            found.append(overhead(f"{name}, {size}", module, calls, options.seconds))
    print(markdown(found))
    recorded = {}
    for name in () if options.tiny else options.models:
        recorded[name] = recording(diffusers_pipelines(FULL)[name])
        print(f"{name}: " + ", ".join(f"{key} {value:.3f} s" for key, value in recorded[name].items()), flush=True)
    if options.json:
        results = {"overhead": [asdict(row) for row in found], "recording": recorded}
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    slow = [row.name for row in found if row.overhead > BOUND * max(1.0, row.nodes / 1000)]
    print("verdict: " + (f"FAILED: over a millisecond: {'; '.join(slow)}" if slow else "under a millisecond"))
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
