"""What rewrite 4 of wrong_padding{wrong='unet:conv2d_3'} does to unet at conv2d_3 (diffusers/models/resnet.py:LINE).

Written by graphopt bisect. Inputs are seeded values that show it.
It prints how far results are apart, and ends with exit code 1 when they differ.
"""

import math
import operator
import sys

import torch
from torch import device, inf, nan

ops = torch.ops
RESULTS = [  # before → after
    'conv2d_3 → conv2d_default_3',
]


def before(p_down_blocks_0_resnets_1_conv1_weight, p_down_blocks_0_resnets_1_conv1_bias, silu_4):
    # down_blocks.0.resnets.1.conv1  diffusers/models/resnet.py:LINE
    conv2d_3 = ops.aten.conv2d.default(silu_4, p_down_blocks_0_resnets_1_conv1_weight, p_down_blocks_0_resnets_1_conv1_bias, [1, 1], [1, 1])  # f32[1, 8, 8, 8]
    return (conv2d_3,)


def after(p_down_blocks_0_resnets_1_conv1_weight, p_down_blocks_0_resnets_1_conv1_bias, silu_4):
    # down_blocks.0.resnets.1.conv1  diffusers/models/resnet.py:LINE
    constant_pad_nd_default_3 = ops.aten.constant_pad_nd.default(silu_4, [2, 0, 1, 1])  # f32[1, 8, 10, 10]
    conv2d_default_3 = ops.aten.conv2d.default(constant_pad_nd_default_3, p_down_blocks_0_resnets_1_conv1_weight, p_down_blocks_0_resnets_1_conv1_bias, [1, 1], [0, 0], [1, 1], 1)  # f32[1, 8, 8, 8]
    return (conv2d_default_3,)


def seeded(size: list[int], dtype: torch.dtype, generator: torch.Generator, weight: bool = False) -> torch.Tensor:
    """Normal numbers (those of a weight scaled by its fan-in), integers from 0 to 7, or truth values."""
    if dtype.is_floating_point or dtype.is_complex:
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        return (values / max(1, values[:1].numel()) ** 0.5 if weight and values.ndim > 1 else values).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 8, size, generator=generator).to(dtype)


def laid(values: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """The same values, lying in memory as those of the model do."""
    once = values[tuple(slice(1 if step == 0 else None) for step in strides)]
    return torch.empty_strided(once.shape, strides, dtype=values.dtype).copy_(once).expand(values.shape)


def inputs():
    generator = torch.Generator().manual_seed(0)
    return {
        'p_down_blocks_0_resnets_1_conv1_weight': laid(seeded([8, 8, 3, 3], torch.float32, generator, weight=True), (72, 9, 3, 1)),  # weight
        'p_down_blocks_0_resnets_1_conv1_bias': laid(seeded([8], torch.float32, generator, weight=True), (1,)),  # weight
        'silu_4': laid(seeded([1, 8, 8, 8], torch.float32, generator), (512, 64, 8, 1)),  # state
    }


def main() -> int:
    given, differ = inputs(), False
    with torch.no_grad():
        results = []
        for function in (before, after):
            torch.manual_seed(0)
            results.append(function(**given))
    for name, old, new in zip(RESULTS, *results):
        if not torch.equal(old, new):
            differ = True
            off = (old.double() - new.double()).abs().max().item()
            print(f"{name}: off by up to {off:.3g} where values reach {old.double().abs().max().item():.3g}")
    print("before and after differ" if differ else "before and after give the same")
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
