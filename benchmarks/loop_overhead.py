"""What a step costs around the model: the sampling function as it is against its replay.

    python -m benchmarks.loop_overhead

The model is a module that returns its input, so that guidance, scheduler and everything else that Python does is all
there is. Function and replay run in turn on fresh latents, in random order; figures are per step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.harness import race
from graphopt import pipelines
from graphopt.runtime.replay import Replay, Replays

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "DDIM": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "Euler": diffusers.EulerDiscreteScheduler,
    "DPM-Solver++ 2M": diffusers.DPMSolverMultistepScheduler,
}
LATENTS = {"image": (1, 4, 64, 64), "video": (1, 16, 21, 60, 104)}


class Same(torch.nn.Module):
    """A model that costs nothing."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor]:
        return (x,)


def sampler(scheduler: Any, steps: int, guidance: float = 5.0) -> Callable[[torch.Tensor], torch.Tensor]:
    """A sampling function with classifier-free guidance in one batch."""
    model = Same().eval()

    @torch.no_grad()
    def sample(latents: torch.Tensor) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        latents = latents * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            without, with_ = model(both, t)[0].chunk(2)
            noise = without + guidance * (with_ - without)
            latents = scheduler.step(noise, t, latents, return_dict=False)[0]
        return latents

    return sample


def measure(name: str, latent: str, steps: int, rounds: int) -> dict[str, Any]:
    """One row: operations and microseconds per step, before → after, and the interval of their ratio."""
    function = sampler(SCHEDULERS[name](), steps)
    fast = Replays(sampler(SCHEDULERS[name](), steps), pipelines.loop, strict=True)
    inputs = {k: torch.randn(LATENTS[latent], generator=torch.Generator().manual_seed(k)) for k in range(2)}
    for given in inputs.values():  # recorded, then compared with the function
        fast(given)
    (replay,) = fast.known.values()
    assert isinstance(replay, Replay)
    original, replayed = race({"function": function, "replay": fast}, lambda k: inputs[k % 2], rounds=rounds)
    return {
        "scheduler": name,
        "latent": list(LATENTS[latent]),
        "operations": [count / steps for count in replay.operations],
        "microseconds": [1e6 * timing.seconds / steps for timing in (original, replayed)],
        "ratio": [replayed.ratio, replayed.low, replayed.high],
        "rounds": rounds,
    }


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(name, latent, options.steps, options.rounds) for latent in LATENTS for name in SCHEDULERS]
    print("| latent | scheduler | operations per step | µs per step | of the function's time | 95 % interval |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        (was, now), (slow, fast), (ratio, low, high) = row["operations"], row["microseconds"], row["ratio"]
        print(
            f"| {row['latent']} | {row['scheduler']} | {was:.1f} → {now:.1f} | {slow:.0f} → {fast:.0f} "
            f"| {ratio:.3f} | {low:.3f} to {high:.3f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
