"""What `module:factory` finds in the tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

not_callable = 3


def unconditional() -> Any:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return DDPMPipeline(unet, DDIMScheduler())


def smallest() -> Any:
    """Captured in no time."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), attention_head_dim=4,
    )  # fmt: skip
    return DDPMPipeline(unet, DDIMScheduler())


def no_pipeline() -> Any:
    return SimpleNamespace()


def failing() -> Any:
    raise ValueError("there are no weights")
