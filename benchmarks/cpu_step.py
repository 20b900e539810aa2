"""One step on the CPU: the original, graphopt on its eager and TVM targets, torch.compile and OpenVINO, side by side.

    python -m benchmarks.cpu_step                                     four models, without torch.compile
    python -m benchmarks.cpu_step --contenders original,tvm,torch.compile
    python -m benchmarks.cpu_step --dtype bfloat16
    python -m benchmarks.cpu_step --models sd-1.5 --rounds 5          5 copies of the weights: 24 GB of memory

Every contender has a copy of the module, computes in float32 (or `--dtype`) and gets the same inputs: new latents and a
timestep not seen before on every call; the prompt is that of one request. A round lets every contender, in random
order, make some calls in a row, of which the first is not timed: it waits for the other's threads and brings weights to
the caches, as the step before it would while sampling. A sample is the mean of the others.

graphopt computes what depends on the prompt alone once per request, as it does for users; torch.compile and OpenVINO
get the whole module and compute it at every step. ``--schedule N`` lets timesteps repeat after N calls, as from the
second image on: then what depends on the timestep alone is also kept. Operations per second are of those that a
contender performs (`graphopt.ir.cost`), as a share of what a kernel of nothing but multiply-adds within registers and
the first level of cache reaches on as many threads.

Outputs are compared with those of the original in float64, as the largest difference over the largest value. Exit
status 1 when one is off by more than 1e-5, in bfloat16 by more than one and a half times torch's own, or a contender
fails. What is not installed is left out, and said: ``pip install openvino``; torch.compile needs g++.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.util
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

import graphopt
from benchmarks.harness import Timing, interleave, paired
from benchmarks.models import Denoiser, denoisers, more_models
from graphopt.ir.stages import STAGES

MOST_OFF = 1e-5  # largest difference to float64, relative to the largest value
MODELS = ("dit-s/2", "sd-like u-net", "emoji-dit", "emoji-unet")
DEFAULT = ("original", "exact", "tvm", "openvino")
_MANY = 500_000_000  # parameters: of larger models, copies share the weights

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a call: positional ones, and those by keyword
Install = Callable[[torch.nn.Module, Arguments, int], None]  # a module, its first call, the number of threads
Run = Callable[[dict[str, Any]], torch.Tensor]
T = TypeVar("T")


# -- contenders ------------------------------------------------------------------------------------------------------


def _original(module: torch.nn.Module, example: Arguments, threads: int) -> None:
    """It stays as it is."""


def _graphopt(target: str) -> Install:
    def install(module: torch.nn.Module, example: Arguments, threads: int) -> None:
        graphopt.compile(module, target=target, inputs=example[1], strict=True)

    return install


def _torch_compile(mode: str | None) -> Install:
    def install(module: torch.nn.Module, example: Arguments, threads: int) -> None:
        import torch._inductor.config as config

        config.freezing, config.force_disable_caches = True, True
        module.compile(mode=mode, dynamic=False)

    return install


class Positional(torch.nn.Module):
    """A module as a function from the tensors among its arguments to those of its result, which OpenVINO converts.

    Attributes
    ----------
    result : how the module's result is made of tensors, from the first call on.
    """

    def __init__(self, module: torch.nn.Module, example: Arguments) -> None:
        super().__init__()
        self.module = module
        self.result: TreeSpec | None = None
        self.leaves, self.spec = tree_flatten(_cast(example, torch.float32))
        self.places = [place for place, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]
        self.rest = _without_tensors(self.leaves)

    def tensors(self, given: Arguments) -> tuple[torch.Tensor, ...]:
        """Those of a call like the first one, in float32 where they are floating-point."""
        leaves, spec = tree_flatten(_cast(given, torch.float32))
        if spec != self.spec or _without_tensors(leaves) != self.rest:
            raise ValueError(f"{type(self.module).__name__} was converted for calls with other arguments")
        return tuple(leaves[place].contiguous() for place in self.places)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves: list[Any] = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        found, self.result = tree_flatten(self.module(*args, **kwargs))
        return tuple(found)

    def rebuilt(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The module's result."""
        assert self.result is not None
        return tree_unflatten(tensors, self.result)


def _without_tensors(leaves: Sequence[Any]) -> list[Any]:
    return [torch.Tensor if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def _openvino(module: torch.nn.Module, example: Arguments, threads: int) -> None:
    openvino = importlib.import_module("openvino")
    hint = "f32" if next(module.parameters()).dtype == torch.float32 else "bf16"
    positional = Positional(module.float(), example).eval()  # inputs and results are NumPy's
    tensors = positional.tensors(example)
    model = openvino.convert_model(positional, example_input=tensors)
    if len(model.inputs) != len(tensors):
        raise ValueError(f"OpenVINO found {len(model.inputs)} inputs of {len(tensors)}")
    model.reshape({number: list(tensor.shape) for number, tensor in enumerate(tensors)})
    settings = {
        "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }  # fmt: skip
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()

    def call(*args: Any, **kwargs: Any) -> Any:
        arrays = [tensor.numpy() for tensor in positional.tensors((args, kwargs))]
        found = request.infer(arrays, share_inputs=True)
        return positional.rebuilt([torch.from_numpy(found[number]) for number in range(len(found))])

    module._compiled_call_impl = call


TARGETS = {"exact": "eager", "tvm": "tvm"}  # of contenders that graphopt compiles
CONTENDERS: dict[str, Install] = {
    "original": _original,
    **{name: _graphopt(target) for name, target in TARGETS.items()},
    "torch.compile": _torch_compile(None),
    "torch.compile max-autotune": _torch_compile("max-autotune"),
    "openvino": _openvino,
}
PEERS = ("openvino", "torch.compile", "torch.compile max-autotune", "exact")  # of tvm


def missing(contender: str) -> str | None:
    """Why a contender cannot run here, or None."""
    if contender == "openvino" and importlib.util.find_spec("openvino") is None:
        return "not installed: pip install openvino"
    if contender == "tvm" and importlib.util.find_spec("tvm") is None:
        return "not installed: pip install 'graphopt[tvm]'"
    if contender.startswith("torch.compile") and not (shutil.which("g++") or shutil.which("clang++")):
        return "no C++ compiler"
    return None


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]


def _run(module: torch.nn.Module) -> Run:
    return lambda call: _first(module(**call))


def _first(result: Any) -> torch.Tensor:
    """The one tensor of a result."""
    found: torch.Tensor = result if isinstance(result, torch.Tensor) else result[0]
    return found


# -- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What was measured of one model.

    Attributes
    ----------
    times : seconds of every round, by contender.
    compiling : seconds from the module to its first result.
    off : difference to float64.
    most_off : difference to float64 that is too large.
    unit : of differences, with a space before it.
    flops : of the step as a contender performs it; empty where no graphopt contender counted them.
    left_out : contenders that did not run, and why; `failed` those of them that should have.
    """

    times: dict[str, list[float]] = field(default_factory=dict)
    compiling: dict[str, float] = field(default_factory=dict)
    off: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    most_off: float = MOST_OFF
    failed: list[str] = field(default_factory=list)
    unit: str = ""

    @contextlib.contextmanager
    def attempt(self, contender: str) -> Iterator[None]:
        """Leaves a contender out that raises: it should not end the race of the others."""
        try:
            yield
        except Exception as error:
            self.left_out[contender] = reason(error)
            self.failed.append(contender)

    def complaints(self, name: str) -> list[str]:
        """What makes the exit status 1."""
        bad = [
            f"{name}, {contender}: off by {off:.2g}{self.unit}"
            for contender, off in self.off.items()
            if not off <= self.most_off
        ]
        return bad + [f"{name}, {contender}: {self.left_out[contender]}" for contender in self.failed]

    def against(self, contender: str, base: str) -> Timing | None:
        """A contender's time as a share of another's."""
        if contender not in self.times or base not in self.times:
            return None
        return paired(contender, self.times[contender], self.times[base])


def measure(
    denoiser: Denoiser, contenders: Sequence[str], rounds: int, *, threads: int, calls: int = 3, schedule: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Result:  # fmt: skip
    """Build the contenders one after the other, compare their outputs, and time them, right or wrong.

    Parameters
    ----------
    calls : of a contender in a row; the first is not timed.
    schedule : number of timesteps that repeat; 0 for a new one on every call.
    """
    result, runs = Result(), dict[str, Run]()
    module = denoiser.make().to(dtype)
    inputs = _inputs(denoiser, schedule, dtype)
    checked = (-1, -2)
    expected = _in_double(module, [inputs(number) for number in checked])
    for name in contenders:
        if absent := missing(name):
            result.left_out[name] = absent
            continue
        mine = _copy(module)
        run = _run(mine)
        with result.attempt(name), torch.no_grad():
            start = time.perf_counter()
            CONTENDERS[name](mine, ((), inputs(checked[0])), threads)
            run(inputs(checked[0]))
            result.compiling[name] = time.perf_counter() - start
            got = [run(inputs(number)) for number in checked]
            result.off[name] = max(_difference(ours, true) for ours, true in zip(got, expected, strict=True))
            _count(result, name, mine, schedule)
            runs[name] = run
    if dtype != torch.float32:
        with torch.no_grad():
            own = [_first(module(**inputs(number))) for number in checked]
        result.most_off = 1.5 * max(_difference(ours, true) for ours, true in zip(own, expected, strict=True))
    warm_up = max(1, -(-schedule // calls))
    timed = {name: _timed(run) for name, run in runs.items()}

    def turn(number: int) -> list[dict[str, Any]]:
        return [inputs(number * calls + place) for place in range(calls)]

    result.times = interleave(timed, turn, rounds=rounds, warm_up=warm_up)
    return result


def _timed(run: Run) -> Callable[[Sequence[dict[str, Any]]], float]:
    def seconds(turn: Sequence[dict[str, Any]]) -> float:
        time.sleep(0.02)  # threads of the contender before spin for a while
        run(turn[0])
        start = time.perf_counter()
        for given in turn[1:]:
            run(given)
        return (time.perf_counter() - start) / len(turn[1:])

    return seconds


def _cast(given: T, dtype: torch.dtype) -> T:
    """Arguments with all floating-point tensors of one type."""
    cast: T = tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, given)
    return cast


def _inputs(denoiser: Denoiser, schedule: int, dtype: torch.dtype = torch.float32) -> Callable[[int], dict[str, Any]]:
    """Calls by number, with timesteps that are new for a thousand calls, or repeat."""

    def make(number: int) -> dict[str, Any]:
        given = denoiser.call(number % 2**31)
        if "timestep" in given:
            place = number % (schedule or 1000)
            when, whole = (981 - place) % 1000, not given["timestep"].is_floating_point()  # downwards, as when sampling
            given["timestep"] = torch.full_like(given["timestep"], when if whole else when / 1000)
        return _cast(given, dtype) if dtype != torch.float32 else given

    return make


def _copy(module: torch.nn.Module) -> torch.nn.Module:
    """A module with weights of its own, or with the same ones if there are many of them."""
    weights = [*module.parameters(), *module.buffers()]
    shared = sum(weight.numel() for weight in weights) > _MANY
    return copy.deepcopy(module, {id(weight): weight for weight in weights} if shared else {})


def _in_double(module: torch.nn.Module, calls: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    double = copy.deepcopy(module).double()

    with torch.no_grad():
        return [_first(double(**_cast(call, torch.float64))) for call in calls]


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    off = ((got.double() - expected).abs().max() / expected.abs().max()).item()
    return off if math.isfinite(off) else math.inf


def _count(result: Result, name: str, module: torch.nn.Module, schedule: int) -> None:
    """FLOPs from the report of a compiled module; what it captured is what the others compute."""
    if name not in TARGETS:
        return
    variant = graphopt.report(module).modules[0].variants[0]
    at_each_step = {"common", "step"} if schedule else {*STAGES} - {"weights", "request"}
    result.flops[name] = float(sum(stage.flops for stage in variant.stages if stage.name in at_each_step))
    for other in CONTENDERS:
        if other not in TARGETS:
            result.flops.setdefault(other, float(variant.captured_flops))


def peak(threads: int, seconds: float = 1.0) -> float | None:
    """Operations per second of multiply-adds on operands in registers and in the first level of cache.

    The best of several runs on `threads` threads; None without TVM.
    """
    if importlib.util.find_spec("tvm") is None:
        return None
    import numpy as np

    from graphopt.targets.tvm.build import Call, Library
    from graphopt.targets.tvm.emit import Emitter, kernel
    from graphopt.targets.tvm.isa import detect
    from graphopt.targets.tvm.tile import tile

    isa = detect()
    rows, columns = isa.tile
    depth, repeats, tasks = 16384 // (4 * columns), 2000, 2 * threads

    def body(emitter: Emitter, buffers: Sequence[Any], task: Any) -> None:
        a, b, c = buffers
        with emitter.loop(repeats, "repeat"):
            sums = tile(
                emitter, rows, columns // isa.lanes, depth,
                lambda row, k: emitter.load(a, k * rows + row),
                lambda k, vector: emitter.load(b, k * columns + vector * isa.lanes, isa.lanes),
            )  # fmt: skip
            for row, vectors in enumerate(sums):
                for vector, value in enumerate(vectors):
                    emitter.store(c, (task * rows + row) * columns + vector * isa.lanes, value)

    library = Library(isa, [[Call(kernel("peak", isa, ["float32"] * 3, tasks, body), 0)]])
    operands = torch.randn(depth * rows), torch.randn(depth * columns), torch.empty(tasks * rows * columns)
    table = np.array([tensor.data_ptr() for tensor in operands], dtype=np.int64)
    work, best, end = 2.0 * rows * columns * depth * repeats * tasks, math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        library.run(0, table.ctypes.data)
        best = min(best, time.perf_counter() - start)
    return work / best


# -- showing ---------------------------------------------------------------------------------------------------------


def markdown(name: str, result: Result, peak_flops: float | None, threads: int, dtype: str) -> str:
    """The table of one model, and how the TVM target compares with its peers."""
    rounds = len(next(iter(result.times.values()), []))
    base = next(iter(result.times), "")
    lines = [
        f"### {name}: one step, {dtype}, {threads} threads, {rounds} rounds", "",
        f"| contender | ms | of {base} | 95 % interval | GFLOP/s | of the peak | seconds to compile | error |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for contender in result.times:
        timing = result.against(contender, base)
        assert timing is not None
        rate = result.flops[contender] / timing.seconds if contender in result.flops else None
        speed = f"{rate / 1e9:.0f}" if rate else "–"
        share = f"{rate / peak_flops:.0%}" if rate and peak_flops else "–"
        off = result.off[contender]
        error = f"{off:.1e}" if off <= result.most_off else f"{off:.1e} **FAILED**"
        lines.append(
            f"| {contender} | {timing.seconds * 1e3:.2f} | {timing.ratio:.3f} | {timing.low:.3f} to {timing.high:.3f} "
            f"| {speed} | {share} | {result.compiling[contender]:.1f} | {error} |"
        )
    lines.append("")
    lines += remarks(result)
    if peak_flops:
        lines.append(f"- peak: {peak_flops / 1e9:.0f} GFLOP/s")
    return "\n".join([*lines, ""])


def remarks(result: Result) -> list[str]:
    """How the TVM target compares with its peers, and who is missing."""
    against = {peer: timing for peer in PEERS if (timing := result.against("tvm", peer))}
    return [
        f"- tvm, of {peer}'s time: {timing.ratio:.3f} ({timing.low:.3f} to {timing.high:.3f})"
        for peer, timing in against.items()
    ] + [f"- {contender} left out: {why}" for contender, why in result.left_out.items()]


def names(known: Mapping[str, Any], what: str) -> Callable[[str], list[str]]:
    """Reads names with commas between them."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {what} '{name}'; known are {', '.join(known)}")
        return names

    return read


def options_of(
    description: str | None, known: Mapping[str, Any], models: Sequence[str], contenders: Sequence[str], rounds: int
) -> argparse.ArgumentParser:
    """The options that all races on the CPU have, with their defaults; `known` are the models that can be asked for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=names(known, "model"), default=list(models), help="with commas in between")
    parser.add_argument(
        "--contenders", type=names(CONTENDERS, "contender"), default=list(contenders),
        help=f"with commas in between; the others are compared with the first one (of {', '.join(CONTENDERS)})",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    return parser


def prepare(threads: int) -> None:
    """A process in which nothing is kept from earlier ones: seconds to compile are those of the first time."""
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    os.environ["GRAPHOPT_CACHE"] = "0"
    torch.set_num_threads(threads)


def verdict(bad: Sequence[str], good: str) -> int:
    """Say how it went; the exit status."""
    print("verdict: " + ("FAILED: " + "; ".join(bad) if bad else good))
    return 1 if bad else 0


def main() -> int:
    """Run the races asked for; 1 when a contender fails or computes something else."""
    known = {**denoisers(), **more_models()}
    parser = options_of(__doc__, known, MODELS, DEFAULT, rounds=20)
    parser.add_argument("--calls", type=int, default=3, help="of a contender in a row; the first is not timed")
    parser.add_argument("--schedule", type=int, default=0, metavar="N", help="timesteps repeat after N calls")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    if options.calls < 2 or options.rounds < 1:
        parser.error("at least two calls, the first of which is not timed, and one round")
    prepare(options.threads)
    found, bad = dict[str, Any](), list[str]()
    fastest: float | None = None
    for name in options.models:
        if (now := peak(options.threads)) is not None:  # what another program takes away would make it too low
            fastest = max(now, fastest or 0.0)
        result = measure(
            known[name], options.contenders, options.rounds,
            threads=options.threads, calls=options.calls, schedule=options.schedule,
            dtype=getattr(torch, options.dtype),
        )  # fmt: skip
        print(markdown(name, result, fastest, options.threads, options.dtype), flush=True)
        bad += result.complaints(name)
        found[name] = asdict(result)
        if options.json:
            options.json.write_text(json.dumps({"peak": fastest, "models": found}, indent=1) + "\n", encoding="utf-8")
    within = (
        f"within {MOST_OFF:.0e} of float64's" if options.dtype == "float32" else "no further off than the original's"
    )
    return verdict(bad, f"outputs are {within}")


if __name__ == "__main__":
    sys.exit(main())
