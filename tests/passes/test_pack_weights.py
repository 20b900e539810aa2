from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import PassError
from graphopt.ir.layout import refresh
from graphopt.ir.printer import dump, parse
from graphopt.passes import PackWeights
from graphopt.testing import Traced, check_pass, sketch, trace
from tests.goldens import Golden

EVERY = PackWeights(min_flops=0)
LINEAR = "linear = ops.aten.linear.default(x, w, b)\nreturn (linear,)"
CONV = "conv2d = ops.aten.conv2d.default(x, w, b, [1, 1], [1, 1])\nreturn (conv2d,)"

BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # oneDNN packs it where the CPU has instructions for it


def linear(**inputs: str) -> Traced:
    return sketch(LINEAR, **{"x": "f32[4, 8]", "w": "weight f32[6, 8]", "b": "weight f32[6]", **inputs})


class Upsampler(torch.nn.Module):
    """Convolutions, a group norm and an attention-like flattening: layouts change in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.project = torch.nn.Linear(8, 8)
        self.last = torch.nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.nn.functional.silu(self.norm(self.first(x)))
        batch, channels, height, width = hidden.shape
        flat = hidden.view(batch, channels, height * width)
        tokens = self.project(hidden.permute(0, 2, 3, 1).reshape(batch, -1, channels))
        hidden = hidden + tokens.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
        return self.last(hidden + flat.view(hidden.shape)), hidden


def test_linear(golden: Golden) -> None:
    checked = check_pass(EVERY, linear().program)
    assert checked.fired == 1
    golden(Traced(checked.program).body)


def test_layouts(golden: Golden) -> None:
    before = trace(Upsampler(), torch.randn(2, 4, 6, 5))
    checked = check_pass(EVERY, before.program)
    assert checked.fired == 3
    old, new = ([node.meta["val"].stride() for node in p.results if node] for p in (before.program, checked.program))
    assert old == new
    golden(before.rewritten(EVERY).body)


def test_results_keep_their_strides_when_run() -> None:
    before = trace(Upsampler(), torch.randn(2, 4, 6, 5)).program
    after = check_pass(EVERY, before).program
    inputs = [torch.randn(node.meta["val"].shape) for node in before.placeholders]
    with torch.no_grad():
        pairs = zip(before.module()(*inputs), after.module()(*inputs), strict=True)
    assert all(old.stride() == new.stride() for old, new in pairs)


def test_dump_reads_back() -> None:
    after = check_pass(EVERY, trace(Upsampler(), torch.randn(2, 4, 6, 5)).program).program
    again = parse(dump(after))
    assert [n.meta["val"].stride() for n in again.calls() if "val" in n.meta and hasattr(n.meta["val"], "stride")] == [
        n.meta["val"].stride() for n in after.calls() if hasattr(n.meta["val"], "stride")
    ]


@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    columns=st.integers(1, 20),
    outputs=st.integers(1, 20),
    bias=st.booleans(),
    kind=st.sampled_from(["f32", "bf16"] if BF16 else ["f32"]),
)
def test_any_linear(rows: list[int], columns: int, outputs: int, bias: bool, kind: str) -> None:
    text = LINEAR if bias else LINEAR.replace(", b)", ")")
    weights = {"w": f"weight {kind}[{outputs}, {columns}]", "b": f"weight {kind}[{outputs}]"}
    assert check_pass(EVERY, sketch(text, x=f"{kind}{[*rows, columns]}", **weights).program).fired == 1


@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 3),
    bias=st.booleans(),
    kind=st.sampled_from([torch.float32, torch.bfloat16] if BF16 else [torch.float32]),
)
def test_any_convolution(
    batch: int, size: tuple[int, int], channels: tuple[int, int], kernel: int, stride: int, padding: int, dilation: int,
    groups: int, bias: bool, kind: torch.dtype,
) -> None:  # fmt: skip
    incoming, outgoing = (count * groups for count in channels)
    layer = torch.nn.Conv2d(incoming, outgoing, kernel, stride, padding, dilation, groups, bias, dtype=kind)
    model = torch.nn.Sequential(layer, torch.nn.SiLU(), torch.nn.Flatten(2))
    assert check_pass(EVERY, trace(model, torch.randn(batch, incoming, *size, dtype=kind)).program).fired == 1


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"x": "f64[4, 8]", "w": "weight f64[6, 8]", "b": "weight f64[6]"}, "the dtype is torch.float64"),
        ({"w": "condition f32[6, 8]"}, "the weight is computed from inputs of the call"),
    ],
)
def test_refusals(inputs: dict[str, str], reason: str) -> None:
    checked = check_pass(EVERY, linear(**inputs).program)
    assert checked.fired == 0 and checked.reasons[0].startswith(reason)


def test_a_vector_is_no_matrix() -> None:
    program = sketch(
        "linear = ops.aten.linear.default(x, w)\nreturn (linear,)", x="f32[4, 8]", w="weight f32[8]"
    ).program
    assert check_pass(EVERY, program).reasons == ["the weight is a vector"]


def test_small_layers_stay() -> None:
    checked = check_pass(PackWeights(), linear().program)
    assert checked.reasons == ["384 FLOPs, fewer than min_flops=2097152: the call takes the time"]


def test_no_batch_dimension() -> None:
    inputs = {"x": "f32[3, 8, 8]", "w": "weight f32[6, 3, 3, 3]", "b": "weight f32[6]"}
    assert check_pass(EVERY, sketch(CONV, **inputs).program).reasons == ["the convolution has no batch dimension"]


def test_symbolic_sizes() -> None:
    program = linear().program
    mode = program.placeholders[0].meta["val"].fake_mode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode.shape_env = ShapeEnv()
    size = mode.shape_env.create_unbacked_symint()
    match = next(iter(EVERY.find(program)))
    with mode:
        program.placeholders[0].meta["val"] = torch.empty(size, 8)
    refusal = EVERY.legal(program, match)
    assert refusal is not None and refusal.reason == "a size is known only when the program runs"


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert check_pass(EVERY, linear().program).reasons == ["this build of torch has no oneDNN"]


def test_bfloat16_needs_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    checked = check_pass(EVERY, linear(x="bf16[4, 8]", w="weight bf16[6, 8]", b="weight bf16[6]").program)
    assert checked.reasons == ["this CPU has no instructions for bfloat16"]


def test_other_devices_stay() -> None:
    program = linear().program
    for node in program.graph.nodes:
        if "val" in node.meta:
            with node.meta["val"].fake_mode:
                node.meta["val"] = torch.empty(node.meta["val"].shape, device="meta")
    match = next(iter(EVERY.find(program)))
    refusal = EVERY.legal(program, match)
    assert refusal is not None and refusal.reason == "the layer runs on meta; oneDNN packs for the CPU"


def test_readers_of_strides_are_left_alone() -> None:
    body = """
        conv2d = ops.aten.conv2d.default(x, w, b, [1, 1], [1, 1])
        rows = ops.aten.as_strided.default(conv2d, [2, 6], [384, 1])
        return (rows,)
    """
    program = sketch(body, x="f32[2, 3, 8, 8]", w="weight f32[6, 3, 3, 3]", b="weight f32[6]").program
    with pytest.raises(PassError, match="reads the strides"):
        check_pass(EVERY, program)


@pytest.mark.parametrize(
    "result",
    [
        "ops.aten.permute.default(conv2d, [0, 2, 1, 3])",
        "ops.aten.slice.Tensor(conv2d, 3, 1, 4)",
        "ops.aten.expand.default(ops.aten.slice.Tensor(conv2d, 1, 0, 1), [2, 6, 8, 9])",
    ],
    ids=["permuted", "part", "expanded"],
)
def test_results_keep_strides_that_no_memory_format_gives(result: str) -> None:
    inner, _, rest = result.partition("ops.aten.slice.Tensor(conv2d, 1, 0, 1), ")
    lines = ["conv2d = ops.aten.conv2d.default(x, w, b, [1, 1], [1, 1])"]
    if rest:
        lines += ["part = ops.aten.slice.Tensor(conv2d, 1, 0, 1)", f"result = {inner}part, {rest}"]
    else:
        lines.append(f"result = {result}")
    body = "\n".join([*lines, "return (result,)"])
    program = sketch(body, x="f32[2, 3, 8, 9]", w="weight f32[6, 3, 3, 3]", b="weight f32[6]").program
    assert check_pass(PackWeights(min_flops=0), program).fired == 1


def test_refresh_of_nothing() -> None:
    program = linear().program
    text = dump(program)
    refresh(program, program.calls())
    assert dump(program) == text


@pytest.mark.parametrize("bias", ["weight f32[6] strides (2,)", "weight f32[1]"])
def test_a_bias_must_be_contiguous(bias: str) -> None:
    (reason,) = check_pass(EVERY, linear(b=bias).program).reasons
    assert reason.startswith("the bias is strided or broadcast")


def test_long_sums_stay_as_they_are() -> None:
    program = sketch(CONV, x="f32[2, 3, 8, 9]", w="weight f32[6, 3, 3, 3]", b="weight f32[6]").program
    assert check_pass(PackWeights(min_flops=0, max_terms=27), program).fired == 1
    refused = check_pass(PackWeights(min_flops=0, max_terms=26), program)
    assert refused.reasons == ["sums of 27 terms, more than max_terms=26: less exact when packed"]
