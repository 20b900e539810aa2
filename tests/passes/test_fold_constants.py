from __future__ import annotations

from graphopt.passes import FoldConstants
from graphopt.testing import Checked, check_pass, sketch
from tests.goldens import Golden


def test_tables_and_views(golden: Golden) -> None:
    before = sketch(
        """
        arange = ops.aten.arange.start(0, 4, dtype=torch.float32)
        exp = ops.aten.exp.default(arange)
        transpose = ops.aten.transpose.int(w, 0, 1)
        mul = ops.aten.mul.Tensor(x, exp)
        matmul = ops.aten.matmul.default(mul, transpose)
        return (matmul,)
        """,
        x="f32[2, 4]",
        w="weight f32[3, 4]",
    )
    assert check_pass(FoldConstants(), before.program).fired == 3
    golden(before.rewritten(FoldConstants()).body)


def folded(pass_: FoldConstants, line: str, w: str = "weight f32[8]") -> Checked:
    return check_pass(pass_, sketch(f"{line}\nadd = ops.aten.add.Tensor(y, x)\nreturn (add,)", x="f32[8]", w=w).program)


def test_refuses_growth() -> None:
    line = "a = ops.aten.expand.default(w, [4, 8])\ny = ops.aten.clone.default(a)"
    assert folded(FoldConstants(), line).fired == 2
    checked = folded(FoldConstants(small_bytes=64), line)
    assert checked.fired == 1  # the expanded view takes no memory
    reason = "keeping it takes {} bytes, more than small_bytes={} and max_growth=1 times the {} of its weights allow"
    assert checked.reasons == [reason.format(128, 64, 32)]
    upcast = folded(
        FoldConstants(small_bytes=0), "y = ops.aten._to_copy.default(w, dtype=torch.float32)", "weight f16[8]"
    )
    assert (upcast.fired, upcast.reasons) == (0, [reason.format(32, 0, 16)])


def test_refuses_what_is_cheaper_to_recompute() -> None:
    line = "a = ops.aten.expand.default(w, [4, 8])\ny = ops.aten.clone.default(a)"
    checked = folded(FoldConstants(dispatch_bytes=0), line)
    assert checked.reasons == ["keeping it takes 128 bytes and saves the work of moving 32"]


def test_refuses_beyond_the_limit() -> None:
    checked = folded(FoldConstants(max_bytes=31), "y = ops.aten.sin.default(w)")
    (reason,) = checked.reasons
    assert checked.fired == 0
    assert reason.startswith(
        "the stage would keep 32 bytes, more than max_bytes=31; this saves least: the work of moving"
    )


def test_leaves_effects_and_inputs() -> None:
    line = "r = ops.aten.rand_like.default(w)\nz = ops.aten.mul.Tensor(r, 0)\ny = ops.aten.add.Tensor(z, x)"
    assert folded(FoldConstants(), line).fired == 0
