"""pytest examples/custom_pass, with the package installed."""

from __future__ import annotations

import pytest
import torch

from graphopt import plugins
from graphopt.testing import check_pass, sketch, trace
from graphopt_fuse_silu import FuseSilu


def swish(product: str = "mul.Tensor(x, sigmoid)", returned: str = "mul") -> str:
    return f"sigmoid = ops.aten.sigmoid.default(x)\nmul = ops.aten.{product}\nreturn ({returned},)"


@pytest.mark.parametrize("product", ["mul.Tensor(x, sigmoid)", "mul.Tensor(sigmoid, x)"])
@pytest.mark.parametrize("kind", ["f32", "f64", "bf16", "f16"])
def test_fires(product: str, kind: str) -> None:
    checked = check_pass(FuseSilu(), sketch(swish(product), x=f"{kind}[2, 3]").program)
    assert (checked.fired, [node.target for node in checked.program.calls()]) == (1, [torch.ops.aten.silu.default])


@pytest.mark.parametrize(
    ("returned", "kind", "reason"),
    [("mul, sigmoid", "f32", "the sigmoid is read elsewhere too"), ("mul", "i64", "silu takes no torch.int64")],
)
def test_refuses(returned: str, kind: str, reason: str) -> None:
    checked = check_pass(FuseSilu(), sketch(swish(returned=returned), x=f"{kind}[2, 3]").program)
    assert (checked.fired, checked.reasons) == (0, [reason])


def test_leaves_other_products_alone() -> None:
    assert check_pass(FuseSilu(), sketch(swish("mul.Tensor(sigmoid, 2)"), x="f32[3]").program).fired == 0


def test_a_model_that_spells_it_out() -> None:
    class Swish(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.inner(x)
            result: torch.Tensor = self.outer(hidden * torch.sigmoid(hidden))
            return result

    assert check_pass(FuseSilu(), trace(Swish(), torch.ones(2, 8)).program).fired == 1


def test_is_found_by_name() -> None:
    assert plugins.passes()["fuse_silu"] is FuseSilu
