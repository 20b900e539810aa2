"""Generated kernels read weights in an order of their own: packed ones are never older than the weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt.ir.accuracy import relative_error

pytest.importorskip("tvm")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3, padding=1)
        self.wide, self.back = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        result: torch.Tensor = tokens + self.back(nn.functional.gelu(self.wide(tokens))) * t
        return result


def run(net: nn.Module) -> list[torch.Tensor]:
    """One trajectory of three steps."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return [net(torch.randn(2, 4, 8, 8, generator=generator), torch.tensor(t)) for t in (0.9, 0.5, 0.1)]


def in_place(net: Net) -> None:
    net.wide.weight.mul_(2)


def through_data(net: Net) -> None:
    net.wide.weight.data[7:].add_(1.0)  # counts in no version of the parameter, and leaves its first bytes


def through_numpy(net: Net) -> None:
    net.conv.weight.detach().numpy()[3] += 1.0


def other_memory(net: Net) -> None:
    net.back.weight.data = net.back.weight.data * 3


def other_parameter(net: Net) -> None:
    net.back.weight = nn.Parameter(net.back.weight * 3)


def loaded(net: Net) -> None:
    net.load_state_dict({name: 1.5 * value for name, value in net.state_dict().items()})


@pytest.mark.filterwarnings("error:graphopt")
@pytest.mark.parametrize("change", [in_place, through_data, through_numpy, other_memory, other_parameter, loaded])
def test_changed_weights(change: Callable[[Net], None]) -> None:
    torch.manual_seed(0)
    original, compiled = Net(), Net()
    compiled.load_state_dict(original.state_dict())
    graphopt.compile(compiled, target="tvm", roles={"x": "state", "t": "time"})
    before = run(compiled)
    for _ in range(2):
        with torch.no_grad():
            change(original)
            change(compiled)
        found = run(compiled)
        assert relative_error(run(original), found) < 1e-5
        assert relative_error(before, found) > 1e-3
