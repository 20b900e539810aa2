from __future__ import annotations

from graphopt.passes import RemoveDead
from graphopt.testing import check_pass, sketch
from tests.goldens import Golden


def test_chain(golden: Golden) -> None:
    before = sketch(
        """
        mul = ops.aten.mul.Tensor(x, 2)
        sin = ops.aten.sin.default(mul)
        cos = ops.aten.cos.default(sin)
        add = ops.aten.add.Tensor(x, 1)
        return (add,)
        """,
        x="f32[3]",
    )
    assert check_pass(RemoveDead(), before.program).fired == 3
    golden(before.rewritten(RemoveDead()).body)


def test_leaves_effects() -> None:
    before = sketch(
        """
        rand = ops.aten.rand.default([3], dtype=torch.float32)
        add = ops.aten.add.Tensor(x, 1)
        return (add,)
        """,
        x="f32[3]",
    )
    checked = check_pass(RemoveDead(), before.program)
    assert checked.fired == 0
    assert checked.reasons == ["the operation has an effect besides its result"]
