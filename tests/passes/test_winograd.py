from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import VerificationError
from graphopt.ir.printer import dump, parse
from graphopt.passes import Winograd
from graphopt.testing import Traced, check_pass, check_sequence, sketch, trace
from tests.goldens import Golden

EVERY = Winograd(min_gain=0.0)
CONV = "conv2d = ops.aten.conv2d.default(x, w, b, {options})\nreturn (conv2d,)"


def conv(options: str = "[1, 1], [1, 1]", **inputs: str) -> Traced:
    given = {"x": "f32[2, 16, 8, 8]", "w": "weight f32[20, 16, 3, 3]", "b": "weight f32[20]", **inputs}
    return sketch(CONV.format(options=options), **given)


class Block(torch.nn.Module):
    """Three convolutions, of which one is no match, with what lies between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(32, 64, 3, padding=1)
        self.norm = torch.nn.GroupNorm(4, 64)
        self.second = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.down = torch.nn.Conv2d(64, 8, 3, 2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        hidden = hidden + self.second(torch.nn.functional.silu(self.norm(hidden)))
        result: torch.Tensor = self.down(hidden)
        return result


def test_block(golden: Golden) -> None:
    before = trace(Block(), torch.randn(2, 32, 16, 16))
    checked = check_pass(Winograd(), before.program)
    assert checked.fired == 2
    assert checked.reasons == ["the stride is [2, 2]"]
    golden(Traced(checked.program).body)


def test_numbers_that_are_not_finite_spread_over_tiles_as_declared() -> None:
    undeclared: Any = dataclass(frozen=True)(type("Undeclared", (Winograd,), {"spreads": False}))
    program = conv(x="f32[1, 1, 24, 24]", w="weight f32[4, 1, 3, 3]", b="weight f32[4]").program
    assert check_sequence([EVERY], program, seed=1).fired == {"winograd": 1}
    with pytest.raises(VerificationError, match="result 0 is not finite where the original is"):
        check_sequence([undeclared(min_gain=0.0)], program, seed=1)


def test_dump_reads_back() -> None:
    after = check_pass(EVERY, conv().program).program
    assert dump(parse(dump(after))) == dump(after)


@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(3, 13), st.integers(3, 13)),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 13)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    tile=st.sampled_from([2, 4]),
    bias=st.booleans(),
)
def test_any_convolution(
    batch: int, size: tuple[int, int], channels: tuple[int, int], padding: tuple[int, int], tile: int, bias: bool
) -> None:
    layer = torch.nn.Conv2d(*channels, 3, padding=padding, bias=bias)
    program = trace(layer, torch.randn(batch, channels[0], *size)).program
    assert check_pass(Winograd(tiles=(tile,), min_gain=0.0), program).fired == 1


@pytest.mark.parametrize(
    ("options", "inputs", "reason"),
    [
        ("[2, 1], [1, 1]", {}, "the stride is [2, 1]"),
        ("[1, 1], [1, 1], [2, 2]", {}, "the dilation is [2, 2]"),
        ("[1, 1], [1, 1], [1, 1], 4", {"w": "weight f32[20, 4, 3, 3]"}, "it has 4 groups"),
        ("[1, 1], [0, 0]", {"w": "weight f32[20, 16, 1, 1]"}, "the filter is 1 × 1, not 3 × 3 over images"),
        ("[1, 1], [1, 1]", {"x": "f32[16, 8, 8]"}, "the filter is 3 × 3, not 3 × 3 over images"),
        ("[1, 1], [1, 1]", {"w": "condition f32[20, 16, 3, 3]"}, "the weight is computed from inputs of the call"),
        (
            "[1, 1], [1, 1]",
            {"x": "f64[2, 16, 8, 8]", "w": "weight f64[20, 16, 3, 3]", "b": "weight f64[20]"},
            "the dtype is torch.float64",
        ),
    ],
)
def test_refusals(options: str, inputs: dict[str, str], reason: str) -> None:
    checked = check_pass(EVERY, conv(options, **inputs).program)
    assert checked.fired == 0
    assert checked.reasons[0].startswith(reason)


def tiles(program: Any) -> list[int]:
    return [node.args[4] for node in program.calls(torch.ops.graphopt.winograd_conv2d.default)]


def test_few_tiles_of_an_image_decide_between_sizes() -> None:
    large = conv(x="f32[2, 64, 64, 64]", w="weight f32[64, 64, 3, 3]", b="weight f32[64]")
    small = conv(x="f32[2, 512, 8, 8]", w="weight f32[512, 512, 3, 3]", b="weight f32[512]")
    assert tiles(large.rewritten(Winograd()).program) == [4]
    assert tiles(small.rewritten(Winograd()).program) == [2]


def test_what_gains_too_little_stays() -> None:
    tiny = conv(x="f32[1, 512, 2, 2]", w="weight f32[512, 512, 3, 3]", b="weight f32[512]")
    (reason,) = check_pass(Winograd(), tiny.program).reasons
    assert reason.endswith("times as cheap, less than min_gain=1.2")


def test_a_large_transformed_input_is_refused() -> None:
    convolution = conv(w="weight f32[64, 16, 3, 3]", b="weight f32[64]")
    checked = check_pass(Winograd(min_gain=0.0, max_workspace=1000), convolution.program)
    assert checked.fired == 0
    assert checked.reasons == ["its input takes 18432 bytes when transformed, of max_workspace=1000"]
