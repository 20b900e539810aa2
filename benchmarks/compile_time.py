"""Seconds from a loaded module to the first result of the target tvm: with an empty cache, and with what it then holds.

    python -m benchmarks.compile_time                                  four models
    python -m benchmarks.compile_time --blocks 4 8 16 28               growth: DiTs of so many blocks
    python -m benchmarks.compile_time --contenders tvm,torch.compile   needs g++

Every figure is of a process of its own, and of its parts: the import of `graphopt.compile`, with torch, diffusers and
the module loaded already (that of the target, and of inductor, is in what follows); capture, passes, code of the stages
(read; or generated, with the import of TVM), each made or read from the cache; and the rest, most of it the first two
calls: the module's own, with which the compiled one is compared, and the compiled one, which packs weights. Beside the
total stands what two such calls take later on, medians of three. Python may keep the bytecode of graphopt, as of
any installed package. torch.compile freezes weights; its caches start empty, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.harness import in_a_process
from benchmarks.models import Denoiser, denoisers, random_weights

PARTS = ("import", "capture", "passes", "code", "rest", "total", "own call", "compiled call")


def dit(blocks: int) -> Denoiser:
    """DiT-S/2 with so many blocks."""
    known = denoisers()["dit-s/2"]
    config: dict[str, Any] = dict(known.make().config)  # type: ignore[arg-type]
    return Denoiser(
        f"dit of {blocks} blocks",
        lambda: random_weights(diffusers.DiTTransformer2DModel, **{**config, "num_layers": blocks}),
        known.call,
    )


def measured(contender: str, denoiser: Denoiser, threads: int) -> dict[str, float]:
    """Seconds of each part, in this process."""
    torch.set_num_threads(threads)
    module, given = denoiser.make(), denoiser.call(0)
    own = module._call_impl
    with torch.no_grad():
        start = time.perf_counter()
        if contender == "torch.compile":
            import torch._inductor.config as config

            config.freezing = True
            torch.compile(module, dynamic=False)(**given)
            return {"total": time.perf_counter() - start}
        import graphopt
        from graphopt.compile import compiled_calls

        imported = time.perf_counter()
        graphopt.compile(module, target="tvm", inputs=given)
        total = time.perf_counter() - start
        calls = {"own call": repeated(own, denoiser), "compiled call": repeated(module, denoiser)}
    found = {"import": imported - start, **compiled_calls(module)[0].variants[0].built.seconds}
    return {**found, "rest": total - sum(found.values()), "total": total, **calls}


def repeated(call: Callable[..., Any], denoiser: Denoiser) -> float:
    """Seconds of a call, the median of three, each at a time of its own."""
    seconds = []
    for number in range(1, 4):
        given, start = denoiser.call(number), time.perf_counter()
        call(**given)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def alone(contender: str, model: str, threads: int, folder: Path) -> dict[str, float]:
    """Seconds of each part, in a process with its caches in a folder."""
    return in_a_process(
        "compile_time", "--one", contender, model, "--threads", str(threads),
        GRAPHOPT_CACHE_DIR=str(folder / "graphopt"), TORCHINDUCTOR_CACHE_DIR=str(folder / "inductor"),
        OMP_NUM_THREADS=str(threads), PYTHONDONTWRITEBYTECODE="",
    )  # fmt: skip


def main() -> int:
    """Print a row per model, contender and state of the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], help="of benchmarks.models")
    parser.add_argument("--blocks", nargs="+", type=int, default=[], help="DiTs of so many blocks, instead")
    parser.add_argument("--contenders", default="tvm", help="tvm,torch.compile")
    parser.add_argument("--runs", type=int, default=3, help="processes with a warm cache: medians are shown")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "MODEL"), help="measure once, in this process")
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        contender, model = options.one
        denoiser = dit(int(model)) if model.isdecimal() else denoisers()[model]
        print(json.dumps(measured(contender, denoiser, options.threads)))
        return 0
    from benchmarks.cpu_step import missing  # which imports graphopt, whose import is measured above

    models = [str(blocks) for blocks in options.blocks] or options.models or list(denoisers())
    rows: list[dict[str, Any]] = []
    print(f"| model | contender | cache | {' | '.join(PARTS)} |\n|{'---|' * (3 + len(PARTS))}")
    for model in models:
        for contender in options.contenders.split(","):
            if reason := missing(contender):
                print(f"{contender} is left out: {reason}", file=sys.stderr)
                continue
            folder = Path(tempfile.mkdtemp())
            try:
                cold = alone(contender, model, options.threads, folder)
                again = [alone(contender, model, options.threads, folder) for _ in range(options.runs)]
            finally:
                shutil.rmtree(folder)
            warm = {part: statistics.median(run[part] for run in again) for part in cold}
            for state, seconds in (("cold", cold), ("warm", warm)):
                rows.append({"model": model, "contender": contender, "cache": state, **seconds})
                cells = [f"{seconds[part]:.2f}" if part in seconds else "·" for part in PARTS]
                print(f"| {model} | {contender} | {state} | {' | '.join(cells)} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
