"""Tiny models of diffusers as Programs, captured once per test run."""

from __future__ import annotations

from functools import cache

import diffusers
import torch

from graphopt.ir.program import Program
from graphopt.testing import trace


@cache
def unet() -> Program:
    """A U-Net with cross-attention: 2 levels of 8 and 16 channels."""
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return trace(
        model.eval(),
        torch.zeros(2, 4, 8, 8),
        torch.tensor(7),
        torch.zeros(2, 5, 8),
        return_dict=False,
        roles={"timestep": "time", "encoder_hidden_states": "condition"},
    ).program


@cache
def pixart() -> Program:
    """A diffusion transformer with two blocks of width 16."""
    model = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=12,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    return trace(
        model.eval(),
        hidden_states=torch.zeros(2, 4, 8, 8),
        timestep=torch.tensor([7, 7]),
        encoder_hidden_states=torch.zeros(2, 5, 12),
        encoder_attention_mask=torch.ones(2, 5),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
        roles={"timestep": "time", "encoder_hidden_states": "condition", "encoder_attention_mask": "condition"},
    ).program
