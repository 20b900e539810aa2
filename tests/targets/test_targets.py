"""Targets: every one computes what the reference operators compute, and leaves the part it was given alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphopt
from graphopt.errors import TargetError
from graphopt.ir.driver import run_pipeline
from graphopt.ir.program import Program
from graphopt.ir.stages import Part, split
from graphopt.ir.verify import compare, evaluate, example_inputs
from graphopt.pipelines import bitwise, generated
from graphopt.targets import TARGETS, Eager, Inductor, Kernel, Target
from graphopt.targets.eager import _BUILTINS
from graphopt.testing import random_graph, trace


def run(program: Program, target: Target, inputs: list[Any]) -> list[Any]:
    """All stages of a Program in order, built by one target."""
    values = dict(zip((entry.name for entry in program.inputs), inputs, strict=True))
    with torch.no_grad():
        for part in split(program):
            arguments = [values[name] for name in part.reads]
            results = target.build(part, arguments)(*arguments)
            values.update(zip(part.gives, results, strict=False))
    return list(results)


@pytest.mark.parametrize("seed", range(6))
def test_eager_equals_the_reference_operators(seed: int) -> None:
    program = random_graph(seed, size=20)
    program = getattr(program, "program", program)
    inputs = example_inputs(program)
    placed = run_pipeline(bitwise, program, strict=True)
    assert compare(evaluate(program, inputs), run(placed, Eager(), inputs), "bitwise") is None


def network(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Reaches the functions that the eager target calls directly."""
    functional = torch.nn.functional
    y = functional.gelu(functional.linear(x, w, b), approximate="tanh") + functional.silu(x) * 0.5 - x / 3.0
    y = functional.layer_norm(y, (8,)).transpose(1, 2).unsqueeze(1).expand(-1, 2, -1, -1)
    y = functional.scaled_dot_product_attention(y, y, y).reshape(2, 8, 2, 4).permute(0, 2, 1, 3)
    left, right = torch.split(y, [3, 5], dim=2)
    y = torch.cat([right, left], 2).clone().view(2, 2, 8, 4)
    y = functional.conv2d(y, w[:4, :2].reshape(4, 2, 1, 1).expand(4, 2, 1, 1))
    return functional.group_norm(y, 2)


def test_functions_called_directly_give_the_same_bits() -> None:
    program = trace(network, torch.randn(2, 4, 8), torch.randn(8, 8), torch.randn(8)).program
    inputs = example_inputs(program)
    called = {node.target for node in program.calls()}
    missed = {str(target) for target in _BUILTINS.keys() - called}
    assert missed <= {"aten.reshape.default"}, "every direct call is exercised (exports write reshape as view)"
    assert compare(evaluate(program, inputs), run(program, Eager(), inputs), "bitwise") is None


def test_building_leaves_the_part_alone() -> None:
    program = trace(network, torch.randn(2, 4, 8), torch.randn(8, 8), torch.randn(8)).program
    (part,) = split(program)
    before = [node.target for node in part.graph.nodes]
    Eager().build(part, [])
    assert [node.target for node in part.graph.nodes] == before


@pytest.mark.slow
@pytest.mark.skipif(Inductor().unavailable(torch.device("cpu")) is not None, reason="needs a C++ compiler")
def test_inductor_is_as_accurate_as_the_original() -> None:
    program = trace(network, torch.randn(2, 4, 8), torch.randn(8, 8), torch.randn(8)).program
    inputs = example_inputs(program)
    after = run_pipeline(generated, program, strict=True)
    exact = evaluate(program, inputs, double=True)
    assert compare(evaluate(program, inputs), run(after, Inductor(), inputs), "rounding", exact) is None


class Broken(Target):
    """A target that cannot build anything."""

    name = "broken"

    def build(self, part: Part, examples: Any) -> Kernel:
        raise TargetError("no code for this", where=part.name)


def test_what_a_target_cannot_build_runs_eagerly_and_is_reported() -> None:
    model, x = torch.nn.Linear(4, 4).eval(), torch.randn(2, 4)
    with torch.no_grad():
        expected = model(x)
        graphopt.compile(model, target=Broken(), inputs=(x,), pipeline="bitwise")
        assert torch.equal(model(x), expected)
    variant = graphopt.report(model).modules[0].variants[0]
    assert {stage.target for stage in variant.stages} == {"eager"}
    assert "no code for this" in variant.notes[0]


def test_strict_raises_what_a_target_cannot_build() -> None:
    with pytest.raises(TargetError, match="no code for this"):
        graphopt.compile(torch.nn.Linear(4, 4).eval(), target=Broken(), inputs=(torch.randn(2, 4),), strict=True)


def test_registered_by_name() -> None:
    assert {name: target.name for name, target in TARGETS.items()} == {name: name for name in TARGETS}
