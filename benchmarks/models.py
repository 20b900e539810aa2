"""The denoisers that benchmarks run: the bundled pipelines, and public configurations with random weights.

Each is a module and a maker of calls: ``call(seed)`` gives the keyword arguments of one step with new latents and a new
timestep; the condition tensors of a request stay the same objects, as in a sampling loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers

import graphopt


@dataclass
class Denoiser:
    """A module and its calls; `make` builds a fresh copy with the same weights."""

    name: str
    make: Callable[[], torch.nn.Module]
    call: Callable[[int], dict[str, Any]]


def bundled_pipeline(name: str, **options: Any) -> Any:
    """A bundled pipeline, loaded without bars and messages: benchmarks print tables."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    return diffusers.DiffusionPipeline.from_pretrained(graphopt.bundled(name), **options)


def _steps(latent: tuple[int, ...], time: str, sample: str, **conditions: Any) -> Callable[[int], dict[str, Any]]:
    timesteps = torch.linspace(981, 1, 50).long()

    def call(number: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(number)
        when = timesteps[number % len(timesteps)]
        return {
            sample: torch.randn(latent, generator=generator),
            time: when.expand(latent[0]),
            **conditions,
            "return_dict": False,
        }

    return call


def random_weights(kind: type[torch.nn.Module], **config: Any) -> torch.nn.Module:
    """A module of this class with weights that are the same every time, none of them all zero."""
    torch.manual_seed(0)
    module = kind(**config)
    with torch.no_grad():  # several classes start with zeroed projections, which would hide work
        for weight in module.parameters():
            if not weight.any():
                weight.normal_(std=0.02)
    return module.eval()


def _random(kind: type[torch.nn.Module], **config: Any) -> Callable[[], torch.nn.Module]:
    return lambda: random_weights(kind, **config)


def _bundled(name: str) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        pipe = bundled_pipeline(name)
        module: torch.nn.Module = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
        return module.eval()

    return make


def denoisers() -> dict[str, Denoiser]:
    """All benchmarked denoisers by name. Batch 2: one image with classifier-free guidance."""
    normal = torch.Generator().manual_seed(1)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=normal)

    unet = diffusers.UNet2DConditionModel.load_config(graphopt.bundled("emoji-unet") / "unet")
    dit = diffusers.PixArtTransformer2DModel.load_config(graphopt.bundled("emoji-dit") / "transformer")
    tokens = 32
    mask = torch.ones(2, 120)
    mask[:, 6:] = 0
    no_size: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    found = [
        Denoiser(
            "emoji-unet",
            _bundled("emoji-unet"),
            _steps(
                (2, 4, 16, 16),
                "timestep",
                "sample",
                encoder_hidden_states=tensor(2, tokens, unet["cross_attention_dim"]),
            ),
        ),
        Denoiser(
            "emoji-dit",
            _bundled("emoji-dit"),
            _steps(
                (2, 4, 16, 16),
                "timestep",
                "hidden_states",
                encoder_hidden_states=tensor(2, 120, dit["caption_channels"]),
                encoder_attention_mask=mask,
                added_cond_kwargs=no_size,
            ),
        ),
        Denoiser(
            "dit-s/2",
            _random(
                diffusers.DiTTransformer2DModel,
                num_attention_heads=6,
                attention_head_dim=64,
                in_channels=4,
                out_channels=8,
                num_layers=12,
                sample_size=32,
                patch_size=2,
            ),
            _steps((2, 4, 32, 32), "timestep", "hidden_states", class_labels=torch.tensor([207, 1000])),
        ),
        Denoiser(
            "sd-like u-net",
            _random(
                diffusers.UNet2DConditionModel,
                sample_size=32,
                block_out_channels=(128, 256, 512),
                layers_per_block=2,
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=768,
                attention_head_dim=8,
            ),
            _steps((2, 4, 32, 32), "timestep", "sample", encoder_hidden_states=tensor(2, 77, 768)),
        ),
    ]
    return {entry.name: entry for entry in found}


class _Decoder(torch.nn.Module):
    """Latents to images, as a module of its own."""

    def __init__(self, vae: diffusers.AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor]:
        decoded: tuple[torch.Tensor] = self.vae.decode(latents, return_dict=False)
        return decoded


def _emoji_decoder() -> torch.nn.Module:
    vae = diffusers.AutoencoderKL.from_pretrained(graphopt.bundled("emoji-unet"), subfolder="vae")
    return _Decoder(vae).eval()


def more_models() -> dict[str, Denoiser]:
    """Larger denoisers and a decoder, which only some benchmarks run, by name.

    ``sd3-like`` and ``flux-like`` have about 130 million parameters and 256 image tokens; ``emoji-vae`` decodes one
    image; ``sd-1.5`` has the size of the real one, 860 million parameters, 512 × 512 pixels.
    """
    normal = torch.Generator().manual_seed(2)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=normal)

    places = torch.cartesian_prod(torch.zeros(1), torch.arange(16.0), torch.arange(16.0))
    found = [
        Denoiser(
            "sd3-like",
            _random(
                diffusers.SD3Transformer2DModel,
                sample_size=32,
                num_layers=6,
                num_attention_heads=12,
                attention_head_dim=64,
                joint_attention_dim=4096,
                in_channels=16,
                out_channels=16,
                caption_projection_dim=768,
                pooled_projection_dim=2048,
                pos_embed_max_size=64,
            ),
            _steps(
                (2, 16, 32, 32),
                "timestep",
                "hidden_states",
                encoder_hidden_states=tensor(2, 154, 4096),
                pooled_projections=tensor(2, 2048),
            ),
        ),
        Denoiser(
            "flux-like",
            _random(
                diffusers.FluxTransformer2DModel,
                num_layers=3,
                num_single_layers=6,
                num_attention_heads=12,
                attention_head_dim=64,
                joint_attention_dim=4096,
                in_channels=64,
                pooled_projection_dim=768,
                guidance_embeds=True,
                axes_dims_rope=(16, 24, 24),
            ),
            _in_units(
                _steps(
                    (1, 256, 64),
                    "timestep",
                    "hidden_states",
                    encoder_hidden_states=tensor(1, 256, 4096),
                    pooled_projections=tensor(1, 768),
                    guidance=torch.tensor([3.5]),
                    img_ids=places,
                    txt_ids=torch.zeros(256, 3),
                )
            ),
        ),
        Denoiser("emoji-vae", _emoji_decoder, lambda number: {"latents": _latents(number, 1, 4, 16, 16)}),
        Denoiser(
            "sd-1.5",
            _random(diffusers.UNet2DConditionModel, sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            _steps((2, 4, 64, 64), "timestep", "sample", encoder_hidden_states=tensor(2, 77, 768)),
        ),
    ]
    return {entry.name: entry for entry in found}


def _in_units(call: Callable[[int], dict[str, Any]]) -> Callable[[int], dict[str, Any]]:
    """Calls with timesteps between 0 and 1."""

    def scaled(number: int) -> dict[str, Any]:
        given = call(number)
        return {**given, "timestep": given["timestep"] / 1000}

    return scaled


def _latents(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
