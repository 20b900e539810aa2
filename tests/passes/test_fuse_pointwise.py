from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes import FusePointwise, PackWeights
from graphopt.testing import Traced, check_pass, random_graph, sketch, trace
from tests.goldens import Golden

PACK = PackWeights(min_flops=0)
HEAD = """
pack = ops.mkldnn._reorder_linear_weight.default(w, 4)
linear = ops.mkldnn._linear_pointwise.default(x, pack, b, 'none', [], '')
"""
NEEDS_BF16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no instructions for bfloat16"
)
ACTIVATIONS = {
    "sigmoid": torch.nn.Sigmoid(),
    "silu": torch.nn.SiLU(),
    "tanh": torch.nn.Tanh(),
    "gelu": torch.nn.GELU(),
    "gelu-tanh": torch.nn.GELU("tanh"),
}


class Residual(torch.nn.Module):
    """Two convolutions whose result is added to their input, on either side of the plus."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.left = left
        self.first = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.second = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.second(torch.sigmoid(self.first(x)))
        return x + hidden if self.left else hidden + x


def layer(rest: str, **inputs: str) -> Traced:
    table = {"x": "f32[4, 8]", "w": "weight f32[6, 8]", "b": "weight f32[6]", "y": "f32[4, 6]", **inputs}
    return sketch(HEAD + rest, **table)


def test_residual_block(golden: Golden) -> None:
    before = trace(Residual(left=True), torch.randn(2, 4, 5, 5)).rewritten(PACK)
    assert check_pass(FusePointwise(), before.program).fired == 2
    golden(before.rewritten(FusePointwise()).body)


def test_residual_on_the_right() -> None:
    before = trace(Residual(left=False), torch.randn(1, 4, 5, 5)).rewritten(PACK)
    assert check_pass(FusePointwise(), before.program).fired == 2


def test_sum_of_two_layers() -> None:
    rest = "other = ops.mkldnn._linear_pointwise.default(z, pack, b, 'none', [], '')\n"
    rest += "add = ops.aten.add.Tensor(linear, other)\nreturn (add,)"
    assert check_pass(FusePointwise(), layer(rest, z="f32[4, 8]").program).fired == 1


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("kind", [torch.float32, pytest.param(torch.bfloat16, marks=NEEDS_BF16)])
def test_every_function(name: str, kind: torch.dtype) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(7, 9), ACTIVATIONS[name]).to(kind)
    before = trace(model, torch.randn(3, 7, dtype=kind)).rewritten(PACK)
    assert check_pass(FusePointwise(), before.program).fired == 1


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 20),
    size=st.integers(3, 9),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    name=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_any_convolution(batch: int, channels: int, size: int, stride: int, bias: bool, name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, channels, 3, stride, 1, bias=bias), ACTIVATIONS[name])
    before = trace(model, torch.randn(batch, 3, size, size)).rewritten(PACK)
    assert check_pass(FusePointwise(), before.program).fired == 1


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("r = ops.aten.sigmoid.default(linear)\nreturn (r, linear)", "the layer's result is read elsewhere too"),
        ("a = ops.aten.add.Tensor(linear, y, alpha=2)\nreturn (a,)", "the addition scales its argument"),
        ("a = ops.aten.add.Tensor(linear, 2)\nreturn (a,)", "it adds a number, or the result to itself"),
        ("a = ops.aten.add.Tensor(linear, linear)\nreturn (a,)", "it adds a number, or the result to itself"),
        (
            "a = ops.aten.add.Tensor(linear, b)\nreturn (a,)",
            "it adds a torch.float32 tensor of shape (6,) to a torch.float32 of (4, 6)",
        ),
    ],
)
def test_refusals(rest: str, reason: str) -> None:
    checked = check_pass(FusePointwise(), layer(rest).program)
    assert checked.fired == 0 and checked.reasons == [reason]


def test_one_function_per_layer() -> None:
    checked = check_pass(
        FusePointwise(),
        layer("r = ops.aten.sigmoid.default(linear)\ns = ops.aten.tanh.default(r)\nreturn (s,)").program,
    )
    assert checked.fired == 1 and checked.reasons == ["the layer applies sigmoid already"]


@given(seed=st.integers(0, 10**6))
def test_random_graphs(seed: int) -> None:
    packed = check_pass(PACK, random_graph(seed), seeds=1).program
    check_pass(FusePointwise(), packed, seeds=1)


def test_stages_stay_apart() -> None:
    rest = "a = ops.aten.add.Tensor(linear, y)\nreturn (a,)"
    checked = check_pass(FusePointwise(), layer(rest, x="condition f32[4, 8]").program)
    assert checked.reasons == ["the layer could be kept from an earlier stage than the operation"]
