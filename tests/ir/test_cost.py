from __future__ import annotations

import pytest
import sympy
import torch

from graphopt.capture.export import program_of
from graphopt.ir.cost import Cost, StageCost, foldable, node_cost, program_cost, stage_costs
from graphopt.testing import sketch


@pytest.mark.parametrize(
    ("line", "inputs", "flops", "moved"),
    [
        ("linear.default(x, w)", ("f32[2, 5, 8]", "f32[3, 8]"), 2 * 2 * 5 * 8 * 3, 4 * (80 + 24 + 30)),
        ("conv2d.default(x, w, None, [1, 1], [1, 1])", ("f32[2, 4, 6, 6]", "f32[8, 4, 3, 3]"),
         2 * 2 * 8 * 36 * 36, 4 * (288 + 288 + 576)),
        ("conv2d.default(x, w, None, [2, 2], [0, 0], [1, 1], 2)", ("f16[1, 4, 4, 4]", "f16[2, 2, 2, 2]"),
         2 * 8 * 8, 2 * (64 + 16 + 8)),
        ("matmul.default(x, w)", ("f32[2, 3, 4]", "f32[4, 5]"), 2 * 30 * 4, 4 * (24 + 20 + 30)),
        ("bmm.default(x, w)", ("f32[2, 3, 4]", "f32[2, 4, 5]"), 2 * 30 * 4, 4 * (24 + 40 + 30)),
        ("scaled_dot_product_attention.default(x, w, w)", ("f32[1, 2, 6, 4]", "f32[1, 2, 5, 4]"),
         2 * 2 * 6 * 5 * 8, 4 * (48 + 40 + 48)),
        ("add.Tensor(x, w)", ("f32[2, 3]", "f32[3]"), 6, 4 * (6 + 3 + 6)),
        ("addcmul.default(x, x, w)", ("f32[2, 3]", "f32[3]"), 12, 4 * (6 + 3 + 6)),
        ("transpose.int(x, 0, 1)", ("f32[2, 3]", "f32[3]"), 0, 0),
        ("clone.default(x)", ("f32[2, 3]", "f32[3]"), 0, 48),
        ("addmm.default(w, x, x)", ("f32[3, 3]", "f32[3]"), 2 * 27 + 9, 4 * (9 + 3 + 9)),
    ],
)  # fmt: skip
def test_of_an_operation(line: str, inputs: tuple[str, str], flops: int, moved: int) -> None:
    program = sketch(f"y = ops.aten.{line}\nreturn (y,)", x=inputs[0], w=f"weight {inputs[1]}").program
    (node,) = program.calls()
    assert node_cost(node) == Cost(flops, moved)


def test_by_stage() -> None:
    body = """
        fold = ops.aten.mul.Tensor(w, 2)  # f32[3, 3]; @weights
        key = ops.aten.linear.default(c, fold)  # f32[2, 3]; @request
        linear = ops.aten.linear.default(x, w)
        add = ops.aten.add.Tensor(linear, key)
        return (add,)
    """
    program = sketch(body, x="f32[2, 3]", c="condition f32[2, 3]", w="weight f32[3, 3]").program
    found = stage_costs(program)
    assert {name: stage.nodes for name, stage in found.items() if stage.nodes} == {
        "weights": 1,
        "request": 1,
        "step": 2,
    }
    assert found["request"].cost.flops == 36
    assert (found["request"].weight_bytes, found["step"].weight_bytes) == (36, 36)
    assert sum((stage.cost for stage in found.values()), Cost()) == program_cost(program)


def test_symbolic_batch() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    model = torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.SiLU())
    exported = torch.export.export(model, (torch.zeros(4, 8),), dynamic_shapes=({0: batch},)).run_decompositions({})
    program = program_of(exported, {"input": "state"}, ["input"], name="dynamic")
    linear = next(program.calls(torch.ops.aten.linear.default))
    flops = node_cost(linear).flops
    (symbol,) = flops.free_symbols
    assert isinstance(symbol, sympy.Symbol)
    assert flops == 48 * symbol
    assert program_cost(program).flops.subs(symbol, 2) == 2 * (48 + 3)


def test_what_can_be_folded() -> None:
    body = """
        folded = ops.aten.mul.Tensor(w, 2)  # f32[3, 3]; @weights
        left = ops.aten.mul.Tensor(folded, w)
        linear = ops.aten.linear.default(x, left)
        return (linear,)
    """
    program = sketch(body, x="f32[2, 3]", w="weight f32[3, 3]").program
    assert foldable(program) == StageCost(1, Cost(9, 3 * 36), 36)
