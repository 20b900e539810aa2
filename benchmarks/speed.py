"""Original eager, torch.compile and graphopt on each target: per step and per image, side by side in one run.

    python -m benchmarks.speed                       everything (about ten minutes on two cores)
    python -m benchmarks.speed --models emoji-unet --no-compile-peer

New latents and timesteps on every call, the same for all contenders. Exit status 1 when the compiled result (target
``auto``, what users get) is slower than the original beyond the interval, or outputs disagree.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch

import graphopt
from benchmarks.harness import Timing, race, table
from benchmarks.models import Denoiser, bundled_pipeline, denoisers

PROMPTS = ["red apple", "cat face", "rocket", "grinning face", "house", "snowman", "dolphin", "umbrella"]


def contenders_of(denoiser: Denoiser, peers: bool, inductor: bool) -> tuple[dict[str, Any], dict[str, float]]:
    """Callables by name, all with the same weights, compiled; and the seconds each took to compile."""
    calls: dict[str, Any] = {"original": denoiser.make()}
    seconds = {"original": 0.0}
    targets = ["auto", "eager", *(["inductor"] if inductor else [])]
    for target in targets:
        start = time.perf_counter()
        module = graphopt.compile(denoiser.make(), target=target, inputs=denoiser.call(0))
        calls[f"graphopt, {target}"], seconds[f"graphopt, {target}"] = module, time.perf_counter() - start
    if peers:
        import torch._inductor.config as config

        config.freezing = True
        start = time.perf_counter()
        compiled = torch.compile(denoiser.make())
        with torch.no_grad():
            compiled(**denoiser.call(0))
        calls["torch.compile, freezing"], seconds["torch.compile, freezing"] = compiled, time.perf_counter() - start
    return calls, seconds


def check_outputs(calls: dict[str, Any], denoiser: Denoiser) -> float:
    """The largest difference of any contender to the original, relative to the largest value."""
    given, worst = denoiser.call(7), 0.0
    with torch.no_grad():
        expected = calls["original"](**given)[0]
        for call in calls.values():
            off = ((call(**given)[0] - expected).abs().max() / expected.abs().max()).item()
            worst = max(worst, off if math.isfinite(off) else math.inf)  # max() would pass over NaN
    return worst


def per_step(
    denoiser: Denoiser, rounds: int, peers: bool, inductor: bool
) -> tuple[list[Timing], dict[str, float], float]:
    """Milliseconds of one denoiser call, batch 2."""
    calls, seconds = contenders_of(denoiser, peers, inductor)
    off = check_outputs(calls, denoiser)
    timed: dict[str, Any] = {name: (lambda given, call=call: call(**given)) for name, call in calls.items()}
    return race(timed, denoiser.call, rounds=rounds), seconds, off


def per_image(name: str, rounds: int, steps: int, peers: bool) -> list[Timing]:
    """Seconds of one image through the whole pipeline: text encoder, `steps` guided steps, decoder."""
    extra = {"use_resolution_binning": False} if name == "emoji-dit" else {}

    def load() -> Any:
        pipe = bundled_pipeline(name)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    pipes = {"original": load(), "graphopt, auto": graphopt.compile(load())}
    if peers:
        import torch._inductor.config as config

        config.freezing = True
        compiled = load()
        attribute = "unet" if hasattr(compiled, "unet") else "transformer"
        setattr(compiled, attribute, torch.compile(getattr(compiled, attribute)))
        pipes["torch.compile, freezing"] = compiled

    def run(pipe: Any, number: int) -> Any:
        generator = torch.Generator().manual_seed(number)
        prompt = PROMPTS[number % len(PROMPTS)]
        return pipe(prompt, num_inference_steps=steps, guidance_scale=4.0, generator=generator, **extra)

    timed: dict[str, Any] = {key: (lambda number, pipe=pipe: run(pipe, number)) for key, pipe in pipes.items()}
    return race(timed, lambda number: number, rounds=rounds)


def main() -> int:
    """Run the races asked for; 1 when graphopt loses one or computes something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=None, help="denoisers by name (default: all)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20, help="sampling steps per image")
    parser.add_argument(
        "--no-compile-peer", action="store_true", help="leave torch.compile out (it compiles for minutes)"
    )
    parser.add_argument("--no-inductor", action="store_true", help="leave graphopt's inductor target out")
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    options = parser.parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    known, results, bad = denoisers(), dict[str, Any](), []
    for name in options.models or known:
        timings, seconds, off = per_step(
            known[name], options.rounds, not options.no_compile_peer, not options.no_inductor
        )
        print(table(f"{name}: one step, batch 2, fp32, {torch.get_num_threads()} threads", timings))
        print("seconds to compile: " + ", ".join(f"{key} {value:.1f}" for key, value in seconds.items() if value))
        print(f"largest relative difference of outputs: {off:.1e}\n")
        results[name] = {"step": [vars(t) for t in timings], "compile": seconds, "difference": off}
        bad += [f"{name}: {t.name}" for t in timings if t.name == "graphopt, auto" and t.low > 1.0]
        bad += [f"{name}: outputs differ by {off:.1e}"] if off > 1e-3 else []
        if name.startswith("emoji"):
            images = per_image(name, max(8, options.rounds // 3), options.steps, not options.no_compile_peer)
            print(table(f"{name}: one image, {options.steps} steps, guidance 4", images, unit="ms"))
            results[name]["image"] = [vars(t) for t in images]
            bad += [f"{name}, per image: {t.name}" for t in images if t.name == "graphopt, auto" and t.low > 1.0]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(
        "verdict: "
        + ("FAILED: " + "; ".join(bad) if bad else "target auto is never slower than the original beyond the interval")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
