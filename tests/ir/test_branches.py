from __future__ import annotations

from typing import Any

import pytest
import torch

from graphopt.ir.branches import independent
from graphopt.testing import sketch, trace
from tests.soundness import tiny


def denoised(module: torch.nn.Module, **call: Any) -> Any:
    return trace(module, **call, return_dict=False, roles={"timestep": "time"}).program


def test_a_u_net_and_a_transformer_compute_branches_independently() -> None:
    batch = {"timestep": torch.tensor([5, 5]), "encoder_hidden_states": torch.randn(2, tiny.TOKENS, tiny.WIDTH)}
    unet = denoised(tiny.unet(), sample=torch.randn(2, 4, 8, 8), **batch)
    assert independent(unet, 2) == {"sample", "timestep", "encoder_hidden_states"}
    dit = denoised(tiny.pixart().transformer, hidden_states=torch.randn(2, 4, 8, 8), **batch)
    assert independent(dit, 2) == {"hidden_states", "timestep", "encoder_hidden_states"}
    assert independent(dit, 3) == frozenset()


def test_what_all_branches_read_alike_stays_whole() -> None:
    unet = denoised(
        tiny.unet(), sample=torch.randn(2, 4, 8, 8), timestep=torch.tensor(5),
        encoder_hidden_states=torch.randn(2, tiny.TOKENS, tiny.WIDTH),
    )  # fmt: skip
    assert independent(unet, 2) == {"sample", "encoder_hidden_states"}


@pytest.mark.parametrize(
    "body",
    [
        "mean = ops.aten.mean.dim(x, [0])\nadd = ops.aten.add.Tensor(x, mean)\nreturn (add,)",
        "flip = ops.aten.flip.default(x, [0])\nadd = ops.aten.add.Tensor(x, flip)\nreturn (add,)",
        "roll = ops.aten.roll.default(x, [1], [0])\nreturn (roll,)",
        "flat = ops.aten.view.default(x, [1, 8])\nsum_1 = ops.aten.softmax.int(flat, 1)\n"
        "back = ops.aten.view.default(sum_1, [2, 4])\nreturn (back,)",
        "turned = ops.aten.transpose.int(x, 0, 1)\nmixed = ops.aten.mm.default(x, turned)\n"
        "out = ops.aten.mm.default(mixed, x)\nreturn (out,)",
        "first = ops.aten.select.int(x, 0, 0)\nadd = ops.aten.add.Tensor(x, first)\nreturn (add,)",
        "noise = ops.aten.rand_like.default(x)\nadd = ops.aten.add.Tensor(x, noise)\nreturn (add,)",
        "norm = ops.aten.linalg_vector_norm.default(x)\ndiv = ops.aten.div.Tensor(x, norm)\nreturn (div,)",
        "total = ops.aten.sum.dim_IntList(x, [0], True)\nwide = ops.aten.expand.default(total, [2, 4])\nreturn (wide,)",
        "sliced = ops.aten.slice.Tensor(x, 0, 0, 1)\ntwice = ops.aten.cat.default([sliced, sliced])\nreturn (twice,)",
        "w2 = ops.aten.mul.Tensor(w, 2)\nreturn (w2,)",
    ],
    ids=["mean", "flip", "roll", "softmax", "gram", "first row", "random", "norm", "sum", "one for both", "none"],
)
def test_branches_that_mix(body: str) -> None:
    assert independent(sketch(body, x="f32[2, 4]", w="weight f32[2, 4]").program, 2) == frozenset()


def test_rows_do_not_divide() -> None:
    assert independent(sketch("return (x,)", x="f32[3, 4]").program, 2) == frozenset()
