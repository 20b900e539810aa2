from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from graphopt.ir.driver import run_pipeline
from graphopt.ir.stages import STEP
from graphopt.passes import FoldScales
from graphopt.pipelines import generated
from graphopt.testing import Traced, check_pass, random_graph, sketch, trace
from tests.goldens import Golden

aten = torch.ops.aten
EVERY = FoldScales(layer_norms=True)
BEFORE = """
    scaled = ops.aten.mul.Tensor(x, s)
    layer = ops.aten.linear.default(scaled, w, b)
    return (layer,)
"""
AFTER = """
    layer = ops.aten.linear.default(x, w, b)
    scaled = ops.aten.mul.Tensor(layer, s)
    return (scaled,)
"""
SHIFT = """
    norm = ops.aten.rms_norm.default(x, [8])
    shifted = ops.aten.add.Tensor(norm, s)
    layer = ops.aten.linear.default(shifted, w, b)
    return (layer,)
"""
CONV = BEFORE.replace("linear.default(scaled, w, b)", "conv2d.default(scaled, w, b, [1, 1], [1, 1], [1, 1], 1)")
CONV_AFTER = AFTER.replace("linear.default(x, w, b)", "conv2d.default(x, w, b, [1, 1], [1, 1], [1, 1], 2)")
NORM = """
    norm = ops.aten.layer_norm.default(x, [8], s, t)
    layer = ops.aten.linear.default(norm, w, b)
    return (layer,)
"""
RMS = NORM.replace("layer_norm.default(x, [8], s, t)", "rms_norm.default(x, [8], s)")


def linear(body: str = BEFORE, kind: str = "f32", **inputs: str) -> Traced:
    table = {
        "x": f"{kind}[4, 8]", "s": f"weight {kind}[8]", "t": f"weight {kind}[8]", "w": f"weight {kind}[6, 8]",
        "b": f"weight {kind}[6]",
    }  # fmt: skip
    return sketch(body, **{**table, **inputs})


def convolution(body: str = CONV, **inputs: str) -> Traced:
    table = {
        "x": "f32[2, 4, 6, 5]", "s": "weight f32[4, 1, 1]", "w": "weight f32[6, 4, 3, 3]", "b": "weight f32[6]",
    }  # fmt: skip
    return sketch(body, **{**table, **inputs})


class Block(torch.nn.Module):
    """Self-attention as T5 does it: a scale of its own before the projections, which have no bias."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.query, self.key, self.value = (torch.nn.Linear(8, 8, bias=n > 0) for n in range(3))
        for weight in norm.parameters():
            torch.nn.init.normal_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed) for layer in (self.query, self.key, self.value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


class ByHand(torch.nn.Module):
    """An RMS norm as T5 writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("kind", ["by-hand", "layer", "rms"])
def test_norm(kind: str, golden: Golden) -> None:
    norm = {"by-hand": ByHand(), "layer": torch.nn.LayerNorm(8), "rms": torch.nn.RMSNorm(8)}[kind]
    before = trace(Block(norm), torch.randn(2, 5, 8))
    assert check_pass(EVERY, before.program).fired == 1
    golden(before.rewritten(EVERY).body)


@pytest.mark.parametrize("case", ["before", "after", "shift"])
def test_linear(case: str, golden: Golden) -> None:
    before = linear(
        {"before": BEFORE, "after": AFTER, "shift": SHIFT}[case], **({"s": "weight f32[6]"} if case == "after" else {})
    )
    assert check_pass(FoldScales(), before.program).fired == 1
    golden(before.rewritten(FoldScales()).body)


@pytest.mark.parametrize("case", ["before", "after"])
def test_convolution(case: str, golden: Golden) -> None:
    grouped = {"s": "weight f32[1, 6, 1, 1]", "w": "weight f32[6, 2, 3, 3]"}
    before = convolution() if case == "before" else convolution(CONV_AFTER, **grouped)
    assert check_pass(FoldScales(), before.program).fired == 1
    golden(before.rewritten(FoldScales()).body)


def test_a_scale_and_a_shift() -> None:
    body = SHIFT.replace("(norm, s)", "(product, t)").replace(
        "shifted =", "product = ops.aten.mul.Tensor(norm, s)\n    shifted ="
    )
    checked = check_pass(FoldScales(), linear(body).program)
    assert checked.fired == 2
    (layer,) = checked.program.calls(aten.linear.default)
    assert layer.all_input_nodes[0].target is aten.rms_norm.default


@pytest.mark.parametrize(
    "change",
    [
        ("mul.Tensor(x, s)", "mul.Tensor(x, 0.125)"),
        ("mul.Tensor(x, s)", "mul.Tensor(x, -3)"),
        ("mul.Tensor(x, s)", "mul.Scalar(x, 0.3)"),
        ("mul.Tensor(x, s)", "div.Tensor(x, 3)"),
        ("mul.Tensor(x, s)", "div.Tensor(x, s)"),
        ("mul.Tensor(x, s)", "div.Scalar(x, 3)"),
        ("mul.Tensor(x, s)", "mul.Tensor(s, x)"),
        ("mul.Tensor(x, s)", "mul.Tensor(x, other=s)"),
        ("(scaled, w, b)", "(input=scaled, weight=w)"),
    ],
)
@pytest.mark.parametrize("kind", ["f32", "f64", "bf16"])
def test_spellings(change: tuple[str, str], kind: str) -> None:
    assert check_pass(FoldScales(), linear(BEFORE.replace(*change), kind).program).fired == 1


@pytest.mark.parametrize("size", ["[]", "[1]", "[1, 1]", "[1, 8]", "[8] strides (2,)"])
@pytest.mark.parametrize("body", [BEFORE, SHIFT, SHIFT.replace("add.T", "sub.T"), SHIFT.replace("norm, s", "s, norm")])
def test_vectors(size: str, body: str) -> None:
    assert check_pass(FoldScales(), linear(body, s=f"weight f32{size}").program).fired == 1


@given(
    rows=st.lists(st.integers(0, 4), max_size=3),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    after=st.booleans(),
    divide=st.booleans(),
    bias=st.booleans(),
    kind=st.sampled_from(["f32", "f64", "bf16"]),
)
def test_any_linear(rows: list[int], sizes: tuple[int, int], after: bool, divide: bool, bias: bool, kind: str) -> None:
    into, out = sizes
    body = AFTER if after else BEFORE
    body = body if bias else body.replace("w, b", "w")
    program = linear(
        body.replace("mul.", "div.") if divide else body, x=f"{kind}{[*rows, into]}", w=f"weight {kind}[{out}, {into}]",
        s=f"weight {kind}[{out if after else into}]", b=f"weight {kind}[{out}]",
    ).program  # fmt: skip
    assert check_pass(FoldScales(), program).fired == 1


@given(
    batch=st.booleans(),
    after=st.booleans(),
    groups=st.integers(1, 3),
    padding=st.integers(0, 1),
    stride=st.integers(1, 2),
    kernel=st.integers(1, 3),
    kind=st.sampled_from(["f32", "bf16"]),
)
def test_any_convolution(
    batch: bool, after: bool, groups: int, padding: int, stride: int, kernel: int, kind: str
) -> None:
    layer = f"conv2d.default({{}}, w, b, [{stride}], [{padding}], [1], {groups})"
    body = (
        AFTER.replace("linear.default(x, w, b)", layer.format("x"))
        if after
        else BEFORE.replace("linear.default(scaled, w, b)", layer.format("scaled"))
    )
    into, out = 2 * groups, groups
    program = sketch(
        body, x=f"{kind}{[*([2] if batch else []), into, 6, 5]}", s=f"weight {kind}[{out if after else into}, 1, 1]",
        w=f"weight {kind}[{out}, 2, {kernel}, {kernel}]", b=f"weight {kind}[{out}]",
    ).program  # fmt: skip
    checked = check_pass(FoldScales(), program)
    assert checked.fired == (after or groups == 1)
    assert checked.fired or checked.reasons == ["the convolution is grouped"]


@given(seed=st.integers(0, 1 << 20))
def test_any_graph(seed: int) -> None:
    check_pass(EVERY, random_graph(seed, 32), seeds=1)


def test_folded_layers_are_merged() -> None:
    before = trace(Block(torch.nn.RMSNorm(8)), torch.randn(2, 5, 8))
    after = run_pipeline(generated, before.program, strict=True)
    step = [node.target for node in after.calls() if "state" in node.meta.get("placement", STEP)]
    assert step.count(aten.linear.default) == 1


def test_a_shared_weight_serves_its_other_layer() -> None:
    body = BEFORE.replace("return (layer,)", "other = ops.aten.linear.default(x, w)\n    return (layer, other)")
    assert check_pass(FoldScales(), linear(body).program).fired == 1


def test_strided_results_keep_their_strides() -> None:
    body = "turned = ops.aten.transpose.int(x, 0, 1)\n" + BEFORE.replace("(x,", "(turned,").replace("\n    ", "\n")
    before = linear(body, x="f32[8, 4]").program
    after = check_pass(FoldScales(), before).program
    assert [n.meta["val"].stride() for n in before.results if n] == [n.meta["val"].stride() for n in after.results if n]


MORE = BEFORE.replace("return (layer,)", "{}\n    return (layer, {})")
READ = MORE.format("other = ops.aten.relu.default(scaled)", "other")
AS_WEIGHT = MORE.format("other = ops.aten.linear.default(x, scaled)", "other")
READ_AFTER = AFTER.replace("return (scaled,)", "other = ops.aten.relu.default(layer)\n    return (scaled, other)")
GROUPED = CONV.replace("[1, 1], 1)", "[1, 1], 2)")
CONV_SHIFT = """
    inner = ops.aten.conv2d.default(x, v)
    shifted = ops.aten.add.Tensor(inner, s)
    layer = ops.aten.conv2d.default(shifted, w, b, [1, 1], [{0}, {0}])
    return (layer,)
"""


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (linear(NORM), "layer_norm applies its weight and bias on the way"),
        (linear(MORE.format("", "scaled")), "the value in between leaves the program"),
        (linear(AFTER.replace("(scaled,)", "(scaled, layer)"), s="weight f32[6]"), "the value in between leaves"),
        (linear(READ), "the value in between is read elsewhere too"),
        (linear(AS_WEIGHT), "the value in between is read elsewhere too"),
        (linear(READ_AFTER, s="weight f32[6]"), "the value in between is read elsewhere too"),
        (linear(s="f32[8]"), "the scale or shift is computed from inputs of the call"),
        (linear(s="condition f32[8]"), "the scale or shift is computed from inputs of the call"),
        (linear(RMS, s="f32[8]"), "the scale or shift is computed from inputs of the call"),
        (linear(BEFORE.replace("(x, s)", "(x, x)")), "the scale or shift is computed from inputs of the call"),
        (linear(BEFORE.replace("mul.Tensor(x, s)", "div.Tensor(x, 0)")), "the number scales by nothing finite"),
        (linear(BEFORE.replace("(x, s)", "(x, 1e999)")), "the number scales by nothing finite"),
        (linear(BEFORE.replace("mul.Tensor(x, s)", "add.Tensor(x, 2)")), "the number scales by nothing finite"),
        (linear(SHIFT.replace("(norm, s)", "(norm, s, alpha=2)")), "the shift is scaled"),
        (linear(SHIFT.replace("(norm, s)", "(x, s)")), "an exact value, which the shift may cancel"),
        (linear(SHIFT.replace("rms_norm.default(x, [8])", "mul.Tensor(x, 2)")), "an exact value"),
        (linear(w="f32[6, 8]"), "a weight is computed from inputs of the call"),
        (linear(b="time f32[6]"), "a weight is computed from inputs of the call"),
        (linear(BEFORE.replace("w, b", "w"), w="weight f32[8]"), "a weight is no matrix, or a bias no vector"),
        (linear(b="weight f32[4, 6]"), "a weight is no matrix, or a bias no vector"),
        (linear(kind="f16"), "dtypes must agree, and not be float16: torch.float16"),
        (linear(x="bf16[4, 8]"), "dtypes must agree, and not be float16: torch.bfloat16, torch.float32"),
        (linear(s="weight f64[]"), "dtypes must agree, and not be float16: torch.float32, torch.float64"),
        (linear(x="i64[4, 8]"), "dtypes must agree, and not be float16: torch.float32, torch.int64"),
        (linear(s="weight f32[4, 8]"), "the scale or shift is no vector along the layer's channels"),
        (linear(s="weight f32[4, 1]"), "the scale or shift is no vector along the layer's channels"),
        (linear(x="f32[4, 1]"), "the scale or shift is no vector along the layer's channels"),
        (linear(x="f32[8]", s="weight f32[1, 8]"), "the scale or shift is no vector along the layer's channels"),
        (convolution(s="weight f32[5]"), "the scale or shift is no vector along the layer's channels"),
        (convolution(GROUPED, w="weight f32[6, 2, 3, 3]"), "the convolution is grouped"),
        (
            convolution(CONV_SHIFT.format(1), v="weight f32[4, 4, 1, 1]"),
            "the convolution pads with zeros, which the shift does not reach",
        ),
    ],
)
def test_refusals(before: Traced, reason: str) -> None:
    checked = check_pass(FoldScales(), before.program)
    assert checked.fired == 0 and checked.reasons[0].startswith(reason)


def test_a_shift_before_a_convolution() -> None:
    program = convolution(CONV_SHIFT.format(0), v="weight f32[4, 4, 1, 1]").program
    assert check_pass(FoldScales(), program).fired == 1


@pytest.mark.parametrize(
    "body",
    [
        NORM.replace(", s, t", ""),
        AFTER.replace("mul.Tensor(layer, s)", "layer_norm.default(layer, [6], s, s)"),
        AFTER.replace("mul.", "add."),
    ],
    ids=["bare-norm", "norm-after", "shift-after"],
)
def test_nothing_to_fold(body: str) -> None:
    assert not list(EVERY.find(linear(body, s="weight f32[6]").program))


@pytest.mark.parametrize(("operation", "fired"), [("mul", 1), ("add", 0), ("sub", 0), ("div", 0)])
def test_a_number_may_come_first(operation: str, fired: int) -> None:
    body = AFTER.replace("mul.Tensor(layer, s)", f"{operation}.Tensor(0.5, layer)")
    assert check_pass(EVERY, linear(body).program).fired == fired


def test_what_depends_on_weights_alone_is_folded_as_a_whole() -> None:
    assert not list(FoldScales().find(linear(x="weight f32[4, 8]").program))


def test_kept_weights_are_bounded() -> None:
    (reason,) = check_pass(FoldScales(max_bytes=191), linear().program).reasons
    assert reason == "with the folded ones, kept weights would exceed max_bytes=191"
    assert check_pass(FoldScales(max_bytes=192), linear().program).fired == 1


def test_placements_stay_apart() -> None:
    program = linear(x="condition f32[4, 8]").program
    next(program.calls()).meta["placement"] = frozenset({"condition"})
    assert check_pass(FoldScales(), program).reasons == ["the layer is computed in another stage"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("w", "a size is known only when the program runs"), ("s", "the scale or shift is no vector along the layer's")],
)
def test_symbolic_sizes(name: str, reason: str) -> None:
    program = linear().program
    match = next(iter(FoldScales().find(program)))
    node = next(node for node in program.placeholders if node.name == name)
    mode = node.meta["val"].fake_mode
    mode.shape_env = ShapeEnv()
    with mode:
        node.meta["val"] = torch.empty(mode.shape_env.create_unbacked_symint(), *node.meta["val"].shape[1:])
    refusal = FoldScales().legal(program, match)
    assert refusal is not None and refusal.reason.startswith(reason)
