from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from graphopt.ir.driver import run_pipeline
from graphopt.ir.program import shape
from graphopt.ir.stages import REQUEST, STEP, placement
from graphopt.passes import SplitConcat
from graphopt.pipelines import generated
from graphopt.testing import Traced, check_pass, sketch, trace
from tests.goldens import Golden
from tests.passes.relations import joined, repeated

aten = torch.ops.aten

# Splitting pays however small the work.
EVERY = SplitConcat(flops_per_byte=1e-3, dispatch_bytes=0)
LINEAR = """
    cat = ops.aten.cat.default([x, c], -1)
    linear = ops.aten.linear.default(cat, w, b)
    return (linear,)
"""
CONV = """
    cat = ops.aten.cat.default([x, c], 1)
    conv2d = ops.aten.conv2d.default(cat, w, b, [1, 1], [1, 1])
    return (conv2d,)
"""


def linear(body: str = LINEAR, **inputs: str) -> Traced:
    table = {"x": "f32[4, 8]", "c": "condition f32[4, 6]", "w": "weight f32[5, 14]", "b": "weight f32[5]", **inputs}
    return sketch(body, **table)


def conv(body: str = CONV, **inputs: str) -> Traced:
    table = {"x": "f32[2, 4, 8, 8]", "c": "condition f32[2, 5, 8, 8]", "w": "weight f32[6, 9, 3, 3]",
             "b": "weight f32[6]", **inputs}  # fmt: skip
    return sketch(body, **table)


def test_linear(golden: Golden) -> None:
    before = linear()
    assert check_pass(EVERY, before.program).fired == 1
    golden(before.rewritten(EVERY).body)


def test_convolution(golden: Golden) -> None:
    before = conv()
    assert check_pass(EVERY, before.program).fired == 1
    golden(before.rewritten(EVERY).body)


def test_one_product_per_stage(golden: Golden) -> None:
    body = """
        inner = ops.aten.cat.default([x, c], -1)
        cat = ops.aten.cat.default([inner, t, w_part, y], -1)
        linear = ops.aten.linear.default(input=cat, weight=w, bias=b)
        return (linear,)
    """
    parts = {"t": "time f32[4, 3]", "y": "f32[4, 2]", "w_part": "weight f32[4, 1]", "w": "weight f32[5, 20]"}
    before = linear(body, **parts)
    assert check_pass(EVERY, before.program).fired == 1
    golden(before.rewritten(EVERY).body)


@given(
    widths=st.lists(st.tuples(st.sampled_from(["state", "time", "condition", "weight"]), st.integers(0, 4)), min_size=1,
                    max_size=5),
    kind=st.sampled_from(["f32", "f64", "bf16", "f16"]),
    bias=st.booleans(),
    spatial=st.integers(0, 3),
    batch=st.booleans(),
)  # fmt: skip
def test_any_concatenation(widths: list[tuple[str, int]], kind: str, bias: bool, spatial: int, batch: bool) -> None:
    total, inputs = sum(width for _, width in widths), {}
    for number, (role, width) in enumerate(widths):
        sizes = [4, width] if spatial == 0 else [*([2] if batch else []), width, *[5] * spatial]
        inputs[f"part{number}"] = f"{role} {kind}{sizes}"
    inputs["w"] = f"weight {kind}{[3, total, *[2] * spatial]}"
    inputs["b"] = f"weight {kind}[3]"
    dim = -1 - spatial
    layer = f"ops.aten.{'linear' if spatial == 0 else f'conv{spatial}d'}.default(cat, w{', b' if bias else ''})"
    names = ", ".join(name for name in inputs if name.startswith("part"))
    if total == 0 or (kind == "f16" and spatial):
        return
    program = sketch(
        f"cat = ops.aten.cat.default([{names}], {dim})\nresult = {layer}\nreturn (result,)", **inputs
    ).program
    stages = {role for role, width in widths if width}
    assert check_pass(EVERY, program, seeds=1).fired == (len(stages) > 1)


class Inpainting(torch.nn.Module):
    """The first convolution of a U-Net whose input has a mask and an image beside the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = torch.nn.Conv2d(9, 320, 3, padding=1)
        self.conv_out = torch.nn.Conv2d(320, 4, 3, padding=1)

    def forward(self, sample: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv_out(torch.nn.functional.silu(self.conv_in(sample)) * prompt)
        return result


@pytest.mark.parametrize("guided", [False, True])
def test_inpainting(guided: bool) -> None:
    traced = trace(Inpainting(), torch.randn(2, 9, 32, 32), torch.randn(2, 320, 1, 1), roles={"prompt": "condition"})
    program = repeated(traced.program, "sample") if guided else traced.program
    program = joined(program, "sample", {"state": 4, "condition": 5})
    after = run_pipeline(generated, program, strict=True)
    products = {
        shape(node)[1:2] + shape(node.args[0])[:2]: placement(node) for node in after.calls(aten.conv2d.default)
    }
    batch = 1 if guided else 2
    assert products[320, batch, 5] == REQUEST and products[320, batch, 4] == STEP


def test_kept_concatenation() -> None:
    checked = check_pass(EVERY, linear(LINEAR.replace("return (linear,)", "return (linear, cat)")).program)
    assert checked.fired == 1 and len(list(checked.program.calls(aten.cat.default))) == 1


def test_placements_are_kept() -> None:
    program = linear(x="condition f32[4, 8]", c="weight f32[4, 6]").program
    for node in program.calls():
        node.meta["placement"] = REQUEST
    after = check_pass(EVERY, program).program
    assert {placement(node) for node in after.calls()} == {REQUEST}


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (linear(c="f32[4, 6]"), "all parts belong to one stage"),
        (conv(c="f32[2, 5, 8, 8]"), "all parts belong to one stage"),
        (linear(w="condition f32[5, 14]"), "the weight is computed from inputs of the call"),
        (linear(b="f32[5]"), "the weight is computed from inputs of the call"),
        (linear(c="condition f64[4, 6]", w="weight f64[5, 14]", b="weight f64[5]"), "the concatenation casts some"),
        (
            linear(LINEAR.replace("-1", "0").replace(", b)", ")"), c="condition f32[2, 8]", w="weight f32[5, 8]"),
            "the parts lie along dimension 0, the layer sums over dimension 1",
        ),
        (linear(LINEAR.replace(", b)", ")"), w="weight f32[14]"), "the weight is a vector"),
        (
            conv(CONV.replace("[1, 1])", "[1, 1], [1, 1], 3)"), w="weight f32[6, 3, 3, 3]"),
            "the convolution has 3 groups",
        ),
    ],
)
def test_refusals(before: Traced, reason: str) -> None:
    checked = check_pass(EVERY, before.program)
    assert checked.fired == 0 and checked.reasons[0].startswith(reason)


def test_small_parts_stay() -> None:
    body = LINEAR.replace("[x, c]", "[x, c, y]")
    (reason,) = check_pass(SplitConcat(), linear(body, y="f32[4, 2]", w="weight f32[5, 16]").program).reasons
    assert reason.startswith("the step would be spared the work of moving ") and reason.endswith("costs 32928")


def test_symbolic_sizes() -> None:
    program = linear().program
    mode = program.placeholders[0].meta["val"].fake_mode
    mode.shape_env = ShapeEnv()
    size = mode.shape_env.create_unbacked_symint()
    (match,) = EVERY.find(program)
    with mode:
        match["source"].meta["val"] = torch.empty(size, 14)
    refusal = EVERY.legal(program, match)
    assert refusal is not None and refusal.reason == "a size is known only when the program runs"
