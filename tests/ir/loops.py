"""Recorded trajectories of diffusers' schedulers around a tiny denoiser, with the tensors that occurred."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch
from torch import fx

from graphopt.capture.loop import Recording, record
from graphopt.ir.loop import LoopProgram

GUIDANCE = 3.0


class Denoiser(torch.nn.Module):
    """A convolution, shifted by time and condition."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(channels, 4, 3, padding=1)
        self.requires_grad_(False)

    def forward(self, sample: Any, timestep: Any, prompt: Any) -> Any:
        return self.layer(sample).tanh() + (timestep / 1000 + prompt.mean(1)).reshape(-1, 1, 1, 1)


class Keeping(Recording):
    """A recording that also keeps a copy of every tensor, by its node."""

    def __init__(self, names: Any = None, **options: Any) -> None:
        super().__init__(names, **options)
        self.tensors: dict[fx.Node, torch.Tensor] = {}

    def _name(self, node: fx.Node, tensor: torch.Tensor) -> None:
        super()._name(node, tensor)
        self.tensors[node] = tensor.detach().clone()


@cache
def trajectory(name: str, steps: int = 6, *, guided: bool = True, **options: Any) -> tuple[LoopProgram, Any, Any]:
    """The loop as a pipeline of diffusers runs it, the scheduler after it, and the tensors by node."""
    known = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = getattr(diffusers, name)(**known, **options)
    scheduler.set_timesteps(steps)
    model, prompts = Denoiser(), torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    more = {"generator": generator} if "Ancestral" in name or name == "LCMScheduler" else {}
    x = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    with torch.no_grad(), record_keeping() as recording:
        for time in scheduler.timesteps:
            batch = scheduler.scale_model_input(torch.cat([x] * 2) if guided else x, time)
            output = model(batch, time, prompts if guided else prompts[:1])
            if guided:
                plain, conditional = output.chunk(2)
                output = plain + GUIDANCE * (conditional - plain)
            x = scheduler.step(output, time, x, **more).prev_sample
    return recording.program(name), scheduler, recording.tensors


def record_keeping() -> Any:
    """As `record`, of a recording that keeps tensors."""
    return record(kind=Keeping)
