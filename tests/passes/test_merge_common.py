from __future__ import annotations

import pytest

from graphopt.passes import MergeCommon
from graphopt.testing import check_pass, sketch
from tests.goldens import Golden


def test_equal_of_equal(golden: Golden) -> None:
    before = sketch(
        """
        split = ops.aten.split.Tensor(x, 2, 1)
        getitem = operator.getitem(split, 0)
        add = ops.aten.add.Tensor(getitem, 1)
        split_1 = ops.aten.split.Tensor(x, 2, 1)
        getitem_1 = operator.getitem(split_1, 0)
        add_1 = ops.aten.add.Tensor(getitem_1, 1, alpha=1)
        cat = ops.aten.cat.default([add, add_1])
        cat_1 = ops.aten.cat.default([add_1, add])
        mul = ops.aten.mul.Tensor(cat, cat_1)
        return (mul,)
        """,
        x="f32[2, 4]",
    )
    assert check_pass(MergeCommon(), before.program).fired == 4
    golden(before.rewritten(MergeCommon()).body)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("mul.Tensor(x, 2)", "mul.Tensor(x, 3)"),
        ("full_like.default(x, 1)", "full_like.default(x, True)"),
        ("add.Tensor(x, 0.0)", "add.Tensor(x, -0.0)"),
        ("_to_copy.default(x, dtype=torch.float64)", "_to_copy.default(x, dtype=torch.float16)"),
        ("sum.dim_IntList(x, [0])", "sum.dim_IntList(x, [0], True)"),
    ],
)
def test_tells_apart(one: str, two: str) -> None:
    before = sketch(f"a = ops.aten.{one}\nb = ops.aten.{two}\nreturn (a, b)", x="f32[3]")
    assert check_pass(MergeCommon(), before.program).fired == 0


def test_refuses_effects() -> None:
    before = sketch(
        """
        rand = ops.aten.rand.default([3], dtype=torch.float32)
        rand_1 = ops.aten.rand.default([3], dtype=torch.float32)
        mul = ops.aten.mul.Tensor(rand, 0)
        mul_1 = ops.aten.mul.Tensor(rand_1, 0)
        add = ops.aten.add.Tensor(mul, mul_1)
        add_1 = ops.aten.add.Tensor(add, x)
        return (add_1,)
        """,
        x="f32[3]",
    )
    checked = check_pass(MergeCommon(), before.program)
    assert (checked.fired, checked.reasons) == (0, ["the operation has an effect besides its result"])


def test_refuses_other_stages() -> None:
    before = sketch(
        """
        sin = ops.aten.sin.default(c)  # f32[3]; @request
        sin_1 = ops.aten.sin.default(c)  # f32[3]
        add = ops.aten.add.Tensor(x, sin)
        add_1 = ops.aten.add.Tensor(add, sin_1)
        return (add_1,)
        """,
        x="f32[3]",
        c="condition f32[3]",
    )
    checked = check_pass(MergeCommon(), before.program)
    assert (checked.fired, checked.reasons) == (0, ["its equal is computed in another stage (request, this in step)"])


@pytest.mark.parametrize("tail", ["return (a, b)", "c = ops.aten.view.default(b, [3, 1])\nreturn (a, c)"])
def test_refuses_results_sharing_memory(tail: str) -> None:
    before = sketch(f"a = ops.aten.sin.default(x)\nb = ops.aten.sin.default(x)\n{tail}", x="f32[3]")
    checked = check_pass(MergeCommon(), before.program)
    assert (checked.fired, checked.reasons) == (0, ["two results would share memory"])


def test_one_of_them_a_result() -> None:
    body = "a = ops.aten.sin.default(x)\nb = ops.aten.sin.default(x)\nc = ops.aten.mul.Tensor(a, b)\nreturn (b, c)"
    assert check_pass(MergeCommon(), sketch(body, x="f32[3]").program).fired == 1
