"""Tiny pipelines with random weights, a pass that keeps whatever can be kept, and counters of what was recomputed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import fx
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import graphopt
from graphopt.ir.program import Program
from graphopt.ir.relations import Constant, Paired, Repeated, Unchanged
from graphopt.ir.rewrite import Match, Pass
from graphopt.ir.stages import COMMON, STAGES, Stage, stages

WIDTH, TOKENS, SIDE, STEPS = 16, 5, 16, 3


def earliest(program: Program) -> dict[fx.Node, Stage]:
    """The first stage that has all that a node reads, values and shapes."""
    found = stages(program)
    for node, stage in found.items():
        found[node] = stage.union(*(found[source] for source in node.all_input_nodes))
    return found


@dataclass(frozen=True)
class HoistEverything(Pass):
    """Place every node in its stage, whatever it costs: the harshest case for memoised stages."""

    repeat: ClassVar[bool] = False

    def find(self, program: Program) -> Iterable[Match]:
        for node, stage in earliest(program).items():
            if node.op == "call_function" and "state" not in stage:
                yield Match(node, captures={"stage": stage})

    def rewrite(self, program: Program, match: Match) -> None:
        match.root.meta["placement"] = match["stage"]


@dataclass(frozen=True)
class KeepConditions(Pass):
    """Read every condition through a copy, which is kept: whoever takes a part for a condition reads the kept one."""

    repeat: ClassVar[bool] = False

    def find(self, program: Program) -> Iterable[Match]:
        yield from (Match(node) for node in program.placeholders if program.role(node) == "condition" and node.users)

    def rewrite(self, program: Program, match: Match) -> None:
        copy = program.call(torch.ops.aten.clone.default, match.root, before=next(program.calls()))
        match.root.replace_all_uses_with(copy, lambda user: user is not copy)


@dataclass(frozen=True)
class ExploitEverything(HoistEverything):
    """As `HoistEverything`, with all that relations between calls say, and with what branches share kept as well."""

    exploits: ClassVar[tuple[type, ...]] = (Repeated, Constant, Unchanged, Paired)

    def find(self, program: Program) -> Iterable[Match]:
        yield from super().find(program)
        for node, stage in earliest(program).items():
            if node.op == "call_function" and "state" in stage and "condition" not in stage:
                yield Match(node, captures={"stage": COMMON})


HOISTING: tuple[Pass, ...] = (HoistEverything(),)
EXPLOITING: tuple[Pass, ...] = (KeepConditions(), ExploitEverything())


class Small(torch.nn.Module):
    """A denoiser of a few operations: convolutions, an embedded time, and the mean of some tokens."""

    def __init__(self, channels: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.enter, self.leave = torch.nn.Conv2d(channels, 8, 3, padding=1), torch.nn.Conv2d(8, 4, 3, padding=1)
        self.time, self.tokens = torch.nn.Linear(4, 8), torch.nn.Linear(WIDTH, 8)
        self.eval().requires_grad_(False)

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        waves = torch.outer(timestep.reshape(-1).float() / 100, torch.tensor([1.0, 2.0, 4.0, 8.0])).sin()
        scale = self.time(waves) + self.tokens(encoder_hidden_states).mean(1)
        hidden = torch.nn.functional.silu(self.enter(sample))
        return self.leave(torch.nn.functional.silu(hidden * scale[:, :, None, None] + hidden))


def compiled(x: Any, pipeline: tuple[Pass, ...] = EXPLOITING, **options: Any) -> Any:
    """A pipeline or module, compiled as strictly as can be."""
    return graphopt.compile(x, target="eager", pipeline=pipeline, strict=True, **options)


def unet(**options: Any) -> Any:
    torch.manual_seed(0)
    config = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",), "mid_block_type": None, "norm_num_groups": 2,
        "up_block_types": ("CrossAttnUpBlock2D",), "cross_attention_dim": WIDTH, "attention_head_dim": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**config, **options}).eval().requires_grad_(False)


def vae() -> Any:
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2, latent_channels=4, layers_per_block=1, **blocks)


def scheduler() -> Any:
    return DDIMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


def text_encoder(words: int) -> Any:
    torch.manual_seed(2)
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=words,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


def stable_diffusion() -> Any:
    tokenizer = CLIPTokenizer.from_pretrained(graphopt.bundled("emoji-unet") / "tokenizer")
    pipe = StableDiffusionPipeline(
        unet=unet(), vae=vae().eval().requires_grad_(False), text_encoder=text_encoder(len(tokenizer)),
        tokenizer=tokenizer, scheduler=scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixart() -> Any:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=4, num_attention_heads=2, caption_channels=WIDTH,
        in_channels=4, out_channels=8, cross_attention_dim=8, use_additional_conditions=False,
    )  # fmt: skip
    pipe = PixArtAlphaPipeline(
        tokenizer=None, text_encoder=None, vae=vae().eval().requires_grad_(False), scheduler=scheduler(),
        transformer=transformer.eval().requires_grad_(False),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def generate(pipe: Any, *, seed: int = 0, prompt: int = 1, negative: int = 2, **changes: Any) -> torch.Tensor:
    """The final latent (or image) of one run; everything is the same from run to run but what is said otherwise."""
    batch = changes.pop("batch", 1)
    call: dict[str, Any] = {
        "num_inference_steps": STEPS, "guidance_scale": 4.0, "height": SIDE, "width": SIDE, "output_type": "latent",
        "generator": torch.Generator().manual_seed(seed),
    }  # fmt: skip
    if "text" not in changes:
        call |= {"prompt_embeds": embeddings(prompt, batch), "negative_prompt_embeds": embeddings(negative, batch)}
        if isinstance(pipe, PixArtAlphaPipeline):
            mask = torch.ones(batch, TOKENS, dtype=torch.int64)
            call |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask.clone()}
    if isinstance(pipe, PixArtAlphaPipeline):
        call |= {"use_resolution_binning": False, "negative_prompt": None}
    if "text" in changes:
        call["prompt"] = changes.pop("text")
    if "timesteps" in changes or "sigmas" in changes:
        del call["num_inference_steps"]
    result = pipe(**{**call, **changes})
    image: torch.Tensor = result.images
    return image


def misses(pipe: Any) -> dict[str, int]:
    """How often each stage of the denoiser was computed so far, over all its variants."""
    installed = denoiser(pipe)._compiled_call_impl
    variants = installed.variants if installed is not None else []
    return {
        name: sum(variant.memos[name].misses for variant in variants if name in variant.memos)
        for name in STAGES
        if name != "step"
    }


def pair(make: Any, pipeline: tuple[Pass, ...] = HOISTING, **options: Any) -> tuple[Any, Any]:
    """A pipeline, and its compiled twin."""
    return make(), compiled(make(), pipeline, **options)
