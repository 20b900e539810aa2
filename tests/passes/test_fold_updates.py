from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.ir.verify import evaluate
from graphopt.passes import FoldUpdates, RemoveDead
from graphopt.testing import Traced, check_pass, sketch, trace
from tests.goldens import Golden

DDIM = """
guided = ops.aten.sub.Tensor(c, u)
scaled = ops.aten.mul.Tensor(guided, {guidance})
e = ops.aten.add.Tensor(u, scaled)
noise = ops.aten.mul.Tensor(e, 0.5)
rest = ops.aten.sub.Tensor(x, noise)
clean = ops.aten.div.Tensor(rest, 0.875)
kept = ops.aten.mul.Tensor(clean, 0.96875)
direction = ops.aten.mul.Tensor(e, 0.25)
new = ops.aten.add.Tensor(kept, direction)
"""


def ddim(end: str = "return (new,)", kind: str = "f32", guidance: float = 7.5, **more: str) -> Traced:
    return sketch(f"{DDIM.format(guidance=guidance)}{end}", **dict.fromkeys("xuc", f"{kind}[2, 4, 6]"), **more)


def test_guided_ddim_step(golden: Golden) -> None:
    checked = check_pass(FoldUpdates(), ddim().program)
    assert checked.fired == 1 and len(list(checked.program.calls())) == 3
    golden(ddim().rewritten(FoldUpdates()).body)


def test_kept_prediction_is_folded_by_itself(golden: Golden) -> None:
    """A multistep solver keeps the prediction for the next step."""
    before = ddim("other = ops.aten.lerp.Scalar(clean, x, 0.25)\nreturn (other, clean)")
    before = before.rewritten(RemoveDead())
    assert check_pass(FoldUpdates(), before.program).fired == 1
    golden(before.rewritten(FoldUpdates()).body)


def test_state_in_half_precision_passes_through_float32(golden: Golden) -> None:
    def step(x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        state = x.to(torch.float32)
        wide = e.to(torch.float32)
        clean = state - 0.7 * wide
        derivative = (state - clean) / 0.7
        return (state + derivative * -0.1).to(e.dtype)

    tensors = torch.randn(2, 4, dtype=torch.bfloat16), torch.randn(2, 4, dtype=torch.bfloat16)
    before = trace(step, *tensors)
    after = check_pass(FoldUpdates(), before.program)
    assert after.fired == 1 and all(
        node.meta["val"].dtype == torch.float32 for node in list(after.program.calls())[:-1]
    )
    golden(before.rewritten(FoldUpdates()).body)


def test_lerp() -> None:
    body = "\n".join(
        (
            "mixed = ops.aten.lerp.Scalar(x, e, 0.25)",
            "again = ops.aten.lerp.Scalar(mixed, e, 0.5)",
            "minus = ops.aten.neg.default(again)",
            "back = ops.aten.neg.default(minus)",
            "return (back,)",
        )
    )
    checked = check_pass(FoldUpdates(), sketch(body, x="f32[5]", e="f32[5]").program)
    assert checked.fired == 1 and len(list(checked.program.calls())) == 2


def test_what_cancels_to_one_term_is_a_copy() -> None:
    body = "there = ops.aten.add.Tensor(x, e)\nback = ops.aten.sub.Tensor(there, e)\n"
    body += "minus = ops.aten.neg.default(back)\nplus = ops.aten.neg.default(minus)\nreturn (plus,)"
    checked = check_pass(FoldUpdates(), sketch(body, x="f32[5]", e="f32[5]").program)
    assert [node.target for node in checked.program.calls()] == [torch.ops.aten.clone.default]


def test_equal_terms_still_cancel() -> None:
    """The scaled difference of equal tensors is zero before and after; scaled first, its rounding would be left."""
    body = "\n".join(
        (
            "difference = ops.aten.sub.Tensor(x, e)",
            "scaled = ops.aten.mul.Tensor(difference, 0.3)",
            "more = ops.aten.add.Tensor(difference, scaled, alpha=7.7)",
            "new = ops.aten.sub.Tensor(k, more, alpha=0.7)",
            "return (new,)",
        )
    )
    checked = check_pass(FoldUpdates(min_saved=1), sketch(body, x="f32[50]", e="f32[50]", k="f32[50]").program)
    assert [node.target for node in checked.program.calls()] == [torch.ops.aten.sub.Tensor, torch.ops.aten.add.Tensor]
    same, kept = torch.rand(50), torch.rand(50)
    assert torch.equal(evaluate(checked.program, [same, same, kept])[0], kept)


@given(data=st.data(), kind=st.sampled_from([torch.float32, torch.float64]))
def test_any_chain(data: st.DataObject, kind: torch.dtype) -> None:
    """Random chains over three tensors; what is folded is as accurate as it was."""
    numbers = st.floats(0.25, 4.0, width=16)
    count = data.draw(st.integers(2, 10))
    moves = [(data.draw(st.integers(0, 4)), data.draw(st.integers(0, 20)), data.draw(numbers)) for _ in range(count)]

    def chain(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        known = [a, b, c]
        for move, place, number in moves:
            last, other = known[-1], known[place % len(known)]
            known.append(
                (last + other, last - other, last * number, last / number, torch.add(other, last, alpha=number))[move]
            )
        return known[-1]

    before = trace(chain, *(torch.randn(3, 5, dtype=kind) for _ in range(3)))
    checked = check_pass(FoldUpdates(), before.program)
    assert len(list(checked.program.calls())) <= len(list(before.program.calls())) - 2 * checked.fired


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_precision_keeps_what_is_as_accurate(kind: str) -> None:
    assert check_pass(FoldUpdates(), ddim(kind=kind, guidance=0.5).program).fired == 1


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (ddim("read = ops.aten.relu.default(rest)\nread_1 = ops.aten.relu.default(scaled)\n"
              "read_2 = ops.aten.relu.default(kept)\nreturn (new, read, read_1, read_2)"),
         "fewer than min_saved=2 operations would be saved: an intermediate result is read elsewhere"),
        (sketch("a = ops.aten.add.Tensor(x, e)\nb = ops.aten.add.Tensor(a, e)\nreturn (b,)", x="i64[3]", e="i64[3]"),
         "the result is not floating-point"),
        (ddim(kind="c64"), "the result is not floating-point"),
        (ddim(kind="bf16"), "a partial sum would be rounded to torch.bfloat16 and is larger than its terms"),
        (ddim("bias = ops.aten.add.Tensor(new, b)\nreturn (bias,)", b="f32[6]"), "it broadcasts a term"),
        (ddim("one = ops.aten.add.Tensor(new, 1.0)\nreturn (one,)"), "it adds a number"),
        (ddim("square = ops.aten.mul.Tensor(new, x)\nreturn (square,)"), "it multiplies tensors"),
        (ddim("wide = ops.aten._to_copy.default(new, dtype=torch.float64)\nreturn (wide,)"),
         "it takes a value of another dtype or device"),
        (sketch("a = ops.aten.mul.Tensor(x, 2)\nb = ops.aten.add.Tensor(a, e)\nreturn (b,)", x="f32[3]", e="f32[3]"),
         "fewer than min_saved=2 operations would be saved"),
        (sketch("a = ops.aten.sub.Tensor(x, e)\nb = ops.aten.sub.Tensor(e, x)\nc = ops.aten.add.Tensor(a, b)\n"
                "d = ops.aten.neg.default(c)\nreturn (d,)", x="f32[3]", e="f32[3]"), "the terms cancel out"),
        (sketch("a = ops.aten.sub.Tensor(x, e)\nb = ops.aten.mul.Tensor(a, 0.3)\nc = ops.aten.sub.Tensor(x, k)\n"
                "d = ops.aten.mul.Tensor(c, 0.7)\nf = ops.aten.add.Tensor(b, d)\ng = ops.aten.mul.Tensor(f, 1.1)\n"
                "h = ops.aten.mul.Tensor(g, 1.1)\nreturn (h,)", x="f32[3]", e="f32[3]", k="f32[3]"),
         "the coefficients add up to zero: terms close to each other would cancel"),
        (sketch("a = ops.aten.sub.Tensor(x, e)\nb = ops.aten.mul.Tensor(a, 1e300)\nc = ops.aten.mul.Tensor(b, 1e300)\n"
                "d = ops.aten.neg.default(c)\nreturn (d,)", x="f32[3]", e="f32[3]"), "a coefficient is not finite"),
        (sketch("a = ops.aten.sub.Tensor(x, e)\nb = ops.aten.div.Tensor(a, 0.0)\nc = ops.aten.mul.Tensor(b, 2)\n"
                "d = ops.aten.neg.default(c)\nreturn (d,)", x="f32[3]", e="f32[3]"), "a coefficient is not finite"),
        (sketch("t = ops.aten.transpose.int(x, 0, 1)\na = ops.aten.mul.Tensor(t, 2)\nb = ops.aten.mul.Tensor(a, 2)\n"
                "c = ops.aten.clone.default(b, memory_format=torch.contiguous_format)\n"
                "d = ops.aten.mul.Tensor(c, 2)\nreturn (d,)", x="f32[3, 4]"),
         "the update would be laid out in memory otherwise"),
    ],
)  # fmt: skip
def test_refusals(before: Traced, reason: str) -> None:
    checked = check_pass(FoldUpdates(), before.program, seeds=1)
    assert reason in checked.reasons, checked.reasons


def test_option() -> None:
    checked = check_pass(FoldUpdates(min_saved=7), ddim().program)
    assert checked.fired == 0 and "fewer than min_saved=7 operations would be saved" in checked.reasons


def test_placements_stay_apart() -> None:
    program = ddim().program
    early = next(node for node in program.calls() if node.name == "scaled")
    early.meta["placement"] = frozenset({"state", "time"})
    early.all_input_nodes[0].meta["placement"] = frozenset({"state", "time"})
    after = check_pass(FoldUpdates(min_saved=1), program).program
    assert any(node.name == "scaled" for node in after.calls())
