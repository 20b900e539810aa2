"""A Program that was kept is used again only where it would be captured again as it is."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import graphopt
from graphopt.capture.calls import CallTaker
from graphopt.compile import try_out
from graphopt.ir.program import Program
from graphopt.runtime.kept import Captures


class Mean(torch.nn.Module):
    """The mean over the rows of a weight, whose number the graph has baked in."""

    def __init__(self) -> None:
        super().__init__()
        self.w = _ones(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.w.T).sum(-1) / self.w.shape[0]


def _ones(*size: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(*size), requires_grad=False)


def _tried(module: torch.nn.Module, captures: Captures) -> torch.Tensor:
    try_out(module, (), (), captures)
    try:
        with torch.no_grad():
            result: torch.Tensor = module(torch.ones(2, 3))
        return result
    finally:
        graphopt.restore(module)


@pytest.mark.parametrize(
    "weight",
    [_ones(8, 3), torch.nn.Parameter(torch.ones(3, 4).T, requires_grad=False), _ones(4, 3)],
    ids=["shape", "strides", "values"],
)
def test_weights_of_another_kind_are_captured_again(weight: torch.nn.Parameter) -> None:
    module, captures = Mean(), Captures()
    assert _tried(module, captures).tolist() == [3.0, 3.0]
    (before,) = (kept for *_, kept in captures._kept.values())
    module.w = weight
    assert _tried(module, captures).tolist() == [3.0, 3.0]
    (after,) = (kept for *_, kept in captures._kept.values())
    assert (after is before) == (weight.shape == (4, 3) and weight.is_contiguous())


def test_another_role_or_name_is_another_program() -> None:
    module, captures, made = Mean(), Captures(), list[Any]()
    call = CallTaker(module.forward).take((torch.ones(2, 3),), {})

    def kept(role: Any, name: str) -> Any:
        def capture() -> Program:
            made.append((role, name))
            return Program(torch.fx.Graph(), (), {}, None, name, torch.nn.Module())

        return captures.of(module, call, {"x": role}, name, capture)

    first = kept("state", "mean")
    assert kept("condition", "mean") is not first
    assert kept("state", "other") is not first
    assert kept("state", "mean") is first
    assert made == [("state", "mean"), ("condition", "mean"), ("state", "other")]


def test_searches_have_a_door_of_their_own() -> None:
    assert not {"check", "captures"} & set(inspect.signature(graphopt.compile).parameters)
