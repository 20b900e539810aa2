from __future__ import annotations

import pytest
import torch

from graphopt.ir.printer import dump
from graphopt.ir.program import bind, infer, remembering
from graphopt.ir.stages import SCHEDULE, STEP, check_placements, placement
from graphopt.testing import sketch

aten = torch.ops.aten
BODY = "add = ops.aten.add.Tensor(x, 1)  # f32[3]; @step\nmul = ops.aten.mul.Tensor(add, w)\nreturn (mul, add)"


def test_copy_is_independent() -> None:
    program = sketch(BODY, x="f32[3]", w="weight f32[3]").program
    before, copy = dump(program), program.copy()
    assert dump(copy) == before
    add, mul = copy.calls()
    add.meta["placement"] = frozenset[str]()
    mul.args = (add, 2.0)
    copy.constants["w"] = torch.zeros(3)
    assert dump(program) == before != dump(copy)
    assert not program.constants


def test_copy_shares_no_nodes() -> None:
    program = sketch(BODY, x="f32[3]", w="weight f32[3]").program
    copy = program.copy()
    assert not set(program.nodes) & set(copy.nodes)
    assert all(node.graph is copy.graph for node in copy.nodes)
    assert [node.name for node in copy.nodes] == [node.name for node in program.nodes]


def test_call_infers_and_inherits() -> None:
    program = sketch(BODY, x="f32[3]", w="weight f32[3]").program
    add, mul = program.calls()
    add.meta["source"], program.rule = "model.py:1", "some_pass"
    new = program.call(aten._to_copy.default, add, dtype=torch.float64, before=mul, like=add)
    assert new.meta["val"].dtype == torch.float64
    assert (new.meta["source"], new.meta["rules"]) == ("model.py:1", ("some_pass",))
    assert new.next is mul


def test_call_inherits_the_placement_where_the_stage_has_all_that_is_read() -> None:
    body = "add = ops.aten.add.Tensor(w, t)  # f32[3]; @schedule\nmul = ops.aten.mul.Tensor(add, x)\nreturn (mul,)"
    program = sketch(body, x="f32[3]", w="weight f32[3]", t="time f32[3]").program
    add, mul = program.calls()
    x, w, t = program.placeholders
    for reads, placed in (((add, t), SCHEDULE), ((w, 2), SCHEDULE), ((add, x), STEP), ((mul, w), STEP)):
        assert placement(program.call(aten.sub.Tensor, *reads, before=program.output, like=add)) == placed
    drawn = program.call(aten.rand_like.default, t, before=program.output, like=add)
    assert placement(drawn) == STEP  # a random number is drawn at every step
    check_placements(program)


def test_bind_fills_in_defaults() -> None:
    program = sketch(
        "sum_1 = ops.aten.sum.dim_IntList(x, [0], dtype=torch.float64)\nreturn (sum_1,)", x="f32[3]"
    ).program
    (node,) = program.calls()
    assert bind(node) == {"self": program.placeholders[0], "dim": [0], "keepdim": False, "dtype": torch.float64}


def test_inference_is_remembered_inside_and_fails_alike() -> None:
    program = sketch("y = ops.aten.sin.default(x)\nreturn (y,)", x="f32[2, 3]").program
    (sine,) = program.calls()
    with remembering():
        first = infer(sine)
        assert infer(sine) is first
        assert infer(program.call(torch.ops.aten.add.Tensor, sine, 1, before=program.output)).dtype == torch.float32
        assert program.call(torch.ops.aten.add.Tensor, sine, 1.0, before=program.output).meta["val"] is not first
        for _ in range(2):
            with pytest.raises(RuntimeError):
                program.call(torch.ops.aten.view.default, sine, [5], before=program.output)
    assert infer(sine) is not first
