from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from graphopt.ir.driver import run_pipeline
from graphopt.ir.program import Program
from graphopt.ir.stages import STEP, stage_name, stages
from graphopt.passes import ComposeLinears, FoldConstants
from graphopt.pipelines import exact
from graphopt.testing import Traced, check_pass, random_graph, sketch, trace
from tests.goldens import Golden

LINEAR = """
    inner = ops.aten.linear.default(x, v, b)
    outer = ops.aten.linear.default(inner, w, c)
    return (outer,)
"""
CONV = """
    inner = ops.aten.conv2d.default(x, v, b)
    outer = ops.aten.conv2d.default(inner, w, c)
    return (outer,)
"""
ANY = ComposeLinears(calls=1 << 30)


def linears(body: str = LINEAR, **inputs: str) -> Traced:
    table = {
        "x": "f32[40, 8]", "v": "weight f32[16, 8]", "b": "weight f32[16]", "w": "weight f32[6, 16]",
        "c": "weight f32[6]",
    }  # fmt: skip
    return sketch(body, **{**table, **inputs})


def convolutions(body: str = CONV, **inputs: str) -> Traced:
    table = {
        "x": "f32[2, 4, 9, 9]", "v": "weight f32[16, 4, 1, 1]", "b": "weight f32[16]", "w": "weight f32[6, 16, 3, 3]",
        "c": "weight f32[6]",
    }  # fmt: skip
    return sketch(body, **{**table, **inputs})


class Prompt(torch.nn.Module):
    """A projection of the prompt that the keys and values of each block read."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.project = torch.nn.Linear(8, 8)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 6, bias=n > 0) for n in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected = self.project(x)
        return torch.stack([layer(projected) for layer in self.layers]).relu()


def test_linear(golden: Golden) -> None:
    before = linears()
    assert check_pass(ComposeLinears(), before.program).fired == 1
    golden(before.rewritten(ComposeLinears()).body)


def test_several_readers(golden: Golden) -> None:
    before = trace(Prompt(3), torch.randn(40, 8))
    assert check_pass(ComposeLinears(), before.program).fired == 1
    golden(before.rewritten(ComposeLinears()).body)


@pytest.mark.parametrize("case", ["1x1-first", "1x1-last"])
def test_convolution(case: str, golden: Golden) -> None:
    last = {"v": "weight f32[16, 4, 3, 3]", "w": "weight f32[6, 16, 1, 1]"}
    body = CONV.replace("(x, v, b)", "(x, v, b, [2, 2], [1, 1])") if case == "1x1-last" else CONV
    before = convolutions(body, **(last if case == "1x1-last" else {}))
    assert check_pass(ANY, before.program).fired == 1
    golden(before.rewritten(ANY).body)


def test_chains_become_one() -> None:
    body = LINEAR.replace("return (outer,)", "last = ops.aten.linear.default(outer, u)\n    return (last,)")
    checked = check_pass(ANY, linears(body, w="weight f32[16, 16]", c="weight f32[16]", u="weight f32[4, 16]").program)
    assert checked.fired == 2
    assert len(list(checked.program.calls(torch.ops.aten.linear.default))) == 1


def test_composed_weights_are_of_the_weights_stage() -> None:
    program = run_pipeline((ComposeLinears(), FoldConstants()), linears().program)
    late = [node for node in program.calls() if stage_name(node.meta.get("placement", STEP)) == "step"]
    assert [node.target for node in late] == [torch.ops.aten.linear.default]
    assert not stages(program)[late[0].args[1]]  # type: ignore[index]


def test_arguments_by_name() -> None:
    body = LINEAR.replace("(inner, w, c)", "(inner, weight=w, bias=c)").replace("(x, v, b)", "(input=x, weight=v)")
    assert check_pass(ComposeLinears(), linears(body).program).fired == 1


def test_a_shared_weight_serves_its_other_layer() -> None:
    body = LINEAR.replace("return (outer,)", "other = ops.aten.linear.default(x, v)\n    return (outer, other)")
    assert check_pass(ComposeLinears(), linears(body).program).fired == 1


def test_a_strided_result_keeps_its_strides() -> None:
    body = "turned = ops.aten.transpose.int(x, 0, 1)\n" + LINEAR.replace("(x,", "(turned,").replace("\n    ", "\n")
    before = linears(body, x="f32[8, 40]").program
    after = check_pass(ComposeLinears(), before).program
    assert [n.meta["val"].stride() for n in before.results if n] == [n.meta["val"].stride() for n in after.results if n]


@given(
    rows=st.lists(st.integers(0, 4), max_size=3),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    biases=st.tuples(st.booleans(), st.booleans()),
    kind=st.sampled_from(["f32", "f64"]),
)
def test_any_linear(rows: list[int], sizes: tuple[int, int, int], biases: tuple[bool, bool], kind: str) -> None:
    into, middle, out = sizes
    body = LINEAR if biases[0] else LINEAR.replace("v, b", "v")
    program = linears(
        body if biases[1] else body.replace("w, c", "w"), x=f"{kind}{[*rows, into]}", b=f"weight {kind}[{middle}]",
        v=f"weight {kind}[{middle}, {into}]", w=f"weight {kind}[{out}, {middle}]", c=f"weight {kind}[{out}]",
    ).program  # fmt: skip
    pays = into * out < middle * (into + out) and 0 not in rows
    assert check_pass(ANY, program).fired == pays


@given(
    last=st.booleans(),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    biases=st.tuples(st.booleans(), st.booleans()),
    kind=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_convolution(
    last: bool, kernel: tuple[int, int], stride: int, padding: int, dilation: int, biases: tuple[bool, bool],
    kind: torch.dtype,
) -> None:  # fmt: skip
    layers = [
        torch.nn.Conv2d(2, 12, 1 if last else kernel, bias=biases[0]),
        torch.nn.Conv2d(12, 3, kernel if last else 1, bias=biases[1]),
    ]
    other = layers[last]
    other.stride, other.padding, other.dilation = (stride, stride), (padding, padding), (dilation, dilation)
    program = trace(torch.nn.Sequential(*layers).to(kind), torch.randn(2, 2, 9, 8, dtype=kind)).program
    checked = check_pass(ANY, program)
    if last and biases[0] and padding:
        assert checked.reasons == ["the outer convolution pads with zeros where the inner one would give its bias"]
    elif not checked.fired:
        assert "more FLOPs" in checked.reasons[0]


@given(seed=st.integers(0, 1 << 20))
def test_any_graph(seed: int) -> None:
    check_pass(ANY, random_graph(seed, 32), seeds=1)


def refused(program: Program, pass_: ComposeLinears = ANY) -> str:
    checked = check_pass(pass_, program)
    assert checked.fired == 0
    (reason,) = checked.reasons
    return reason


WITH = LINEAR.replace("return (outer,)", "{}\n    return (outer, {})")
READ = WITH.format("other = ops.aten.relu.default(inner)", "other")
AS_WEIGHT = WITH.format("other = ops.aten.linear.default(inner, inner)", "other")


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (linears(WITH.format("", "inner")), "the inner result leaves the program"),
        (linears(READ), "the inner result is read elsewhere too"),
        (linears(AS_WEIGHT), "the inner result is read elsewhere too"),
        (linears(v="condition f32[16, 8]"), "a weight is computed from inputs of the call"),
        (linears(c="f32[6]"), "a weight is computed from inputs of the call"),
        (linears(LINEAR.replace("w, c", "w"), w="weight f32[16]"), "a weight is no matrix, or a bias no vector"),
        (linears(v="weight f32[16, 40]", w="weight f32[40, 16]", x="f32[80, 40]", c="weight f32[40]"), "the composed"),
        (convolutions(CONV.replace("w, c", "w, c, [1, 1], [1, 1]")), "the outer convolution pads with zeros"),
        (convolutions(v="weight f32[16, 4, 3, 3]"), "neither convolution is 1×1, of stride 1 and without padding"),
        (
            convolutions(CONV.replace("v, b", "v, b, [2, 2]"), v="weight f32[16, 4, 1, 1]"),
            "neither convolution is 1×1, of stride 1 and without padding",
        ),
        (
            convolutions(CONV.replace("w, c", "w, c, [1, 1], [0, 0], [1, 1], 2"), w="weight f32[6, 8, 3, 3]"),
            "a convolution is grouped",
        ),
    ],
)  # fmt: skip
def test_refusals(before: Traced, reason: str) -> None:
    assert refused(before.program).startswith(reason)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_narrow_dtypes_stay(kind: str) -> None:
    inputs = {name: entry.replace("f32", kind) for name, entry in
              {"x": "f32[40, 8]", "v": "weight f32[16, 8]", "b": "weight f32[16]", "w": "weight f32[6, 16]",
               "c": "weight f32[6]"}.items()}  # fmt: skip
    assert refused(linears(**inputs).program).endswith("composed weights are exact enough in float32 and float64")


def test_composing_must_pay() -> None:
    saved = 2 * 40 * (8 * 16 + 16 * 6 - 8 * 6)
    assert saved > 2 * 16 * 8 * 6
    assert check_pass(ComposeLinears(calls=1), linears().program).fired == 1
    few = linears(x="f32[1, 8]").program
    assert refused(few, ComposeLinears(calls=1)) == "composing takes more FLOPs than calls=1 would save, 352 each"


def test_kept_weights_are_bounded() -> None:
    assert refused(linears().program, ComposeLinears(max_bytes=191)).endswith("would exceed max_bytes=191")
    assert check_pass(ComposeLinears(max_bytes=192), linears().program).fired == 1


def test_placements_stay_apart() -> None:
    program = linears(x="condition f32[40, 8]").program
    next(program.calls()).meta["placement"] = frozenset({"condition"})
    assert refused(program) == "the layers are computed in different stages"


def test_dtypes_differ() -> None:
    program = linears().program
    match = next(iter(ANY.find(program)))
    weight = program.placeholders[3].meta
    with weight["val"].fake_mode:
        weight["val"] = weight["val"].double()
    refusal = ANY.legal(program, match)
    assert refusal is not None and refusal.reason == "the layers' weights have different dtypes"


@pytest.mark.parametrize("position", [0, 1])
def test_symbolic_sizes(position: int) -> None:
    program = linears().program
    match = next(iter(ANY.find(program)))
    node = [match.root, program.placeholders[1]][position]
    mode = node.meta["val"].fake_mode
    mode.shape_env = ShapeEnv()
    with mode:
        node.meta["val"] = torch.empty(mode.shape_env.create_unbacked_symint(), 8)
    refusal = ANY.legal(program, match)
    assert refusal is not None and refusal.reason == "a size is known only when the program runs"


def test_composes_once_in_the_exact_pipeline() -> None:
    program = run_pipeline(exact, trace(Prompt(2), torch.randn(40, 8)).program, strict=True)
    step = [node for node in program.calls() if "state" in node.meta.get("placement", STEP)]
    assert sum("linear" in str(node.target) for node in step) == 1
