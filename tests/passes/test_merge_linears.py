from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.ir.program import bind
from graphopt.passes import MergeLinears
from graphopt.testing import Traced, check_pass, sketch, trace
from tests.goldens import Golden


class Attention(torch.nn.Module):
    """Self-attention as models write it: three projections, heads, softmax."""

    def __init__(self, width: int, heads: int, biases: tuple[bool, bool, bool]) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (torch.nn.Linear(width, width, bias=bias) for bias in biases)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def pair(middle: str = "", end: str = "return (ops_add,)", **inputs: str) -> Traced:
    table = {"x": "f32[4, 8]", "v": "weight f32[6, 8]", "w": "weight f32[6, 8]", **inputs}
    body = f"query = ops.aten.linear.default(x, v)\n{middle}key = ops.aten.linear.default(x, w)\n"
    return sketch(f"{body}ops_add = ops.aten.add.Tensor(query, key)\n{end}", **table)


def test_attention(golden: Golden) -> None:
    before = trace(Attention(8, 2, (True, True, True)), torch.randn(2, 5, 8))
    assert check_pass(MergeLinears(), before.program).fired == 1
    golden(before.rewritten(MergeLinears()).body)


def test_missing_bias(golden: Golden) -> None:
    before = trace(Attention(8, 2, (True, False, True)), torch.randn(2, 5, 8))
    assert check_pass(MergeLinears(), before.program).fired == 1
    golden(before.rewritten(MergeLinears()).body)


def test_readers_between_the_layers() -> None:
    checked = check_pass(MergeLinears(), pair(middle="half = ops.aten.mul.Tensor(query, 0.5)\n").program)
    assert checked.fired == 1


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 7),
    heads=st.integers(1, 3),
    size=st.integers(1, 8),
    biases=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    kind=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_attention(
    batch: int, tokens: int, heads: int, size: int, biases: tuple[bool, bool, bool], kind: torch.dtype
) -> None:
    model = Attention(heads * size, heads, biases).to(kind)
    before = trace(model, torch.randn(batch, tokens, heads * size, dtype=kind))
    assert check_pass(MergeLinears(), before.program).fired == 1


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (pair(w="condition f32[6, 8]"), "a weight is computed from inputs of the call"),
        (pair(end="return (ops_add, key)"), "the result leaves the program"),
        (pair(middle="later = ops.aten.mm.default(query, v)\n"), "a matrix product reads the result"),
        (pair(v="weight f32[8]", w="weight f32[8]"), "the weight is no matrix of known size"),
        (
            sketch(
                "query = ops.aten.linear.default(x, v)\nnew = ops.aten.mul.Tensor(v, 2)\n"
                "key = ops.aten.linear.default(x, new)\nsum = ops.aten.add.Tensor(query, key)\nreturn (sum,)",
                x="f32[4, 8]", v="weight f32[6, 8]",
            ),
            "a weight is computed after the first of the layers",
        ),
    ],
)  # fmt: skip
def test_refusals(before: Traced, reason: str) -> None:
    checked = check_pass(MergeLinears(), before.program)
    assert checked.fired == 0 and checked.reasons[0].startswith(reason)


def test_large_layers_stay() -> None:
    checked = check_pass(MergeLinears(max_flops=100), pair().program)
    assert checked.reasons == ["each layer has max_flops=100 or more and is at full speed alone"]


def test_dtypes_differ() -> None:
    program = pair().program
    match = next(iter(MergeLinears().find(program)))
    last = bind(match.nodes[-1])["weight"].meta
    with last["val"].fake_mode:
        last["val"] = last["val"].double()
    refusal = MergeLinears().legal(program, match)
    assert refusal is not None and refusal.reason == "the layers' weights have different dtypes"


def test_placements_stay_apart() -> None:
    program = pair().program
    next(program.calls(torch.ops.aten.linear.default)).meta["placement"] = frozenset({"state", "time"})
    assert not list(MergeLinears().find(program))
