from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.ir.cost import program_cost
from graphopt.ir.stages import REQUEST, placement
from graphopt.passes import FoldConstants, FusePointwise, MergeCommon, PackWeights, ReassociateSums
from graphopt.testing import Traced, check_pass, sketch
from tests.goldens import Golden

FIRST = "add = ops.aten.add.Tensor(x, f)\n"
THREE = f"{FIRST}add_1 = ops.aten.add.Tensor(add, c)\n"


def three(f: str = "time f32[8]", c: str = "weight f32[8]", x: str = "f32[2, 6, 8]", body: str = THREE) -> Traced:
    return sketch(f"{body}return (add_1,)", x=x, f=f, c=c)


def test_stages(golden: Golden) -> None:
    body = """
        add = ops.aten.add.Tensor(x, t)
        add_1 = ops.aten.add.Tensor(c, add)
        add_2 = ops.aten.add.Tensor(w, v)
        add_3 = ops.aten.add.Tensor(add_1, add_2)
        add_4 = ops.aten.add.Tensor(add_3, y)
        return (add_4,)
    """
    inputs = {"x": "f32[2, 6, 8]", "y": "f32[2, 6, 8]", "t": "time f32[2, 1, 8]", "c": "condition f32[2, 1, 8]"}
    before = sketch(body, **inputs, w="weight f32[8]", v="weight f32[1, 8]")
    checked = check_pass(ReassociateSums(), before.program)
    assert checked.fired == 1
    assert program_cost(checked.program).flops < program_cost(before.program).flops
    golden(before.rewritten(ReassociateSums()).body)


@pytest.mark.parametrize(
    ("f", "c", "x"),
    [
        ("time f32[2, 1, 8]", "weight f32[8]", "f32[2, 6, 8]"),
        ("weight f32[8]", "weight f32[8]", "f32[2, 6, 8]"),
        ("condition f32[2, 6, 8]", "weight f32[6, 1]", "f32[2, 6, 8]"),
        ("f32[2, 1, 8]", "f32[8]", "f32[2, 6, 8]"),  # in one stage: vectors first
        ("f32[2, 1, 8]", "weight f32[8]", "f32[2, 6, 8]"),
        ("time f32[]", "time f32[]", "f32[]"),
        ("time bf16[8]", "weight bf16[8]", "bf16[2, 6, 8]"),
        ("time f64[8]", "weight f64[8]", "f64[2, 0, 8]"),
    ],
)
def test_fires(f: str, c: str, x: str) -> None:
    expected = 0 if "0" in x.split("[")[1] else 1  # of no numbers none can be saved
    assert check_pass(ReassociateSums(), three(f, c, x).program).fired == expected


def test_equal_sums_of_early_terms_become_one() -> None:
    body = """
        add = ops.aten.add.Tensor(x, f)
        add_1 = ops.aten.add.Tensor(add, c)
        add_2 = ops.aten.add.Tensor(c, y)
        add_3 = ops.aten.add.Tensor(f, add_2)
        mul = ops.aten.mul.Tensor(add_1, add_3)
        return (mul,)
    """
    before = sketch(body, x="f32[2, 6, 8]", y="f32[2, 6, 8]", f="time f32[8]", c="weight f32[8]")
    after = before.rewritten(ReassociateSums(), MergeCommon()).program
    assert len(list(after.calls(torch.ops.aten.add.Tensor))) == 3


def test_a_packed_layer_still_takes_its_addition() -> None:
    body = """
        linear = ops.aten.linear.default(h, v)
        add = ops.aten.add.Tensor(linear, f)
        add_1 = ops.aten.add.Tensor(add, c)
        add_2 = ops.aten.add.Tensor(add_1, x)
        return (add_2,)
    """
    inputs = {"h": "f32[2, 6, 8]", "x": "f32[2, 6, 8]", "v": "weight f32[8, 8]", "f": "time f32[8]"}
    before = sketch(body, **inputs, c="weight f32[8]")
    packed = before.rewritten(ReassociateSums(), PackWeights(min_flops=0)).program
    assert check_pass(FusePointwise(), packed).fired == 1


@given(
    terms=st.lists(
        st.tuples(st.sampled_from(["state", "time", "condition", "weight"]), st.lists(st.booleans(), max_size=3)),
        min_size=3,
        max_size=6,
    ),
    order=st.randoms(use_true_random=False),
)
def test_any_sum(terms: list[tuple[str, list[bool]]], order: object) -> None:
    sizes = (2, 3, 4)

    def shape(dims: list[bool]) -> list[int]:
        return [n if full else 1 for n, full in zip(sizes[len(sizes) - len(dims) :], dims, strict=True)]

    inputs = {f"x{number}": f"{role} f32{shape(dims)}" for number, (role, dims) in enumerate(terms)}
    names = list(inputs)
    lines: list[str] = []
    while len(names) > 1:
        one, two = (names.pop(order.randrange(len(names))) for _ in range(2))  # type: ignore[attr-defined]
        names.append(f"add{len(lines)}")
        lines.append(f"{names[-1]} = ops.aten.add.Tensor({one}, {two})")
    before = sketch("\n".join([*lines, f"return ({names[0]},)"]), **inputs).program
    after = check_pass(ReassociateSums(), before).program
    assert program_cost(after).flops <= program_cost(before).flops


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (three("f32[2, 6, 8]", "f32[2, 6, 8]"), "no other order adds fewer numbers"),
        (three(body=THREE.replace("x, f", "f, c").replace("add, c", "x, add")), "no other order adds fewer numbers"),
        (three("time f32[1, 8]", "weight f32[6, 8]"), "no other order adds fewer numbers"),  # would keep the larger
        (three("time f32[8]", "condition f32[8]"), "no other order adds fewer numbers"),  # would keep both in one
        (three(body=THREE.replace("(add, c)", "(add, add)")), "the inner sum is read elsewhere too"),
        (three(body=THREE.replace("(add, c)", "(add, c, alpha=2)")), "an addition scales its argument"),
        (three(body=THREE.replace("(x, f)", "(x, f, alpha=2)")), "an addition scales its argument"),
        (three(body=THREE.replace("(add, c)", "(add, 2)")), "a term is a number"),
        (three(c="weight bf16[8]"), "the terms are not floats of one dtype"),
        (three(c="weight f64[8]"), "the terms are not floats of one dtype"),
        (three("time i64[8]", "weight i64[8]", "i64[2, 6, 8]"), "the terms are not floats of one dtype"),
        (three("time c64[8]", "weight c64[8]", "c64[2, 6, 8]"), "the terms are not floats of one dtype"),
        (
            sketch(f"{THREE}mul = ops.aten.mul.Tensor(add, add_1)\nreturn (mul,)", x="f32[2]", f="f32[1]", c="f32[1]"),
            "the inner sum is read elsewhere too",
        ),
        (
            sketch(f"{THREE}return (add, add_1)", x="f32[2]", f="f32[1]", c="f32[1]"),
            "the inner sum is read elsewhere too",
        ),
    ],
)  # fmt: skip
def test_refusals(before: Traced, reason: str) -> None:
    checked = check_pass(ReassociateSums(), before.program)
    assert checked.fired == 0 and [found[: len(reason)] for found in checked.reasons] == [reason]


def test_no_more_is_kept() -> None:
    body = """
        add = ops.aten.add.Tensor(x, a)
        add_1 = ops.aten.add.Tensor(add, b)
        add_2 = ops.aten.add.Tensor(c, t)
        add_3 = ops.aten.add.Tensor(add_1, add_2)
        return (add_3,)
    """
    before = sketch(body, x="f32[2, 6, 8]", a="f32[8]", b="f32[8]", c="condition f32[2, 6, 8]", t="time f32[8]")
    checked = check_pass(ReassociateSums(), before.program)
    assert checked.reasons == ["the order that adds fewer numbers keeps more of them"]


def test_long_sums_stay() -> None:
    checked = check_pass(ReassociateSums(max_terms=2), three().program)
    assert checked.reasons == ["the sum has 3 terms, more than max_terms=2"]


def test_placements() -> None:
    program = three("condition f32[8]", "weight f32[8]", "condition f32[2, 6, 8]").program
    last = list(program.calls())[-1]
    last.meta["placement"] = REQUEST
    first = next(program.calls())
    first.meta["placement"] = REQUEST
    checked = check_pass(ReassociateSums(), program)
    assert checked.fired == 1 and all(placement(node) == REQUEST for node in checked.program.calls())
    last.meta.pop("placement")
    assert check_pass(ReassociateSums(), program).reasons == ["the additions are placed in different stages"]


def test_expanded_terms_take_the_memory_that_they_show() -> None:
    body = """
        expand = ops.aten.expand.default(c, [6, 8])
        add = ops.aten.add.Tensor(x, expand)
        add_1 = ops.aten.add.Tensor(add, f)
        return (add_1,)
    """
    before = sketch(body, x="f32[2, 6, 8]", c="weight f32[8]", f="weight f32[6, 1]")
    assert check_pass(ReassociateSums(), before.program).reasons == ["no other order adds fewer numbers"]
    assert check_pass(FoldConstants(), before.program).fired == 1


def test_symbolic_sizes() -> None:
    program = three().program
    mode = program.placeholders[0].meta["val"].fake_mode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode.shape_env = ShapeEnv()
    with mode:
        program.placeholders[0].meta["val"] = torch.empty(mode.shape_env.create_unbacked_symint(), 8)
    (match,) = ReassociateSums().find(program)
    refusal = ReassociateSums().legal(program, match)
    assert refusal is not None and refusal.reason == "a size is known only when the program runs"
