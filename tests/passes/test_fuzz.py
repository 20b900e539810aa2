"""Every pass on random graphs, alone and in a row; the stages of the last one, run in order, give the same bits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.ir.printer import dump, parse
from graphopt.ir.program import Program
from graphopt.ir.driver import run_pass
from graphopt.ir.rewrite import Pass
from graphopt.ir.stages import split
from graphopt.ir.verify import compare, evaluate, example_inputs
from graphopt.passes import PASSES
from graphopt.testing import check_pass, random_graph


@st.composite
def graphs(draw: st.DrawFn, size: int = 16) -> Program:
    return random_graph(lambda bound: draw(st.integers(0, bound - 1)), size)


def run_parts(program: Program, inputs: list[Any]) -> list[Any]:
    """Results of the parts of a Program, run one after the other."""
    known = dict(zip((entry.name for entry in program.inputs), inputs, strict=True))
    results: list[Any] = []
    for part in split(program):
        results = list(part.module()(*(known[name] for name in part.reads)))
        known |= {} if part.name == "step" else dict(zip(part.gives, results, strict=True))
    return results


@pytest.mark.parametrize("kind", PASSES)
@given(program=graphs())
def test_pass(kind: type[Pass], program: Program) -> None:
    check_pass(kind(), program, seeds=1)


@given(program=graphs())
def test_in_a_row(program: Program) -> None:
    after = program
    for kind in PASSES:
        if kind.accuracy == "bitwise":
            after = run_pass(kind(), after)
    inputs = example_inputs(program)
    assert compare(evaluate(program, inputs), evaluate(after, inputs), "bitwise") is None
    assert compare(evaluate(program, inputs), run_parts(after, inputs), "bitwise") is None


@given(program=graphs())
def test_reads_back(program: Program) -> None:
    assert dump(parse(dump(program))) == dump(program)


def test_a_seed_gives_one_graph() -> None:
    assert dump(random_graph(3)) == dump(random_graph(3)) != dump(random_graph(4))
