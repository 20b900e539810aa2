"""``print(graphopt.report(x))``: what it says, and that it says it in one direction: how much faster compiled is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import graphopt
from graphopt import Match, Pass, Program
from graphopt.debug.statistics import PassRecord
from graphopt.runtime.race import Race
from graphopt.runtime.report import _pass_lines, _runs


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


def test_passes_with_what_they_saved_and_why_they_held_back() -> None:
    lines = [line.strip() for line in text(roles={"ctx": "condition"}).splitlines()]
    assert "hoist fired 1 time: saves 64 FLOP, 144 B of the step" in lines
    (step,) = [line for line in lines if line.startswith("step ")]
    assert step.split() == ["step", "eager", "1", "node", "8", "FLOP"]
    (kept,) = [line for line in lines if line.startswith("request ")]
    assert kept.endswith("0 hits, 1 miss; 1 entry of 32 B")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (PassRecord("a", "bitwise"), []),
        (PassRecord("a", "bitwise", fired=1), ["a fired 1 time: the step's work is the same"]),
        (
            PassRecord("a", "bitwise", 2, Counter({"it is read elsewhere": 3}), flops=(5e9, 4e9), bytes=(1000, 3000)),
            ["a fired 2 times: saves 1 GFLOP of the step; adds 2 kB to it", "a refused 3 times: it is read elsewhere"],
        ),
        (
            PassRecord("a", "bitwise", 1, bytes=(0, 2e6), once_bytes=(0, 3e6)),
            ["a fired 1 time: adds 2 MB to the step",
             "  of which 0 FLOP, 3 MB depend on weights alone: once per set of weights where fold_constants follows"],
        ),
        (
            PassRecord("a", "bitwise", 1, flops=("8*s0", "4*s0")),
            ["a fired 1 time: 8*s0 → 4*s0 FLOP"],
        ),
        (
            PassRecord("a", "bitwise", refusals=Counter({"1 term": 1, "22 term": 4, "shared": 2, "last": 1})),
            ["a refused 8 times: 5 × 1 to 22 term; 2 × shared; 1 more reason"],
        ),
    ],
)  # fmt: skip
def test_a_pass(record: PassRecord, expected: list[str]) -> None:
    assert _pass_lines(record) == expected


@pytest.mark.parametrize(
    ("low", "high", "median", "expected"),
    [
        (0.5, 0.8, 0.625, "runs compiled by tvm: 1.60 times as fast as the original (interval 1.25 to 2.00)"),
        (0.8, 1.25, 1.0, "no clear difference, so the original runs (interval 0.80 to 1.25)"),
        (
            1.25,
            2.0,
            1.6,
            "the original runs: compiled by tvm is 0.62 times as fast (interval 0.50 to 0.80)",
        ),
    ],
)
def test_a_race(low: float, high: float, median: float, expected: str) -> None:
    built = SimpleNamespace(targets=["eager", "tvm"])
    variant: Any = SimpleNamespace(wrong=None, race=Race(median, low, high, 9, 0.1), built=built)
    assert _runs(variant) == expected
