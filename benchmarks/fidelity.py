"""How far compiled images are from the original's, against the original's own rounding.

    python -m benchmarks.fidelity [--quick] [--pipeline exact]

For every bundled pipeline × sampler × number of steps × guidance scale × batch size, three runs from the same noise:
the original in float64 (the reference), the original in float32, and the compiled pipeline in float32 (eager target).

- The *error* of a run is ‖z − z₆₄‖₂ / ‖z₆₄‖₂ for its final latent z. The compiled run's error may be at most twice the
  original's. Where the original is lucky, rounding is the measure: errors up to 32 units in the last place of float32
  (3.8e-6) are always allowed.
- The *grey levels* are the largest difference between the final 8-bit images of the two float32 runs: at most one.

Noise is drawn in float32 and cast, in all runs, so that float64 sees the very same numbers. Schedulers compute as they
do (some of them in float32 even when the model runs in float64). Exit status 1 when either bound is violated.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

import graphopt

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
PROMPTS = ["a red apple", "a smiling face with sunglasses", "a blue car"]
FLOOR = 32 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    sampler: str
    steps: int
    guidance: float
    batch: int


@dataclass(frozen=True)
class Row:
    """Errors of the final latent against float64, and the largest difference of two 8-bit images."""

    case: Case
    original: float
    compiled: float
    levels: int

    @property
    def holds(self) -> bool:
        return self.compiled <= max(2 * self.original, FLOOR) and self.levels <= 1


FULL = [Case(*entry) for entry in product(SAMPLERS, (10, 30), (1.0, 4.0), (1, 3))]
QUICK = [Case("DDIM", 4, 4.0, 1), Case("Euler ancestral", 4, 4.0, 1), Case("UniPC", 4, 4.0, 1)]


def load(name: str) -> Any:
    """A bundled pipeline in float32, silent."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(graphopt.bundled(name), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def float32_noise() -> Iterator[None]:
    """Step noise is drawn in float32 and cast to what is asked for."""
    module = sys.modules["diffusers.schedulers.scheduling_euler_ancestral_discrete"]
    drawn = module.randn_tensor

    def draw(shape: Any, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> torch.Tensor:
        noise: torch.Tensor = drawn(shape, *args, dtype=torch.float32, **kwargs)
        return noise.to(dtype or torch.float32)

    with mock.patch.object(module, "randn_tensor", draw):
        yield


def sample(pipe: Any, case: Case) -> torch.Tensor:
    """The final latent."""
    kind, options = SAMPLERS[case.sampler]
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **options)
    module = getattr(pipe, "unet", None) or pipe.transformer
    side, generator = module.config.sample_size, torch.Generator().manual_seed(0)
    latents = torch.randn(case.batch, 4, side, side, generator=generator).to(module.dtype)
    extra = {"use_resolution_binning": False} if isinstance(pipe, diffusers.PixArtAlphaPipeline) else {}
    with float32_noise():
        result: torch.Tensor = pipe(
            PROMPTS[: case.batch], num_inference_steps=case.steps, guidance_scale=case.guidance, latents=latents,
            generator=generator, output_type="latent", **extra,
        ).images  # fmt: skip
    return result


@torch.no_grad()
def pixels(pipe: Any, latent: torch.Tensor) -> Any:
    """The 8-bit images of a latent, as integers."""
    decoded = pipe.vae.decode(latent / pipe.vae.config.scaling_factor, return_dict=False)[0]
    images = pipe.image_processor.postprocess(decoded, output_type="pil")
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def rows(name: str, cases: list[Case], pipeline: str | None = None) -> Iterator[Row]:
    """Measure `cases` on the bundled pipeline `name`."""
    original, exact = load(name), load(name).to(torch.float64)
    compiled = graphopt.compile(copy.deepcopy(original), target="eager", pipeline=pipeline)
    for case in cases:
        truth = sample(exact, case)
        theirs, ours = sample(original, case), sample(compiled, case)
        errors = [((z.double() - truth).norm() / truth.norm()).item() for z in (theirs, ours)]
        levels = int(np.abs(pixels(original, theirs) - pixels(compiled, ours)).max())
        yield Row(case, errors[0], errors[1], levels)


def main() -> int:
    """Print the table and the verdict."""
    parser = argparse.ArgumentParser(description="Fidelity of compiled pipelines against float64.")
    parser.add_argument("--quick", action="store_true", help="three cases of four steps instead of forty")
    parser.add_argument("--pipeline", default=None, help="name of a pipeline of passes; the target's own by default")
    options = parser.parse_args()
    violated = 0
    for name in ("emoji-unet", "emoji-dit"):
        print(f"\n{name}: error of the final latent against float64 (relative, 2-norm)")
        print(
            f"{'sampler':16} {'steps':>5} {'guidance':>8} {'batch':>5} {'original':>10} {'compiled':>10} {'levels':>6}"
        )
        for row in rows(name, QUICK if options.quick else FULL, options.pipeline):
            case, violated = row.case, violated + (not row.holds)
            print(
                f"{case.sampler:16} {case.steps:5} {case.guidance:8} {case.batch:5} {row.original:10.2e} "
                f"{row.compiled:10.2e} {row.levels:6}{'' if row.holds else '  VIOLATED'}",
                flush=True,
            )
    print(f"\n{violated} bounds violated" if violated else "\nall within bounds")
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
