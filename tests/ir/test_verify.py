from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graphopt.errors import VerificationError
from graphopt.ir.program import Input, Program
from graphopt.ir.stages import WEIGHTS
from graphopt.ir.verify import Examples, compare, evaluate, example_inputs, outline, spread, verify
from graphopt.testing import sketch
from graphopt.testing.growing import inputs as inputs_of

aten = torch.ops.aten


def example() -> Program:
    body = "add = ops.aten.add.Tensor(x, 1)\nmul = ops.aten.mul.Tensor(add, w)\nreturn (mul,)"
    return sketch(body, x="f32[2, 3]", w="weight f32[3]").program


def wrong_shape(program: Program) -> None:
    add, _ = program.calls()
    program.touch(add)
    add.args = (program.placeholders[1], 1)


def wrong_record(program: Program) -> None:
    add, mul = program.calls()
    new = program.call(aten.add.Tensor, add, 2, before=mul, val=torch.empty(2, 3, dtype=torch.float64, device="meta"))
    mul.args = (new, program.placeholders[1])


def no_record(program: Program) -> None:
    del next(program.calls()).meta["val"]


def dangling(program: Program) -> None:
    add, mul = program.calls()
    mul.append(add)  # used before it is defined


def wrong_placement(program: Program) -> None:
    next(program.calls()).meta["placement"] = WEIGHTS


def other_result(program: Program) -> None:
    program.output.args = ((program.placeholders[1],),)


def more_results(program: Program) -> None:
    program.output.args = (tuple(program.calls()),)


def other_strides(program: Program) -> None:
    _, mul = program.calls()
    turned = program.call(aten.transpose.int, mul, 0, 1, before=program.output)
    copy = program.call(aten.clone.default, turned, before=program.output, memory_format=torch.contiguous_format)
    back = program.call(aten.transpose.int, copy, 0, 1, before=program.output)
    program.output.args = ((back,),)


def other_role(program: Program) -> None:
    program.inputs = (Input("x", "time", "x"), program.inputs[1])


def lost_input(program: Program) -> None:
    program.inputs = program.inputs[:1]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (wrong_shape, "recorded"),
        (wrong_record, "recorded"),
        (no_record, "no recorded value"),
        (dangling, "not well formed"),
        (wrong_placement, "is placed in stage 'weights' but depends on 'step'"),
        (other_result, "a result changed"),
        (more_results, "number of results"),
        (other_strides, "a result changed"),
        (other_role, "inputs or their roles changed"),
        (lost_input, "inputs or their roles changed"),
    ],
)
def test_finds_a_planted_fault(fault: Callable[[Program], None], message: str) -> None:
    before = example()
    after = before.copy()
    after.rule = "planted"
    verify(before, after)
    fault(after)
    with pytest.raises(VerificationError, match=message):
        verify(before, after)


def test_finds_strides_that_nobody_inferred_anew() -> None:
    body = """
        turned = ops.aten.transpose.int(x, 0, 1)
        copy = ops.aten.clone.default(turned, memory_format=torch.contiguous_format)
        silu = ops.aten.silu.default(copy)
        return (silu,)
    """
    before = sketch(body, x="f32[6, 2]").program
    after = before.copy()
    turned, copy, _ = after.calls()
    after.replace(copy, turned)
    with pytest.raises(VerificationError, match=r"recorded \(2, 6\) torch.float32 \(6, 1\) but .* \(1, 2\)"):
        verify(before, after)


def test_bitwise_means_every_bit() -> None:
    one = torch.tensor([1.0, 0.0, float("nan")])
    assert compare([one], [one.clone()], "bitwise") is None
    assert compare([one], [torch.tensor([1.0, -0.0, float("nan")])], "bitwise") is not None
    assert compare([one], [torch.nextafter(one, one + 1)], "bitwise") is not None
    assert compare([one], [one.double()], "bitwise") is not None
    assert compare([one], [one[:2]], "bitwise") is not None
    assert compare([3], [4], "bitwise") is not None


def test_rounding_allows_what_the_original_errs() -> None:
    exact = torch.linspace(0.1, 1, 8, dtype=torch.float64)
    was = exact.float()
    assert compare([was], [was + 1e-7], "rounding", [exact]) is None
    assert compare([was], [was + 1e-4], "rounding", [exact]) is not None
    assert compare([was], [was * float("inf")], "rounding", [exact]) is not None


def test_rounding_of_several_passes_adds() -> None:
    exact = torch.linspace(0.1, 1, 8, dtype=torch.float64)
    was, off = exact.float() + 1e-5, exact.float() + 6e-5
    assert compare([was], [off], "rounding", [exact]) is not None
    assert compare([was], [off], "rounding", [exact], passes=2) is None
    assert compare([exact.float()], [off], "rounding", [exact], passes=2) is not None
    assert compare([exact.float()], [off], "rounding", [exact], expected=[2e-5]) is None


def test_spread_is_the_error_of_an_ill_conditioned_result() -> None:
    body = "big = ops.aten.add.Tensor(x, 1000.0)\nback = ops.aten.sub.Tensor(big, 1000.0)\nreturn (back, x, n)"
    program = sketch(body, x="f32[64]", n="i64[2]").program
    inputs = example_inputs(program)
    (result, *_), (exact, *_) = evaluate(program, inputs), evaluate(program, inputs, double=True)
    ill, *rest = spread(program, inputs)
    was = float((result.double() - exact).abs().max())
    assert was / 4 < ill < 16 * was
    assert rest == [0.0, 0.0]


def test_example_inputs_bind_no_symbol() -> None:
    program = inputs_of({"x": "state f32[B, 8]"}, {"B": 11}, frozenset("B"))
    (value,) = example_inputs(program)
    (size, _) = program.placeholders[0].meta["val"].shape
    assert value.shape == (11, 8)
    assert size.node.expr.is_symbol
    (value,) = example_inputs(program, sizes={size.node.expr: 3})
    assert value.shape == (3, 8)
    assert size.node.expr.is_symbol


def test_an_input_has_the_same_values_beside_other_ones() -> None:
    one, two = (sketch("return (x,)", **more, x="f32[5]").program for more in ({}, {"w": "weight f32[3]"}))
    assert torch.equal(example_inputs(one)[0], example_inputs(two)[1])


def test_lossy_allows_other_finite_values_of_the_same_form() -> None:
    old = torch.tensor([1.0, float("inf"), float("nan")])
    for values in ([9.0, float("inf"), float("nan")], [-2.0, 0.0, 1.0]):
        assert compare([old], [torch.tensor(values)], "lossy") is None
    assert compare([torch.tensor([1, 2])], [torch.tensor([3, 4])], "lossy") is None
    assert compare([3, None], [4, None], "lossy") is None
    for other in (float("nan"), -float("inf")):
        assert "not finite" in str(compare([old], [torch.tensor([other, 0.0, 0.0])], "lossy"))
    for new in (old.double(), old[:2], None):
        assert compare([old], [new], "lossy") is not None
    assert compare([3], [None], "lossy") is not None


def test_evaluates_in_double() -> None:
    program = example()
    inputs = example_inputs(program)
    (single,), (double,) = evaluate(program, inputs), evaluate(program, inputs, double=True)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert torch.allclose(single.double(), double)


def test_spread_of_a_result_that_is_nowhere_finite_is_zero() -> None:
    program = sketch("a = ops.aten.add.Tensor(x, 1)\nreturn (a,)", x="f32[3]").program
    assert spread(program, [torch.full((3,), float("nan"))]) == [0.0]


def test_examples_are_made_as_recorded_when_they_are_asked_for() -> None:
    with FakeTensorMode():
        recorded = [torch.empty(2, 3, 4, dtype=torch.bfloat16).transpose(0, 2), torch.empty(1, 5).expand(7, 5)]
    examples = Examples([*recorded, 3, recorded[0][:, 1:]])
    assert len(examples) == 4 and examples[2] == 3 and [*examples][2:3] == [3] == [*examples[2:3]]
    for value, made, without in zip(recorded, examples, examples.outlines, strict=False):
        assert type(made) is torch.Tensor and made.device.type == "cpu" and not made.any()
        for found in (made, without):
            assert (found.shape, found.stride(), found.dtype) == (value.shape, value.stride(), value.dtype)
        assert without.device.type == "meta"
    assert examples[-1].stride() == recorded[0].stride()
    with torch.inference_mode(), FakeTensorMode():
        assert type(examples[0]) is torch.Tensor and not examples[0].is_inference()
    with pytest.raises(IndexError):
        examples[4]


def test_outlines_of_symbolic_sizes_are_those_of_the_example() -> None:
    program = inputs_of({"x": "state f32[B, 4]"}, {"B": 3}, frozenset("B"))
    (value,) = (node.meta["val"] for node in program.placeholders)
    assert Examples([value])[0].shape == outline(value).shape == (3, 4)
    assert outline(torch.ones(2)).device.type == "meta" and outline("no tensor") == "no tensor"
