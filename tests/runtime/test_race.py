"""How target auto measures: whole calls over successive times, served by the variant that is measured."""

from __future__ import annotations

import pytest
import torch

import graphopt
from graphopt.runtime.installed import Installed


class Denoiser(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.linear(sample) * timestep.reshape(-1, 1).to(sample.dtype).sin()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "timestep",
    [
        torch.tensor(7),
        torch.tensor(7).expand(2),
        torch.tensor([0.5]).expand(2),
        torch.tensor([7, 7]),
        torch.tensor([7]),
    ],
    ids=["number", "expanded", "expanded float", "plain", "one"],
)
def test_the_race_captures_nothing(timestep: torch.Tensor) -> None:
    torch.manual_seed(0)
    module = Denoiser()
    with torch.no_grad():
        graphopt.compile(module, target="auto")(torch.randn(2, 4), timestep)
    entry = module._compiled_call_impl
    assert isinstance(entry, Installed)
    assert len(entry.variants) == 1 and entry.variants[0].race is not None
