from __future__ import annotations

import pytest

from graphopt.passes import SimplifyIdentities
from graphopt.testing import check_pass, sketch
from tests.goldens import Golden


def test_dropout_and_rescaling(golden: Golden) -> None:
    before = sketch(
        """
        linear = ops.aten.linear.default(x, w)
        clone = ops.aten.clone.default(linear)
        div = ops.aten.div.Tensor(clone, 1.0)
        add = ops.aten.add.Tensor(x, div)
        return (add,)
        """,
        x="f32[2, 4]",
        w="weight f32[4, 4]",
    )
    assert check_pass(SimplifyIdentities(), before.program).fired == 2
    golden(before.rewritten(SimplifyIdentities()).body)


@pytest.mark.parametrize(
    "operation",
    [
        "clone.default(sin)",
        "_to_copy.default(sin, dtype=torch.float32)",
        "mul.Tensor(sin, 1)",
        "mul.Scalar(sin, 1.0)",
        "div.Tensor(sin, 1)",
        "pow.Tensor_Scalar(sin, 1)",
        "sub.Tensor(sin, 0)",
        "sub.Tensor(sin, 0.0)",
        "add.Tensor(sin, -0.0)",
        "dropout.default(sin, 0.5, False)",
        "dropout.default(sin, 0.0, True)",
        "cat.default([sin], 1)",
        "repeat.default(sin, [1, 1, 1])",
        "upsample_nearest1d.vec(sin, None, [1.0])",
        "upsample_nearest1d.vec(sin, [8], None)",
    ],
)
def test_gives_back_its_argument(operation: str) -> None:
    body = (
        f"sin = ops.aten.sin.default(x)\nsame = ops.aten.{operation}\ncos = ops.aten.cos.default(same)\nreturn (cos,)"
    )
    checked = check_pass(SimplifyIdentities(), sketch(body, x="f32[2, 4, 8]").program)
    assert checked.fired == 1
    assert [node.name for node in checked.program.calls()] == ["sin", "cos"]


@pytest.mark.parametrize("operation", ["mul.Tensor(x, 1)", "add.Tensor(x, 0)", "sub.Tensor(x, 0)"])
def test_integers(operation: str) -> None:
    body = f"same = ops.aten.{operation}\nneg = ops.aten.neg.default(same)\nreturn (neg,)"
    assert check_pass(SimplifyIdentities(), sketch(body, x="i64[3]").program).fired == 1


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("neg.default(x)", "neg.default(y)"),
        ("_to_copy.default(x, dtype=torch.float32)", "_to_copy.default(y, dtype=torch.bfloat16)"),
    ],
)
def test_pairs(inner: str, outer: str) -> None:
    body = f"y = ops.aten.{inner}\nz = ops.aten.{outer}\ncos = ops.aten.cos.default(z)\nreturn (cos,)"
    checked = check_pass(SimplifyIdentities(), sketch(body, x="bf16[3]").program)
    (cos,) = checked.program.calls(checked.program.output.all_input_nodes[0].target)  # type: ignore[arg-type]
    assert cos.args == (checked.program.placeholders[0],)


def test_relu_of_relu() -> None:
    body = "y = ops.aten.relu.default(x)\nz = ops.aten.relu.default(y)\nreturn (z,)"
    assert [n.name for n in check_pass(SimplifyIdentities(), sketch(body, x="f32[3]").program).program.calls()] == ["y"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = ops.aten.clone.default(x)\nreturn (y,)", "a result would share memory with an input"),
        (
            "y = ops.aten.clone.default(x)\nz = ops.aten.view.default(y, [-1])\nreturn (z,)",
            "a result would share memory with an input",
        ),
        ("y = ops.aten.sin.default(x)\nz = ops.aten.clone.default(y)\nreturn (y, z)", "two results would share memory"),
        ("y = ops.aten.sin.default(x)\nz = ops.aten.add.Tensor(y, 0.0)\nreturn (z,)", "adding 0.0 turns -0.0 into 0.0"),
        (
            "y = ops.aten.sin.default(x)\nz = ops.aten.sub.Tensor(y, -0.0)\nreturn (z,)",
            "adding 0.0 turns -0.0 into 0.0",
        ),
        (
            "y = ops.aten.transpose.int(x, 0, 1)\n"
            "z = ops.aten.clone.default(y, memory_format=torch.contiguous_format)\n"
            "w = ops.aten.sin.default(z)\nreturn (w,)",
            "the copy has strides (2, 1), the original (1, 4)",
        ),
        (
            "y = ops.aten._to_copy.default(x, dtype=torch.float16)\n"
            "z = ops.aten._to_copy.default(y, dtype=torch.float32)\nw = ops.aten.sin.default(z)\nreturn (w,)",
            "torch.float16 does not hold every value of torch.float32",
        ),
    ],
)
def test_refuses(body: str, reason: str) -> None:
    checked = check_pass(SimplifyIdentities(), sketch(body, x="f32[2, 4]").program)
    assert (checked.fired, checked.reasons) == (0, [reason])


@pytest.mark.parametrize(
    "body",
    [
        "y = ops.aten.mul.Tensor(x, 1.0)\nreturn (y,)",  # integers become floats
        "y = ops.aten.repeat.default(x, [1, 1, 1])\nreturn (y,)",  # one dimension more
        "y = ops.aten.mul.Tensor(x, 2)\nreturn (y,)",
    ],
)
def test_leaves_alone(body: str) -> None:
    assert check_pass(SimplifyIdentities(), sketch(body, x="i64[2, 4]").program).fired == 0
