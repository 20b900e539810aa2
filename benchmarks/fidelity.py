"""How far compiled images are from the original's, against the original's own rounding.

    python -m benchmarks.fidelity [--quick] [--pipeline exact]

For every bundled pipeline × sampler × number of steps × guidance scale × batch size, three runs from the same noise:
the original in float64 (the reference), the original in float32, and the compiled pipeline in float32 (eager target).
Further *settings* put other loops around the denoiser: a callback that changes latents and prompt embeddings, separate
forwards of the guidance branches, and for the U-Net inpainting (with five more input channels) and a ControlNet, both
with random weights in what is added.

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
from benchmarks.models import bundled_pipeline

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "PNDM": ("PNDMScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
PROMPTS = ["a red apple", "a smiling face with sunglasses", "a blue car"]
SETTINGS = ("callback", "separate", "inpainting", "control")
_OF_UNETS = ("inpainting", "control")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    sampler: str
    steps: int
    guidance: float
    batch: int
    setting: str = "plain"


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


FLOOR = 32 * float(np.finfo(np.float32).eps)
_MOST = ("DDIM", "DPM-Solver++ 2M", "Euler", "Euler ancestral", "UniPC")
FULL = [
    *(Case(*entry) for entry in product(_MOST, (10, 30), (1.0, 4.0), (1, 3))),
    *(Case(sampler, 10, 4.0, batch) for sampler in SAMPLERS if sampler not in _MOST for batch in (1, 3)),
    *(Case("DDIM", 10, 4.0, 1, setting) for setting in SETTINGS),
]
QUICK = [
    *(Case(sampler, 4, 4.0, 1) for sampler in ("DDIM", "Euler ancestral", "UniPC", "Heun")),
    *(Case("DDIM", 4, 4.0, 1, setting) for setting in SETTINGS),
]


def load(name: str, setting: str = "plain") -> Any:
    """A bundled pipeline in float32, silent; with what the setting adds."""
    pipe = bundled_pipeline(name, torch_dtype=torch.float32)
    if setting in _OF_UNETS:
        torch.manual_seed(0)
        parts = dict(pipe.components)
        if setting == "inpainting":
            parts["unet"] = widened(pipe.unet)
        else:
            parts["controlnet"] = diffusers.ControlNetModel.from_unet(
                pipe.unet,
                conditioning_embedding_out_channels=[16 << k for k in range(len(pipe.vae.config.block_out_channels))],
            )
            for parameter in parts["controlnet"].parameters():
                if not bool(parameter.any()):  # the layers that lead out begin with zeros
                    torch.nn.init.normal_(parameter, std=0.02)
            parts["controlnet"].eval()
        around = {"inpainting": "StableDiffusionInpaintPipeline", "control": "StableDiffusionControlNetPipeline"}
        pipe = getattr(diffusers, around[setting])(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def widened(unet: Any, channels: int = 9) -> Any:
    """The U-Net with further input channels, of random weights."""
    made = type(unet).from_config({**unet.config, "in_channels": channels}).eval()
    state, weight = unet.state_dict(), made.conv_in.weight.detach().clone()
    weight[:, : unet.config.in_channels] = state["conv_in.weight"]
    made.load_state_dict({**state, "conv_in.weight": weight})
    return made


@contextlib.contextmanager
def float32_noise() -> Iterator[None]:
    """Step noise is drawn in float32 and cast to what is asked for."""
    with contextlib.ExitStack() as stack:
        for kind in (diffusers.EulerAncestralDiscreteScheduler, diffusers.LCMScheduler):
            module = sys.modules[kind.__module__]
            stack.enter_context(mock.patch.object(module, "randn_tensor", _drawn_in_float32(module.randn_tensor)))
        yield


def _drawn_in_float32(drawn: Any) -> Any:
    def draw(shape: Any, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> torch.Tensor:
        noise: torch.Tensor = drawn(shape, *args, dtype=torch.float32, **kwargs)
        return noise.to(dtype or torch.float32)

    return draw


def sample(pipe: Any, case: Case) -> torch.Tensor:
    """The final latent."""
    kind, options = SAMPLERS[case.sampler]
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **options)
    module = getattr(pipe, "unet", None) or pipe.transformer
    side, generator = module.config.sample_size, torch.Generator().manual_seed(0)
    latents = torch.randn(case.batch, 4, side, side, generator=generator).to(module.dtype)
    extra: dict[str, Any] = {}
    if isinstance(pipe, diffusers.PixArtAlphaPipeline):
        extra["use_resolution_binning"] = False
    size = side * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    picture = torch.rand(1, 3, size, size, generator=generator).to(module.dtype)
    if case.setting == "callback":
        extra |= {"callback_on_step_end": _edit, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    elif case.setting == "inpainting":
        mask = torch.zeros(1, 1, size, size, dtype=module.dtype)
        mask[..., : size // 2] = 1
        known = torch.randn(1, 4, side, side, generator=generator).to(module.dtype)
        extra |= {"image": picture, "mask_image": mask, "masked_image_latents": known, "height": size, "width": size}
    elif case.setting == "control":
        extra |= {"image": picture}
    with float32_noise():
        if case.setting == "separate":
            return separate(pipe, case, latents)
        result: torch.Tensor = pipe(
            PROMPTS[: case.batch], num_inference_steps=case.steps, guidance_scale=case.guidance, latents=latents,
            generator=generator, output_type="latent", **extra,
        ).images  # fmt: skip
    return result


def _edit(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
    values["latents"] = values["latents"] * 0.9375
    if step == 1:
        values["prompt_embeds"] = values["prompt_embeds"] * 0.75
    return values


@torch.no_grad()
def separate(pipe: Any, case: Case, latents: torch.Tensor) -> torch.Tensor:
    """The loop with a forward for each guidance branch."""
    module, device = getattr(pipe, "unet", None) or pipe.transformer, torch.device("cpu")
    if isinstance(pipe, diffusers.PixArtAlphaPipeline):
        embeds = pipe.encode_prompt(PROMPTS[: case.batch], True, "", 1, device)
        branches = [
            {"encoder_hidden_states": embeds[k], "encoder_attention_mask": embeds[k + 1],
             "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}} for k in (2, 0)
        ]  # fmt: skip
    else:
        embeds = pipe.encode_prompt(PROMPTS[: case.batch], device, 1, True)
        branches = [{"encoder_hidden_states": embeds[k]} for k in (1, 0)]
    pipe.scheduler.set_timesteps(case.steps)
    for time in pipe.scheduler.timesteps:
        scaled = pipe.scheduler.scale_model_input(latents, time)
        plain, conditional = (
            module(scaled, timestep=time.expand(len(latents)), **branch).sample[:, :4] for branch in branches
        )
        guided = plain + case.guidance * (conditional - plain)
        latents = pipe.scheduler.step(guided, time, latents).prev_sample
    return latents


@torch.no_grad()
def pixels(pipe: Any, latent: torch.Tensor) -> Any:
    """The 8-bit images of a latent, as integers."""
    decoded = pipe.vae.decode(latent / pipe.vae.config.scaling_factor, return_dict=False)[0]
    images = pipe.image_processor.postprocess(decoded, output_type="pil")
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def rows(name: str, cases: list[Case], pipeline: str | None = None) -> Iterator[Row]:
    """Measure `cases` on the bundled pipeline `name`; those that it has no setting for are left out."""
    setting, pipes = None, (None, None, None)
    for case in sorted(cases, key=lambda case: case.setting in _OF_UNETS):
        if case.setting in _OF_UNETS and name != "emoji-unet":
            continue
        added = case.setting if case.setting in _OF_UNETS else "plain"
        if added != setting:
            original = load(name, added)
            compiled = graphopt.compile(copy.deepcopy(original), target="eager", pipeline=pipeline)
            setting, pipes = added, (copy.deepcopy(original).to(torch.float64), original, compiled)
        truth, theirs, ours = (sample(pipe, case) for pipe in pipes)
        errors = [((z.double() - truth).norm() / truth.norm()).item() for z in (theirs, ours)]
        levels = int(np.abs(pixels(pipes[1], theirs) - pixels(pipes[2], ours)).max())
        yield Row(case, errors[0], errors[1], levels)


def main() -> int:
    """Print the table and the verdict."""
    parser = argparse.ArgumentParser(description="Fidelity of compiled pipelines against float64.")
    parser.add_argument("--quick", action="store_true", help="eight cases of four steps instead of 52")
    parser.add_argument("--pipeline", default=None, help="name of a pipeline of passes; the target's own by default")
    options = parser.parse_args()
    violated = 0
    for name in ("emoji-unet", "emoji-dit"):
        print(f"\n{name}: error of the final latent against float64 (relative, 2-norm)")
        print(f"{'sampler':16} {'setting':10} {'steps':>5} {'guidance':>8} {'batch':>5}", end=" ")
        print(f"{'original':>10} {'compiled':>10} {'levels':>6}")
        for row in rows(name, QUICK if options.quick else FULL, options.pipeline):
            case, violated = row.case, violated + (not row.holds)
            print(f"{case.sampler:16} {case.setting:10} {case.steps:5} {case.guidance:8} {case.batch:5}", end=" ")
            verdict = "" if row.holds else "  VIOLATED"
            print(f"{row.original:10.2e} {row.compiled:10.2e} {row.levels:6}{verdict}", flush=True)
    print(f"\n{violated} bounds violated" if violated else "\nall within bounds")
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
