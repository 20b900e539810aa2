"""Whole diffusers pipelines that benchmarks run: the bundled ones, and families of public models with random weights.

The random ones have the architecture of what they are named after, narrower and shallower, so that one step with
guidance takes about a tenth of a second on two cores; prompts have the lengths and widths of the real text encoders,
and are given as embeddings. `make` builds the same weights every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from benchmarks.models import bundled_pipeline, random_weights

PROMPTS = ["red apple", "cat face", "rocket", "grinning face", "house", "snowman", "dolphin", "umbrella"]


@dataclass(frozen=True)
class Scale:
    """How large the random pipelines are.

    Attributes
    ----------
    channels : of a U-Net's levels.
    layers : residual blocks per level of a U-Net.
    heads : of a transformer, 64 channels each.
    blocks : of a DiT. MMDiTs, whose blocks do the work of two, have fractions of it.
    side, unet_side : of the latents of transformers and of U-Nets, in latent pixels.
    prompt : what lengths and widths of prompts are divided by.
    """

    channels: tuple[int, ...] = (128, 256, 512)
    layers: int = 1
    heads: int = 6
    blocks: int = 12
    side: int = 32
    unet_side: int = 24
    prompt: int = 1


FULL = Scale()
TINY = Scale(channels=(32, 32, 64), heads=1, blocks=3, side=8, unet_side=8, prompt=16)


@dataclass(frozen=True)
class DiffusersPipeline:
    """A diffusers pipeline and how to run it.

    Attributes
    ----------
    make : builds a fresh one, silent, with the same weights every time.
    arguments : of a seed: the call's arguments besides steps and generator. Every seed is another prompt.
    notes : what it stands for.
    """

    name: str
    make: Callable[[], Any]
    arguments: Callable[[int], Mapping[str, Any]]
    notes: str = field(default="", compare=False)

    def call(self, pipe: Any, seed: int, steps: int, **changes: Any) -> torch.Tensor:
        """The final latent (or image, where the pipeline returns no latents) of one request."""
        given = {"generator": torch.Generator().manual_seed(seed), "num_inference_steps": steps}
        images: torch.Tensor = pipe(**{**self.arguments(seed), **given, **changes}).images
        return images


def diffusers_pipelines(scale: Scale = FULL) -> dict[str, DiffusersPipeline]:
    """All benchmarked diffusers pipelines by name; the bundled ones have their own size at any scale."""
    found = [
        _bundled("emoji-unet", {}),
        _bundled("emoji-dit", {"use_resolution_binning": False}),
        _stable_diffusion(scale),
        _sdxl_inpainting(scale),
        _controlnet(scale),
        _pixart(scale),
        _dit(scale),
        _sd3(scale),
        _flux(scale, guided=False),
        _flux(scale, guided=True),
    ]
    return {entry.name: entry for entry in found}


def difference(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest value; infinite where either is not finite."""
    off = ((result - expected).abs().max() / expected.abs().max()).item()
    return off if off < float("inf") else float("inf")  # NaN compares false


def _silent(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _normal(seed: int, place: int, *shape: int) -> torch.Tensor:
    """Numbers of their own for every seed and place in the call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1009 * seed + place))


def _bundled(name: str, extra: dict[str, Any]) -> DiffusersPipeline:
    def make() -> Any:
        return _silent(bundled_pipeline(name))

    def arguments(seed: int) -> dict[str, Any]:
        return {"prompt": PROMPTS[seed % len(PROMPTS)], "guidance_scale": 4.0, "output_type": "pt", **extra}

    return DiffusersPipeline(name, make, arguments, "text encoder, guided steps and decoder, as trained")


def _vae(channels: int = 4) -> torch.nn.Module:
    """A VAE of factor 8 that costs next to nothing: what is measured are the steps."""
    config = {
        "block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }  # fmt: skip
    return random_weights(diffusers.AutoencoderKL, **config)


def _ddim() -> Any:
    return diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


def _unet_config(scale: Scale, width: int) -> dict[str, Any]:
    """An SD-like U-Net: attention on all levels but the deepest."""
    depth = len(scale.channels)
    return {
        "sample_size": scale.unet_side, "block_out_channels": scale.channels, "layers_per_block": scale.layers,
        "down_block_types": ("CrossAttnDownBlock2D",) * (depth - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (depth - 1),
        "cross_attention_dim": width, "attention_head_dim": 8,
    }  # fmt: skip


_NO_TEXT: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
_NO_CHECKER: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _prompts(seed: int, tokens: int, width: int) -> dict[str, torch.Tensor]:
    return {
        "prompt_embeds": _normal(seed, 1, 1, tokens, width),
        "negative_prompt_embeds": _normal(0, 2, 1, tokens, width),  # the empty prompt, whatever the request
    }


def _stable_diffusion(scale: Scale) -> DiffusersPipeline:
    tokens, width = 77 // scale.prompt, 768 // scale.prompt

    def make() -> Any:
        unet = random_weights(diffusers.UNet2DConditionModel, **_unet_config(scale, width))
        parts = {"unet": unet, "vae": _vae(), "scheduler": _ddim(), **_NO_TEXT, **_NO_CHECKER}
        return _silent(diffusers.StableDiffusionPipeline(**parts))

    def arguments(seed: int) -> dict[str, Any]:
        return {**_prompts(seed, tokens, width), "guidance_scale": 7.5, "output_type": "latent"}

    return DiffusersPipeline("sd-like", make, arguments, f"StableDiffusionPipeline, {tokens} × {width} prompts")


def _controlnet(scale: Scale) -> DiffusersPipeline:
    tokens, width = 77 // scale.prompt, 768 // scale.prompt

    def make() -> Any:
        config = _unet_config(scale, width)
        unet = random_weights(diffusers.UNet2DConditionModel, **config)
        shared = {name: value for name, value in config.items() if name not in ("sample_size", "up_block_types")}
        controlnet = random_weights(diffusers.ControlNetModel, **shared)
        parts = {"unet": unet, "controlnet": controlnet, "vae": _vae(), "scheduler": _ddim(), **_NO_TEXT, **_NO_CHECKER}
        return _silent(diffusers.StableDiffusionControlNetPipeline(**parts))

    def arguments(seed: int) -> dict[str, Any]:
        edges = _normal(seed, 3, 1, 3, 8 * scale.unet_side, 8 * scale.unet_side).sigmoid()
        return {**_prompts(seed, tokens, width), "image": edges, "guidance_scale": 7.5, "output_type": "latent"}

    return DiffusersPipeline("sd-like controlnet", make, arguments, "StableDiffusionControlNetPipeline")


def _sdxl_inpainting(scale: Scale) -> DiffusersPipeline:
    tokens, width, pooled = 77 // scale.prompt, 2048 // scale.prompt, 1280 // scale.prompt
    times = 256 // scale.prompt

    def make() -> Any:
        depth = len(scale.channels)
        unet = random_weights(
            diffusers.UNet2DConditionModel, in_channels=9, sample_size=scale.unet_side,
            block_out_channels=scale.channels, layers_per_block=scale.layers,
            cross_attention_dim=width, use_linear_projection=True,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (depth - 1),
            up_block_types=("CrossAttnUpBlock2D",) * (depth - 1) + ("UpBlock2D",),
            attention_head_dim=tuple(channels // 32 for channels in scale.channels),
            transformer_layers_per_block=(1,) * (depth - 1) + (2,), addition_embed_type="text_time",
            addition_time_embed_dim=times, projection_class_embeddings_input_dim=6 * times + pooled,
        )  # fmt: skip
        parts = {
            "unet": unet, "vae": _vae(), "scheduler": _ddim(), **_NO_TEXT, "text_encoder_2": None, "tokenizer_2": None,
            "requires_aesthetics_score": False,
        }  # fmt: skip
        return _silent(diffusers.StableDiffusionXLInpaintPipeline(**parts))

    def arguments(seed: int) -> dict[str, Any]:
        side = 8 * scale.unet_side
        mask = torch.zeros(1, 1, side, side)
        mask[..., side // 4 : side // 2, side // 4 :] = 1
        return {
            **_prompts(seed, tokens, width), "pooled_prompt_embeds": _normal(seed, 3, 1, pooled),
            "negative_pooled_prompt_embeds": _normal(0, 4, 1, pooled), "mask_image": mask, "strength": 1.0,
            "image": _normal(seed, 5, 1, 3, side, side).tanh(), "height": side, "width": side, "guidance_scale": 7.5,
            "output_type": "latent",
        }  # fmt: skip

    return DiffusersPipeline("sdxl-like inpainting", make, arguments, "StableDiffusionXLInpaintPipeline, 9 channels")


def _pixart(scale: Scale) -> DiffusersPipeline:
    tokens, width = 300 // scale.prompt, 4096 // scale.prompt

    def make() -> Any:
        transformer = random_weights(
            diffusers.PixArtTransformer2DModel, sample_size=scale.side, num_layers=max(1, scale.blocks * 2 // 3),
            num_attention_heads=scale.heads, attention_head_dim=64, in_channels=4, out_channels=8,
            cross_attention_dim=64 * scale.heads, caption_channels=width, use_additional_conditions=False,
        )  # fmt: skip
        parts = {"transformer": transformer, "vae": _vae(), "scheduler": _ddim(), **_NO_TEXT}
        return _silent(diffusers.PixArtSigmaPipeline(**parts))

    def arguments(seed: int) -> dict[str, Any]:
        mask, empty = torch.ones(1, tokens, dtype=torch.int64), torch.zeros(1, tokens, dtype=torch.int64)
        mask[:, tokens * 2 // 3 :], empty[:, :1] = 0, 1
        return {
            **_prompts(seed, tokens, width), "prompt_attention_mask": mask, "negative_prompt_attention_mask": empty,
            "negative_prompt": None, "height": 8 * scale.side, "width": 8 * scale.side, "guidance_scale": 4.5,
            "use_resolution_binning": False, "output_type": "latent",
        }  # fmt: skip

    return DiffusersPipeline("pixart-like", make, arguments, f"PixArtSigmaPipeline, {tokens} × {width} prompts")


def _dit(scale: Scale) -> DiffusersPipeline:
    def make() -> Any:
        transformer = random_weights(
            diffusers.DiTTransformer2DModel, num_attention_heads=scale.heads, attention_head_dim=64, in_channels=4,
            out_channels=8, num_layers=scale.blocks, sample_size=scale.side, patch_size=2,
        )  # fmt: skip
        return _silent(diffusers.DiTPipeline(transformer=transformer, vae=_vae(), scheduler=_ddim()))

    def arguments(seed: int) -> dict[str, Any]:
        return {"class_labels": [(207 + 31 * seed) % 1000], "guidance_scale": 4.0, "output_type": "pt"}

    return DiffusersPipeline("dit-s/2", make, arguments, "DiTPipeline, class labels, with its decoder")


def _sd3(scale: Scale) -> DiffusersPipeline:
    tokens, width, pooled = 333 // scale.prompt, 4096 // scale.prompt, 2048 // scale.prompt

    def make() -> Any:
        transformer = random_weights(
            diffusers.SD3Transformer2DModel, sample_size=scale.side, num_layers=max(2, scale.blocks // 3),
            num_attention_heads=scale.heads, attention_head_dim=64, joint_attention_dim=width, in_channels=16,
            out_channels=16, caption_projection_dim=64 * scale.heads, pooled_projection_dim=pooled,
            pos_embed_max_size=2 * scale.side,
        )  # fmt: skip
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        parts = {"transformer": transformer, "vae": _vae(16), "scheduler": scheduler, **_NO_TEXT}
        for name in ("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"):
            parts[name] = None
        return _silent(diffusers.StableDiffusion3Pipeline(**parts))

    def arguments(seed: int) -> dict[str, Any]:
        return {
            **_prompts(seed, tokens, width), "pooled_prompt_embeds": _normal(seed, 3, 1, pooled),
            "negative_pooled_prompt_embeds": _normal(0, 4, 1, pooled), "guidance_scale": 7.0, "output_type": "latent",
        }  # fmt: skip

    return DiffusersPipeline("sd3-like", make, arguments, f"StableDiffusion3Pipeline, {tokens} × {width} prompts")


def _flux(scale: Scale, guided: bool) -> DiffusersPipeline:
    tokens, width, pooled = 512 // scale.prompt, 4096 // scale.prompt, 768 // scale.prompt
    blocks = max(1, scale.blocks // (6 if guided else 3))  # two forwards a step take as long as one of twice the depth

    def make() -> Any:
        transformer = random_weights(
            diffusers.FluxTransformer2DModel, num_layers=max(1, blocks // 2), num_attention_heads=scale.heads,
            num_single_layers=blocks, attention_head_dim=64, joint_attention_dim=width,
            in_channels=64, pooled_projection_dim=pooled, guidance_embeds=True, axes_dims_rope=(16, 24, 24),
        )  # fmt: skip
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        parts = {"transformer": transformer, "vae": _vae(16), "scheduler": scheduler, **_NO_TEXT}
        return _silent(diffusers.FluxPipeline(**parts, text_encoder_2=None, tokenizer_2=None))

    def arguments(seed: int) -> dict[str, Any]:
        given: dict[str, Any] = {
            "prompt_embeds": _normal(seed, 1, 1, tokens, width), "pooled_prompt_embeds": _normal(seed, 3, 1, pooled),
            "guidance_scale": 3.5, "height": 8 * scale.side, "width": 8 * scale.side, "output_type": "latent",
        }  # fmt: skip
        if guided:
            given |= {
                "negative_prompt_embeds": _normal(0, 2, 1, tokens, width), "true_cfg_scale": 4.0,
                "negative_pooled_prompt_embeds": _normal(0, 4, 1, pooled),
            }  # fmt: skip
        return given

    if guided:
        return DiffusersPipeline("flux-like guided", make, arguments, "FluxPipeline, two forwards a step")
    return DiffusersPipeline("flux-like", make, arguments, f"FluxPipeline, {tokens} × {width} prompts, one forward")
