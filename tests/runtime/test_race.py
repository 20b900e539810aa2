"""How target auto measures: whole calls over successive times, served by the variant that is measured."""

from __future__ import annotations

import statistics

import pytest
import torch

import graphopt
from graphopt.passes import Tabulate
from graphopt.runtime.installed import Installed
from graphopt.runtime.race import Race


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


def test_calls_of_the_race_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the report says of a stage is of the calls that were made: the race leaves neither counts nor entries."""
    monkeypatch.setattr(Race, "won", True)
    torch.manual_seed(0)
    module = Denoiser()
    graphopt.compile(module, pipeline=(Tabulate(),), target="auto")
    times = [torch.tensor(step) for step in (7, 5, 3, 1)]
    with torch.no_grad():
        for time in (*times, *times):
            module(torch.randn(2, 4), time)
    stage = graphopt.report(module).stage("Denoiser", "schedule")
    assert (stage.hits, stage.misses, stage.entries) == (4, 4, 4)


def test_the_ratio_is_within_its_interval() -> None:
    """On a busy machine the times drift: medians of each side alone come from different pairs."""
    times = [(1.0, 0.9), (1.1, 1.0), (2.0, 1.9), (2.0, 0.95), (3.0, 2.8), (1.0, 0.95), (2.2, 2.0)]
    race = Race.of(times)
    assert race.pairs == 7
    assert race.low <= race.ratio <= race.high
    assert race.ratio == sorted(b / a for a, b in times)[3]
    assert not race.low <= statistics.median(b for _, b in times) / statistics.median(a for a, _ in times) <= race.high
