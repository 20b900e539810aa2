"""``print(graphopt.report(x))``: what it says, and that it says it in one direction: how much faster compiled is."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import graphopt
from graphopt import Match, Pass, Program
from graphopt.runtime.installed import Race
from graphopt.runtime.report import _runs


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, ctx: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = x + self.inner(ctx)
        return mixed


@dataclass(frozen=True)
class Failing(Pass):
    def find(self, program: Program) -> list[Match]:
        raise ValueError("it cannot work")

    def rewrite(self, program: Program, match: Match) -> None: ...


def text(**options: Any) -> str:
    module = graphopt.compile(Two().eval(), target="eager", **options)
    with torch.no_grad():
        module(torch.zeros(2, 4), torch.zeros(2, 4))
    return str(graphopt.report(module))


def test_one_call_of_an_unknown_module() -> None:
    found = text()
    assert found.startswith("Two (Two): 1 call, 1 by graphopt\n")
    assert "inputs: x (state), ctx (state)" in found
    assert "roles={'ctx': 'condition'}" in found
    (step,) = [line for line in found.splitlines() if line.split()[0] == "step"]
    assert "eager" in step
    assert "hit" not in step


def test_roles_that_were_given() -> None:
    found = text(roles={"ctx": "condition"})
    assert "ctx (condition)" in found
    assert "hint" not in found


@pytest.mark.filterwarnings("ignore:graphopt. pass 'failing' was rolled back")
def test_a_pass_that_was_rolled_back() -> None:
    found = text(pipeline=(Failing(),))
    assert "pass failing was rolled back: pass 'failing' raised ValueError: it cannot work" in found


@pytest.mark.parametrize(
    ("low", "high", "median", "expected"),
    [
        (0.5, 0.8, 0.625, "runs compiled: 1.60 times as fast as the original (interval 1.25 to 2.00)"),
        (0.8, 1.25, 1.0, "no clear difference, so the original runs (interval 0.80 to 1.25)"),
        (1.25, 2.0, 1.6, "the original runs: compiled is 0.62 times as fast as the original (interval 0.50 to 0.80)"),
    ],
)
def test_a_race(low: float, high: float, median: float, expected: str) -> None:
    variant: Any = SimpleNamespace(wrong=None, race=Race(median, low, high, 9))
    assert _runs(variant) == expected
