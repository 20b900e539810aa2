from __future__ import annotations

from collections.abc import Callable

import pytest

from graphopt.errors import UsageError
from graphopt.ir.driver import run_pass
from graphopt.ir.printer import dump, parse
from graphopt.ir.program import Program
from graphopt.ir.verify import evaluate, example_inputs
from graphopt.passes import FoldConstants, Hoist, Tabulate
from graphopt.testing import sketch
from tests.ir import models


@pytest.mark.parametrize("model", [models.unet, models.pixart])
def test_reads_back_what_it_wrote(model: Callable[[], Program]) -> None:
    text = dump(model())
    assert "# :: mid_block" in text or "# :: transformer_blocks.0" in text
    assert dump(parse(text)) == text


def test_placements_rules_and_numbers_read_back() -> None:
    traced = sketch(
        """
        full = ops.aten.full.default([2], -inf, dtype=torch.float32, device=device('cpu'))
        add = ops.aten.add.Tensor(c, full)
        transpose = ops.aten.transpose.int(w, 0, 1)
        mul = ops.aten.mul.Tensor(t, -1e-05)
        linear = ops.aten.linear.default(x, transpose)
        add_1 = ops.aten.add.Tensor(linear, add)
        add_2 = ops.aten.add.Tensor(add_1, mul)
        return (add_2, None)
        """,
        x="f32[3, 2] strides (1, 3)",
        c="condition f32[2]",
        t="time f32[]",
        w="weight f32[2, 2]",
    )
    program = traced.program
    for pass_ in (FoldConstants(), Hoist(), Tabulate()):
        program = run_pass(pass_, program)
    text = dump(program)
    assert "@request; by hoist" in text
    assert dump(parse(text)) == text


def test_nodes_without_provenance_after_nodes_with_it() -> None:
    program = sketch("a = ops.aten.sin.default(x)\nb = ops.aten.sin.default(a)\nreturn (b,)", x="f32[3]").program
    first, second = program.calls()
    first.meta |= {"module": "block.0", "source": "model.py:3"}
    text = dump(program)
    assert "source" not in second.meta
    assert dump(parse(text)) == text


def test_an_edited_dump_computes_the_edit() -> None:
    program = sketch("a = ops.aten.mul.Tensor(x, 2)\nreturn (a,)", x="f32[3]").program
    edited = parse(dump(program).replace("mul.Tensor(x, 2)", "mul.Tensor(x, 3)"))
    inputs = example_inputs(program)
    assert evaluate(edited, inputs)[0].equal(inputs[0] * 3)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("ops.aten.sin", "ops.aten.sinn", "cannot read a line"),
        ("sin.default(x)", "sin.default(y)", "cannot read a line"),
        ("INPUTS", "INPUT", "there is no INPUTS"),
        ("a = ops.aten.sin.default(x)", "a = b = 1", "a line must read"),
        ("ops.aten.sin.default(x)", "__import__('os').system('true')", "cannot read a line"),
    ],
)
def test_says_which_line_is_wrong(old: str, new: str, error: str) -> None:
    text = dump(sketch("a = ops.aten.sin.default(x)\nreturn (a,)", x="f32[3]").program)
    with pytest.raises(UsageError, match=error):
        parse(text.replace(old, new))
