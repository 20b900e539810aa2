from __future__ import annotations

from graphopt.ir.relations import Paired, Repeated, specialise
from graphopt.ir.stages import placement, stage_name
from graphopt.passes import ShareCalls
from graphopt.testing import Traced, check_pass, sketch
from tests.goldens import Golden

BODY = """
    embedded = ops.aten.linear.default(t, v)
    enter = ops.aten.linear.default(x, w)
    scaled = ops.aten.add.Tensor(enter, embedded)
    silu = ops.aten.silu.default(scaled)
    mixed = ops.aten.add.Tensor(silu, c)
    leave = ops.aten.linear.default(mixed, w)
    return (leave,)
"""


def paired(body: str = BODY, *relations: Paired | Repeated, x: str = "f32[2, 64]", **inputs: str) -> Traced:
    known = {"x": x, "t": "time f32[1, 64]", "c": "condition f32[2, 64]", "w": "weight f32[64, 64]"}
    program = sketch(body, **known, v="weight f32[64, 64]", **inputs).program
    return Traced(specialise(program, relations or (Paired(2),))[0])


def places(traced: Traced, **options: int) -> dict[str, str]:
    checked = check_pass(ShareCalls(**options), traced.program)
    return {node.name: stage_name(placement(node)) for node in checked.program.calls()}


def test_up_to_the_condition(golden: Golden) -> None:
    traced = paired()
    found = places(traced)
    assert [name for name, stage in found.items() if stage == "common"] == ["embedded", "enter", "scaled", "silu"]
    golden(traced.rewritten(ShareCalls()).body)


def test_does_not_look_without_paired_calls() -> None:
    for relations in ((Repeated("x", 2),), (Repeated("nothing", 2),)):
        checked = check_pass(ShareCalls(), paired(BODY, *relations).program)
        assert (checked.fired, checked.reasons) == (0, [])


def test_what_is_placed_already_stays() -> None:
    traced = paired()
    for node in traced.program.calls():
        if node.name == "embedded":
            node.meta["placement"] = frozenset({"time"})
    found = places(traced)
    assert found["embedded"] == "schedule"
    assert found["silu"] == "common"


def test_refuses_a_view_of_an_input() -> None:
    traced = paired("""
        view = ops.aten.view.default(x, [64, 2])
        relu = ops.aten.mm.default(c, view)
        return (relu,)
    """)
    checked = check_pass(ShareCalls(), traced.program)
    assert (checked.fired, checked.reasons) == (0, ["it is a view of an input: keeping it saves no work"])


def test_refuses_what_is_cheaper_to_recompute() -> None:
    traced = paired("""
        expand = ops.aten.expand.default(x, [4, 2, 64])
        copy = ops.aten.clone.default(expand)
        add = ops.aten.add.Tensor(copy, c)
        return (add,)
    """)
    checked = check_pass(ShareCalls(dispatch_bytes=0), traced.program)
    assert checked.fired == 0
    assert checked.reasons[1] == "keeping it takes 2048 bytes and saves the work of moving 512"


def test_refuses_more_than_fits() -> None:
    checked = check_pass(ShareCalls(max_bytes=100), paired().program)
    assert checked.fired == 0 or checked.reasons
    assert any("more than max_bytes=100" in reason for reason in checked.reasons)


def test_noise_stays_in_the_step() -> None:
    traced = paired("""
        noise = ops.aten.rand_like.default(x)
        zero = ops.aten.mul.Tensor(noise, 0)
        noisy = ops.aten.add.Tensor(x, zero)
        enter = ops.aten.linear.default(noisy, w)
        add = ops.aten.add.Tensor(enter, c)
        return (add,)
    """)
    assert "common" not in places(traced).values()


def test_a_result_of_the_model_may_be_common() -> None:
    traced = paired("""
        enter = ops.aten.linear.default(x, w)
        add = ops.aten.add.Tensor(enter, c)
        return (add, enter)
    """)
    assert places(traced)["enter"] == "common"
