from __future__ import annotations

import torch

from graphopt.ir.pattern import Call, Var, match
from graphopt.testing import sketch

aten = torch.ops.aten


def test_variables_stand_for_one_thing() -> None:
    program = sketch(
        """
        a = ops.aten.mul.Tensor(x, x)
        b = ops.aten.mul.Tensor(x, y)
        c = ops.aten.transpose.int(x, 0, 1)
        d = ops.aten.transpose.int(c, 0, 1)
        e = ops.aten.transpose.int(c, 1, 0)
        return (a, b, d, e)
        """,
        x="f32[3, 3]",
        y="f32[3, 3]",
    ).program
    a, b, c, d, e = program.calls()
    square = Call(aten.mul.Tensor, Var("x"), Var("x"))
    assert match(square, a) == {"x": program.placeholders[0]}
    assert match(square, b) is None
    twice = Call(
        aten.transpose.int, Call(aten.transpose.int, Var("x"), Var("i"), Var("j"), name="inner"), Var("i"), Var("j")
    )
    assert match(twice, d) == {"x": program.placeholders[0], "i": 0, "j": 1, "inner": c}
    assert match(twice, e) is None
    assert match(twice, program.placeholders[0]) is None


def test_defaults_and_names_of_arguments() -> None:
    body = "a = ops.aten.add.Tensor(x, 2)\nb = ops.aten.add.Tensor(x, 2, alpha=3)\nreturn (a, b)"
    a, b = sketch(body, x="f32[3]").program.calls()
    plain = Call((aten.sub.Tensor, aten.add.Tensor), Var("x"), 2, alpha=1)
    assert match(plain, a) is not None
    assert match(plain, b) is None
    assert match(Call(aten.add.Tensor, Var("x"), Var("n", lambda n: n > 2)), a) is None
    assert match(Call(aten.add.Tensor, 2, Var("x")), a) is None  # a node is no number
    assert match(Call(aten.add.Tensor, *[Var(str(i)) for i in range(4)]), a) is None  # more arguments than there are
