"""Errors of values: none where a pass is right, large behind what a wrong one did."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch

from graphopt.debug.history import Compilation
from graphopt.debug.measured import counterparts, errors
from graphopt.debug.viz.model import View, document, document_json
from graphopt.ir.accuracy import relative_error
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Match, Pass
from graphopt.ir.verify import example_inputs
from graphopt.passes import FoldConstants, MergeCommon, RemoveDead
from graphopt.testing import sketch
from tests.viz.conftest import compiled

aten = torch.ops.aten

BODY = """
first = ops.aten.sin.default(x)
again = ops.aten.sin.default(x)
layer = ops.aten.linear.default(first, w, b)
act = ops.aten.silu.default(layer)
side = ops.aten.cos.default(again)
out = ops.aten.add.Tensor(act, side)
return (out,)
"""


@dataclass(frozen=True)
class DropBias(Pass):
    """``linear(x, w, b)  →  linear(x, w)``: wrong."""

    def find(self, program: Program) -> Iterable[Match]:
        return (Match(node) for node in program.calls(aten.linear.default) if len(node.args) > 2)

    def rewrite(self, program: Program, match: Match) -> None:
        match.root.args = match.root.args[:2]
        program.touch(match.root)


@dataclass(frozen=True)
class Anew(Pass):
    """``silu(x)  →  x * sigmoid(x)``, by new nodes."""

    def find(self, program: Program) -> Iterable[Match]:
        return map(Match, program.calls(aten.silu.default))

    def rewrite(self, program: Program, match: Match) -> None:
        source = match.root.args[0]
        gate = program.call(aten.sigmoid.default, source, before=match.root)
        program.replace(match.root, program.call(aten.mul.Tensor, source, gate, before=match.root))


def made(*passes: Pass) -> tuple[Compilation, dict[str, float]]:
    program = sketch(BODY, x="f32[4, 8]", w="weight f32[8, 8]", b="weight f32[8]").program
    compilation = compiled(program, passes)
    return compilation, errors(compilation, example_inputs(compilation.captured))


def test_a_wrong_pass_shows_where_it_begins() -> None:
    _, found = made(RemoveDead(), MergeCommon(), DropBias(), FoldConstants())
    assert set(found) == {"first", "layer", "act", "side", "out"}  # `again` is `first` now
    assert found["first"] == found["side"] == 0.0
    assert min(found["layer"], found["act"], found["out"]) > 0.1


def test_right_passes_are_off_by_rounding() -> None:
    _, found = made(MergeCommon(), Anew())
    assert found["first"] == found["layer"] == found["side"] == 0.0
    assert found["out"] < 1e-6
    assert "act" not in found and "mul_tensor" not in found  # made anew


def test_a_result_that_was_made_anew_stands_for_the_captured_one() -> None:
    program = sketch("y = ops.aten.silu.default(x)\nreturn (y,)", x="f32[4, 8]").program
    compilation = compiled(program, [Anew()])
    ((old, new),) = counterparts(compilation)
    assert (old, new) == ("y", compilation.result.results[0].name)  # type: ignore[union-attr]
    assert errors(compilation, example_inputs(program))[new] < 1e-6


def test_the_document_has_them() -> None:
    compilation, found = made(DropBias())
    by_name = {node["versions"][-1]["name"]: node for node in document(compilation, View(errors=found))["nodes"]}
    assert by_name["layer"]["error"] == pytest.approx(found["layer"], rel=1e-2)
    assert by_name["first"]["error"] == 0.0 and "error" not in by_name["x"]
    plain = document(compilation)
    assert not plain["measured"] and not any("error" in node for node in plain["nodes"])
    data = json.loads(document_json(compilation, View(errors={**found, "out": math.inf})))
    assert next(node for node in data["nodes"] if node["versions"][0]["name"] == "out")["error"] == "infinite"


def test_relative_error() -> None:
    one, two = torch.tensor([1.0, -4.0]), torch.tensor([1.0, -5.0])
    assert relative_error(one, two) == pytest.approx(0.25)
    assert relative_error(one * 1e-9, two * 1e-9, least=1e-6) == pytest.approx(1e-3)
    assert relative_error(torch.tensor([1j]), torch.tensor([2j])) == pytest.approx(1.0)
    assert relative_error(torch.tensor([3, 4]), torch.tensor([3, 6])) == pytest.approx(0.5)
    assert relative_error(torch.tensor([True]), torch.tensor([False])) == pytest.approx(1.0)
    assert relative_error(one, one.double()) == math.inf
    assert relative_error(torch.empty(0), torch.empty(0)) == 0.0
