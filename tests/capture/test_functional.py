"""The functional graph is the one that torch makes by running the whole graph once more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import fx
from torch.utils._pytree import tree_leaves

from graphopt.capture.functional import functional
from graphopt.ir.effects import METADATA_CHECKS


class Of(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.randn(4, 4))

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(self.weight, *tensors)


def described(graph: fx.Graph) -> list[str]:
    """Nodes with names, arguments and what is known of their values; without the checks that graphopt drops."""
    found = []
    for node in graph.nodes:
        if node.target not in METADATA_CHECKS:
            values = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)]
            known = [(tuple(value.shape), value.stride(), value.dtype) for value in values]
            found.append(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs} {known}")
    return found


def exported(module: torch.nn.Module, *inputs: Any, **named: Any) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, named, strict=False)


def check(program: torch.export.ExportedProgram) -> fx.Graph:
    """The graph, compared with torch's."""
    made = functional(program)
    assert made is not None
    made.lint()
    assert described(made) == described(program.run_decompositions({}).graph)
    return made


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "views": lambda w, x: (x.reshape(-1), x.flatten(0, 1), x.transpose(0, 1).reshape(-1), x.unflatten(1, (2, 2))),
    "several results": lambda w, x: [part * 2 for part in x.chunk(2, dim=1)] + [x.unbind(0)[0]],
    "a result nobody reads": lambda w, x: x.chunk(2)[1] + x.split(1)[0].sum(),
    "nothing to do": lambda w, x: x.to(torch.float32).contiguous() + F.dropout(x, 0.5, training=False),
    "casts": lambda w, x: (x.double().float() @ w).type_as(x) + x.half(),
    "composite operators that stay": lambda w, x: F.scaled_dot_product_attention(x[None], w[None], w[None]) @ w,
    "the argument itself": lambda w, x: x.to(torch.float32),
    "a weight": lambda w, x: w.reshape(2, 8),
    "one operator twice": lambda w, x: x.reshape(-1).reshape(4, 4).reshape(2, 8),
    "numbers": lambda w, x: torch.where(x > 0, x, 1.0).narrow(0, 1, 2).mT,
    "normed": lambda w, x: F.layer_norm(x, (4,), weight=w[0]) + F.group_norm(x[None], 2).squeeze(0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_torchs(name: str) -> None:
    check(exported(Of(FUNCTIONS[name]), torch.randn(4, 4)))


@given(steps=st.lists(st.sampled_from(["flatten", "chunk", "to", "contiguous", "t", "add", "dropout"]), max_size=8))
def test_sequences_are_torchs(steps: list[str]) -> None:
    does: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "flatten": lambda x: x.flatten().unflatten(0, (4, 4)),
        "chunk": lambda x: torch.cat(x.chunk(2)[::-1]),
        "to": lambda x: x.to(torch.float64).to(torch.float32),
        "contiguous": lambda x: x.contiguous(),
        "t": lambda x: x.t(),
        "add": lambda x: x + x.flip(0),
        "dropout": lambda x: F.dropout(x, training=False),
    }

    def function(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for step in steps:
            x = does[step](x)
        return x

    check(exported(Of(function), torch.randn(4, 4)))


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: x.clone().add_(1),
        lambda w, x: torch.zeros(4, 4).copy_(x) + 1,
        lambda w, x: F.relu(x + 1, inplace=True),
        lambda w, x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]),  # the constant is copied and detached in place
    ],
)
def test_where_something_is_written_torch_does_it(function: Callable[..., Any]) -> None:
    assert functional(exported(Of(function), torch.randn(4, 4))) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: F.batch_norm(x[None], w[0].detach().clone(), w[1].detach().clone(), training=True),
        lambda w, x: F.dropout2d(x[None], training=True),
        lambda w, x: F.alpha_dropout(x, training=True),
    ],
    ids=["batch_norm", "dropout2d", "alpha_dropout"],
)
def test_operators_made_of_some_that_write_are_torchs(function: Callable[..., Any]) -> None:
    state = torch.random.get_rng_state()
    program = exported(Of(function), torch.randn(4, 4))
    made = functional(program)
    if made is not None:
        assert not any(getattr(node.target, "_schema", None) and node.target._schema.is_mutable for node in made.nodes)
        assert described(made) == described(program.run_decompositions({}).graph)
    torch.random.set_rng_state(state)


def test_where_a_size_is_not_known_torch_does_it() -> None:
    rows = torch.export.Dim("rows", min=2, max=64)
    module = Of(lambda w, x: x.reshape(-1))
    program = torch.export.export(module, (torch.randn(6, 4),), dynamic_shapes=(({0: rows},),))
    assert functional(program) is None


def test_models() -> None:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    check(exported(unet, torch.randn(2, 4, 8, 8), torch.tensor(3), torch.randn(2, 5, 8)))
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, in_channels=4, out_channels=8
    )
    call = {"timestep": torch.tensor([3, 3]), "class_labels": torch.tensor([1, 2])}
    check(exported(dit, torch.randn(2, 4, 8, 8), **call))
