from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from graphopt.ir.driver import run_pipeline
from graphopt.passes import RejoinParts
from graphopt.pipelines import bitwise
from graphopt.testing import Checked, Traced, check_pass, sketch, trace
from tests.goldens import Golden

END = 2**63 - 1

HALVES = f"""
add = ops.aten.add.Tensor(x, x)
text = ops.aten.slice.Tensor(add, 1, 0, 2)
image = ops.aten.slice.Tensor(add, 1, 2, {END})
cat = ops.aten.cat.default([text, image], 1)
silu = ops.aten.silu.default(cat)
return (silu,)
"""


def halves(old: str = "", new: str = "", **inputs: str) -> Traced:
    return sketch(HALVES.replace(old, new), **{"x": "f32[2, 6, 4]", **inputs})


def checked(traced: Traced) -> Checked:
    return check_pass(RejoinParts(), traced.program)


def test_halves(golden: Golden) -> None:
    before = halves()
    assert checked(before).fired == 1
    golden(before.rewritten(RejoinParts()).body)


def test_a_part_that_is_read_elsewhere_stays(golden: Golden) -> None:
    before = halves("return (silu,)", "sin = ops.aten.sin.default(text)\nreturn (silu, sin)")
    assert checked(before).fired == 1
    golden(before.rewritten(RejoinParts()).body)


@pytest.mark.parametrize(
    "parts",
    [
        "ops.aten.split.Tensor(add, 3, 1)",
        "ops.aten.split_with_sizes.default(add, [5, 1], 1)",
        "ops.aten.split_with_sizes.default(add, [6, 0], -2)",
        "ops.aten.chunk.default(add, 2, 1)",
    ],
)
def test_any_way_of_cutting(parts: str) -> None:
    body = f"""
        add = ops.aten.add.Tensor(x, x)
        parts = {parts}
        one = operator.getitem(parts, 0)
        two = operator.getitem(parts, 1)
        cat = ops.aten.cat.default([one, two], 1)
        silu = ops.aten.silu.default(cat)
        return (silu,)
    """
    after = checked(sketch(body, x="f32[2, 6, 4]"))
    assert (after.fired, [node.name for node in after.program.calls()]) == (1, ["add", "silu"])


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    data=st.data(),
    count=st.integers(1, 4),
)
def test_parts_of_any_value_in_any_order(sizes: list[int], data: st.DataObject, count: int) -> None:
    """Where it fires it is right, which `check_pass` sees; it fires for all of a contiguous value, in order."""
    dim = data.draw(st.integers(0, len(sizes) - 1))
    bounds = sorted(data.draw(st.lists(st.integers(0, sizes[dim]), min_size=count - 1, max_size=count - 1)))
    ranges = list(zip([0, *bounds], [*bounds, sizes[dim]], strict=True))
    chosen = data.draw(st.lists(st.sampled_from(ranges), min_size=1, max_size=4) | st.just(ranges))
    turned = data.draw(st.booleans()) and len(sizes) > 1
    lines = ["y = ops.aten.transpose.int(x, 0, -1)" if turned else "y = ops.aten.sin.default(x)"]
    shape = [sizes[-1], *sizes[1:-1], sizes[0]] if turned else sizes
    lines += [
        f"part{number} = ops.aten.slice.Tensor(y, {dim}, {low}, {high})" for number, (low, high) in enumerate(chosen)
    ]
    names = ", ".join(f"part{number}" for number in range(len(chosen)))
    lines += [f"cat = ops.aten.cat.default([{names}], {dim})", "cos = ops.aten.cos.default(cat)", "return (cos,)"]
    after = checked(sketch("\n".join(lines), x=f"f32{shape}"))
    if chosen == ranges and not turned:
        assert after.fired == 1
    if [entry for entry in chosen if entry[0] < entry[1]] != [entry for entry in ranges if entry[0] < entry[1]]:
        assert after.fired == 0 or 1 in sizes


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[text, image]", "[image, text]", "the parts are not all of the value that they were cut from, in order"),
        ("[text, image]", "[text, text]", "the parts are not all of the value that they were cut from, in order"),
        ("[text, image]", "[image]", "the parts are not all of the value that they were cut from, in order"),
        ("add, 1, 0, 2)", "add, 1, 0, 3)", "the parts are not all of the value that they were cut from, in order"),
        (f"2, {END})", f"2, {END}, 2)", "the parts are not all of the value that they were cut from, in order"),
        ("image], 1)", "image], 0)", "the parts are not all of the value that they were cut from, in order"),
        (
            "add.Tensor(x, x)",
            "permute.default(x, [0, 2, 1])",
            "the copy has strides (36, 6, 1), the original (36, 1, 6)",
        ),
        ("add.Tensor(x, x)", "alias.default(x)\ny = ops.aten.sin.default(add)", ""),
    ],
)
def test_refuses(old: str, new: str, reason: str) -> None:
    size = "f32[2, 6, 6]" if "permute" in new else "f32[2, 4, 4]"
    traced = halves(old, new, x=size)
    after = checked(traced)
    assert (after.fired, after.reasons) == ((0, [reason]) if reason else (1, []))


def test_refuses_to_return_one_value_twice() -> None:
    body = f"""
        add = ops.aten.add.Tensor(x, x)
        text = ops.aten.slice.Tensor(add, 1, 0, 2)
        image = ops.aten.slice.Tensor(add, 1, 2, {END})
        cat = ops.aten.cat.default([text, image], 1)
        return (cat, add)
    """
    after = checked(sketch(body, x="f32[2, 4, 4]"))
    assert (after.fired, after.reasons) == (0, ["two results would share memory"])


def test_refuses_to_return_an_input() -> None:
    body = f"""
        text = ops.aten.slice.Tensor(x, 1, 0, 2)
        image = ops.aten.slice.Tensor(x, 1, 2, {END})
        cat = ops.aten.cat.default([text, image], 1)
        return (cat,)
    """
    after = checked(sketch(body, x="f32[2, 6]"))
    assert (after.fired, after.reasons) == (0, ["a result would share memory with an input"])


def test_leaves_parts_of_different_values_alone() -> None:
    body = f"""
        text = ops.aten.slice.Tensor(x, 1, 0, 2)
        image = ops.aten.slice.Tensor(y, 1, 2, {END})
        cat = ops.aten.cat.default([text, image], 1)
        other = ops.aten.cat.default([x, image], 1)
        return (cat, other)
    """
    after = checked(sketch(body, x="f32[2, 6]", y="f32[2, 6]"))
    assert (after.fired, after.reasons) == (0, [])


def test_two_single_stream_blocks_of_flux() -> None:
    model = diffusers.FluxTransformer2DModel(
        num_layers=1, num_single_layers=3, num_attention_heads=2, attention_head_dim=8, joint_attention_dim=8,
        pooled_projection_dim=8, in_channels=4, axes_dims_rope=(2, 2, 4),
    ).eval()  # fmt: skip
    call: dict[str, Any] = {
        "hidden_states": torch.randn(1, 6, 4), "encoder_hidden_states": torch.randn(1, 5, 8),
        "pooled_projections": torch.randn(1, 8), "timestep": torch.tensor([1.0]), "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(5, 3), "return_dict": False,
    }  # fmt: skip
    clean = run_pipeline(bitwise[:4], trace(model, **call).program)
    after = check_pass(RejoinParts(), clean)
    # Between three blocks in a row; the halves of sines and cosines of the timestep are swapped.
    assert after.fired == 2
    assert set(after.reasons) == {"the parts are not all of the value that they were cut from, in order"}


def test_a_size_that_is_known_only_when_the_program_runs() -> None:
    program = halves().program
    (match,) = RejoinParts().find(program)
    mode = match.nodes[0].meta["val"].fake_mode
    mode.shape_env = ShapeEnv()
    with mode:
        match.nodes[0].meta["val"] = torch.empty(2, mode.shape_env.create_unbacked_symint(), 4)
    refusal = RejoinParts().legal(program, match)
    assert refusal is not None and refusal.reason == "a size is known only when the program runs"
