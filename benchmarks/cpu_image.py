"""One image on the CPU: the original, graphopt's TVM target, torch.compile and OpenVINO in the bundled pipelines.

    python -m benchmarks.cpu_image                                    both, with as many steps as is their default
    python -m benchmarks.cpu_image --steps 20 --rounds 20
    python -m benchmarks.cpu_image --models emoji-dit --contenders original,tvm,openvino
    python -m benchmarks.cpu_image --rounds 2 --steps 3 --threads 1   for trying it out

A contender is a diffusers pipeline as users run it, in float32: a prompt goes in and an image comes out, with
tokenizer, text encoder, guided steps, scheduler, decoder and all between them. graphopt compiles the pipeline. For the
others the same modules are replaced one by one, under a pipeline that is not changed: torch.compile freezes weights,
OpenVINO computes in f32. A text encoder that one of them cannot run stays as it is, which is said below the table.

A round lets every contender, in random order, make the image of a prompt and a seed that none of them has seen. What
users have from one image to the next is the same here: the timesteps, and the empty prompt that guidance leads away
from; what depends on these alone graphopt keeps. The first six rounds are not timed: it still learns from what a
pipeline's first images share, and compiles again. Seconds to compile are all that building and the images that are not
timed take beyond the median of those that are, with nothing kept by an earlier process.

Images are compared with the original's of the same round, pixel by pixel, in grey levels of 255. Exit status 1 when one
is off by more than two, or a contender fails. Rounding errors of float32 grow over the steps, and where they cross the
border between two levels the image is off by one; a wrong step is off by tens. What is not installed is left out, and
said: ``pip install openvino``; torch.compile needs g++.
"""

from __future__ import annotations

import functools
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

import graphopt
from benchmarks.cpu_step import (
    CONTENDERS,
    TARGETS,
    Arguments,
    Result,
    missing,
    options_of,
    prepare,
    reason,
    remarks,
    verdict,
)
from benchmarks.harness import interleave
from benchmarks.pipelines import PROMPTS, DiffusersPipeline, diffusers_pipelines
from graphopt.compile import modules

MOST_OFF = 2.0  # grey levels
MODELS = ("emoji-unet", "emoji-dit")
DEFAULT = ("original", "tvm", "torch.compile", "openvino")
_WARM_UP = 6  # rounds that are not timed

Image = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass
class Images(Result):
    """What was measured of one diffusers pipeline, per image; differences are grey levels.

    Attributes
    ----------
    steps : of an image.
    eager : modules that a contender runs as they are, and why, by contender.
    """

    most_off: float = MOST_OFF
    unit: str = " grey levels"
    steps: int = 0
    eager: dict[str, list[str]] = field(default_factory=dict)


def prompt(number: int) -> str:
    """Another one for every number: the words of PROMPTS are its digits."""
    rest, digit = divmod(number, len(PROMPTS))
    return f"{prompt(rest)} and {PROMPTS[digit]}" if rest else PROMPTS[digit]


def image(entry: DiffusersPipeline, pipe: Any, number: int, steps: int) -> Image:
    """The image of a prompt and a seed, in 8 bits."""
    given = {
        **entry.arguments(number), "prompt": prompt(number), "num_inference_steps": steps, "output_type": "pil",
        "generator": torch.Generator().manual_seed(number),
    }  # fmt: skip
    return np.asarray(pipe(**given).images[0])


def first_calls(entry: DiffusersPipeline) -> dict[str, Arguments]:
    """The first call of every module that graphopt compiles, by name, in an image of two steps from number 0."""
    pipe, found = entry.make(), dict[str, Arguments]()

    def note(name: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(name, (args, kwargs))

    for name, module in modules(pipe):
        module.register_forward_pre_hook(functools.partial(note, name), with_kwargs=True)
    image(entry, pipe, 0, 2)
    return found


def install(contender: str, pipe: Any, calls: Mapping[str, Arguments], threads: int) -> list[str]:
    """Put a contender's code in the place of a pipeline's modules; which text encoders stay as they are, and why."""
    if contender in TARGETS:
        graphopt.compile(pipe, target=TARGETS[contender], strict=True)
        return []
    eager = []
    for name, module in modules(pipe):
        if name not in calls:
            continue
        args, kwargs = calls[name]
        try:
            CONTENDERS[contender](module, calls[name], threads)
            module(*args, **kwargs)
        except Exception as error:
            if not name.startswith("text_encoder"):
                raise
            module._compiled_call_impl = None
            eager.append(f"{name} ({reason(error)})")
    return eager


def measure(
    entry: DiffusersPipeline,
    contenders: Sequence[str],
    rounds: int,
    *,
    steps: int | None,
    threads: int,
    warm_up: int = _WARM_UP,
) -> Images:
    """Build the contenders one after the other, time them, and compare their images with the original's.

    Parameters
    ----------
    contenders : the original is one of them.
    steps : of an image; None for as many as the pipeline makes by itself.
    warm_up : rounds that are not timed, before those that are.
    """
    result, runs = Images(), dict[str, Callable[[int], tuple[float, Image]]]()
    calls = first_calls(entry)
    for name in contenders:
        if absent := missing(name):
            result.left_out[name] = absent
            continue
        pipe = entry.make()
        result.steps = steps or inspect.signature(pipe.__call__).parameters["num_inference_steps"].default
        with result.attempt(name), torch.no_grad():
            start = time.perf_counter()
            result.eager[name] = install(name, pipe, calls, threads)
            image(entry, pipe, 1, result.steps)
            result.compiling[name] = time.perf_counter() - start
            runs[name] = _timed(entry, pipe, result.steps)
    found = interleave(runs, lambda number: number + 2, rounds=warm_up + rounds)
    for name, turns in found.items():
        times = [seconds for seconds, _ in turns]
        result.times[name] = times[warm_up:]
        steady = (1 + warm_up) * statistics.median(times[warm_up:])
        result.compiling[name] = max(0.0, result.compiling[name] + sum(times[:warm_up]) - steady)
        pairs = zip(turns, found["original"], strict=True)
        result.off[name] = max(grey_levels(mine, true) for (_, mine), (_, true) in pairs)
    return result


def grey_levels(one: Image, other: Image) -> float:
    """The largest difference of two images."""
    return float(np.abs(one.astype(int) - other.astype(int)).max())


def _timed(entry: DiffusersPipeline, pipe: Any, steps: int) -> Callable[[int], tuple[float, Image]]:
    def run(number: int) -> tuple[float, Image]:
        time.sleep(0.02)  # threads of the contender before spin for a while
        start = time.perf_counter()
        made = image(entry, pipe, number, steps)
        return time.perf_counter() - start, made

    return run


def markdown(name: str, result: Images, threads: int) -> str:
    """The table of one pipeline, and how the TVM target compares with its peers."""
    rounds = len(next(iter(result.times.values()), []))
    lines = [
        f"### {name}: one image of {result.steps} steps, float32, {threads} threads, {rounds} rounds", "",
        "| contender | seconds | of original | 95 % interval | seconds to compile | grey levels off |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for contender in result.times:
        timing = result.against(contender, "original")
        assert timing is not None
        off = result.off[contender]
        levels = f"{off:.0f}" if off <= result.most_off else f"{off:.0f} **FAILED**"
        lines.append(
            f"| {contender} | {timing.seconds:.3f} | {timing.ratio:.3f} | {timing.low:.3f} to {timing.high:.3f} "
            f"| {result.compiling[contender]:.1f} | {levels} |"
        )
    lines += ["", *remarks(result)]
    lines += [
        f"- {contender} leaves as it is: {'; '.join(eager)}" for contender, eager in result.eager.items() if eager
    ]
    return "\n".join([*lines, ""])


def main() -> int:
    """Run the races asked for; 1 when a contender fails or makes other images."""
    known = {name: entry for name, entry in diffusers_pipelines().items() if name in MODELS}
    parser = options_of(__doc__, known, MODELS, DEFAULT, rounds=10)
    parser.add_argument("--steps", type=int, help="of an image (default: the pipeline's own)")
    options = parser.parse_args()
    if options.rounds < 1 or (options.steps is not None and options.steps < 1):
        parser.error("at least one round, and images of at least one step")
    if "original" not in options.contenders:
        parser.error("images are compared with those of the contender 'original'")
    prepare(options.threads)
    found, bad = dict[str, Any](), list[str]()
    for name in options.models:
        result = measure(known[name], options.contenders, options.rounds, steps=options.steps, threads=options.threads)
        print(markdown(name, result, options.threads), flush=True)
        bad += result.complaints(name)
        found[name] = asdict(result)
        if options.json:
            options.json.write_text(json.dumps({"models": found}, indent=1) + "\n", encoding="utf-8")
    return verdict(bad, f"images are within {MOST_OFF:.0f} grey levels of the original's")


if __name__ == "__main__":
    sys.exit(main())
