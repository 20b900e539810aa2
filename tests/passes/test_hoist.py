from __future__ import annotations

from graphopt.ir.stages import REQUEST, placement
from graphopt.passes import Hoist
from graphopt.testing import Traced, check_pass, sketch
from tests.goldens import Golden


def attention() -> Traced:
    return sketch(
        """
        view = ops.aten.view.default(prompt, [10, 8])
        key = ops.aten.linear.default(view, w)
        key_view = ops.aten.view.default(key, [2, 5, 8])
        value = ops.aten.linear.default(view, wide)
        transpose = ops.aten.transpose.int(key_view, 1, 2)
        scores = ops.aten.matmul.default(x, transpose)
        total = ops.aten.sum.default(value)
        mul = ops.aten.mul.Tensor(value, 2)
        cos = ops.aten.cos.default(mul)
        add = ops.aten.add.Tensor(scores, total)
        mul_1 = ops.aten.mul.Tensor(add, cos)
        return (mul_1,)
        """,
        x="f32[2, 10, 8]",
        prompt="condition f32[2, 5, 8]",
        w="weight f32[8, 8]",
        wide="weight f32[5, 8]",
    )


def test_keys_and_values(golden: Golden) -> None:
    checked = check_pass(Hoist(), attention().program)
    assert (checked.fired, checked.reasons) == (8, [])
    golden(attention().rewritten(Hoist()).body)


def test_over_the_limit_drops_what_saves_least() -> None:
    # kept: the memory of key (320 bytes), cos (200 bytes) and total (4 bytes)
    checked = check_pass(Hoist(max_bytes=300), attention().program)
    dropped = {refusal.node.name for refusal in checked.refusals}
    assert dropped >= {"key", "key_view", "transpose"}
    assert {n.name for n in checked.program.calls() if placement(n) == REQUEST} >= {"value", "cos", "total"}
    assert all("the stage would keep 524 bytes, more than max_bytes=300" in reason for reason in checked.reasons)
    assert check_pass(Hoist(max_bytes=0), attention().program).fired == 0


def test_refuses_views_of_inputs() -> None:
    body = "view = ops.aten.view.default(c, [6])\nadd = ops.aten.add.Tensor(x, view)\nreturn (add,)"
    checked = check_pass(Hoist(), sketch(body, x="f32[6]", c="condition f32[2, 3]").program)
    assert (checked.fired, checked.reasons) == (0, ["it is a view of an input: keeping it saves no work"])


def test_refuses_what_is_cheaper_to_recompute() -> None:
    body = """
        expand = ops.aten.expand.default(c, [10, 8])
        clone = ops.aten.clone.default(expand)
        add = ops.aten.add.Tensor(x, clone)
        return (add,)
    """
    checked = check_pass(Hoist(dispatch_bytes=0), sketch(body, x="f32[10, 8]", c="condition f32[8]").program)
    assert checked.reasons[-1] == "keeping it takes 320 bytes and saves the work of moving 32"


def test_weights_go_along_only_where_needed() -> None:
    body = """
        cast = ops.aten._to_copy.default(w, dtype=torch.float32)
        linear = ops.aten.linear.default(c, cast)
        other = ops.aten._to_copy.default(w, dtype=torch.float64)
        add = ops.aten.add.Tensor(x, linear)
        add_1 = ops.aten.add.Tensor(add, other)
        return (add_1,)
    """
    program = sketch(body, x="f32[8, 8]", c="condition f32[8, 8]", w="weight f16[8, 8]").program
    placed = [n.name for n in check_pass(Hoist(), program).program.calls() if placement(n) == REQUEST]
    assert placed == ["cast", "linear"]
