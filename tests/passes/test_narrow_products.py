from __future__ import annotations

import pytest
import torch

from graphopt.ir import products
from graphopt.ir.printer import dump, parse
from graphopt.ir.stages import WEIGHTS, placement
from graphopt.passes import FoldConstants, MergeLinears, NarrowProducts, Upcast
from graphopt.pipelines import generated
from graphopt.testing import Traced, check_pass, sketch, trace
from tests.goldens import Golden

ALWAYS = NarrowProducts(always=True)
ROUNDED = """
narrow = ops.aten._to_copy.default(x, dtype=torch.bfloat16)
rounded = ops.aten._to_copy.default(narrow, dtype=torch.float32)
wide = ops.aten._to_copy.default(w, dtype=torch.float32)
"""


def product(body: str, **inputs: str) -> Traced:
    return sketch(f"{ROUNDED}{body}\nreturn (y,)", **inputs)


class Block(torch.nn.Module):
    """Layers that share their input, a convolution, a matrix product, and a layer with another type of weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 6), torch.nn.Linear(8, 10, bias=False)])
        self.conv, self.own = torch.nn.Conv2d(2, 4, 3, 2, padding=1), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = torch.nn.functional.silu(x)
        one, other = (layer(hidden) for layer in self.layers)
        wide = torch.nn.functional.linear(hidden.float(), self.own.weight.float() * 3)
        images = self.conv(torch.tanh(x).view(1, 2, 4, 8))
        return one * 2, other * 3, wide, images, torch.sin(one).mT @ torch.cos(other)


def test_block(golden: Golden) -> None:
    before = trace(Block().to(torch.bfloat16), torch.randn(8, 8, dtype=torch.bfloat16))
    program = before.program
    for entry in (Upcast(always=True, products=True), MergeLinears()):
        program = check_pass(entry, program).program
    checked = check_pass(ALWAYS, program)
    assert checked.fired == 3 and not checked.reasons
    assert len(list(checked.program.calls(torch.ops.aten.linear.default))) == 1  # that of the user's float32
    golden(Traced(checked.program).body)


def test_dump_reads_back() -> None:
    after = check_pass(
        ALWAYS, product("y = ops.aten.linear.default(rounded, wide)", x="f32[2, 3]", w="bf16[4, 3]").program
    )
    assert dump(parse(dump(after.program))) == dump(after.program)


@pytest.mark.parametrize(
    ("body", "x", "w"),
    [
        ("y = ops.aten.mm.default(rounded, wide)", "f32[4, 3]", "bf16[3, 5]"),
        ("y = ops.aten.bmm.default(rounded, wide)", "f32[2, 4, 3]", "bf16[2, 3, 5]"),
        ("y = ops.aten.matmul.default(rounded, wide)", "f32[2, 4, 3]", "bf16[3]"),
        ("v = ops.aten.permute.default(wide, [1, 0])\ny = ops.aten.mm.default(rounded, v)", "f32[4, 3]", "bf16[5, 3]"),
        (
            "c = ops.aten.cat.default([wide, wide], 1)\ny = ops.aten.matmul.default(rounded, c)",
            *("f32[4, 3]", "bf16[3, 5]"),
        ),
        (
            "s = ops.aten.split.Tensor(wide, 2, 1)\na = operator.getitem(s, 0)\n"
            "y = ops.aten.matmul.default(rounded, a)",
            *("f32[4, 3]", "bf16[3, 5]"),
        ),
        (
            "y = ops.aten.conv2d.default(rounded, wide, None, [2, 1], [0, 1])",
            *("f32[2, 3, 8, 8]", "weight bf16[4, 3, 3, 2]"),
        ),
    ],
)
def test_products(body: str, x: str, w: str) -> None:
    checked = check_pass(ALWAYS, product(body, x=x, w=w).program)
    assert checked.fired == 1
    (node,) = checked.program.calls(*products.NARROW.values())
    assert all(factor.meta["val"].dtype == torch.bfloat16 for factor in products.factors(node))


def test_what_is_read_twice_is_moved_once() -> None:
    body = "\n".join(
        (
            "v = ops.aten.view.default(rounded, [3, 4])",
            "u = ops.aten.matmul.default(wide, v)",
            "t = ops.aten.matmul.default(v, wide)",
            "a = ops.aten.sum.default(u)",
            "b = ops.aten.sum.default(t)",
            "y = ops.aten.add.Tensor(a, b)",
        )
    )
    checked = check_pass(ALWAYS, product(body, x="f32[4, 3]", w="bf16[4, 3]").program)
    assert checked.fired == 2
    assert len(list(checked.program.calls(torch.ops.aten.view.default))) == 1


@pytest.mark.parametrize(
    ("body", "w", "reason"),
    [
        (
            "y = ops.aten.conv2d.default(rounded, wide, None, [1, 1], [1, 1], [1, 1], 2)",
            *("weight bf16[4, 2, 3, 3]", "it has 2 groups"),
        ),
        ("y = ops.aten.conv2d.default(rounded, wide)", "bf16[4, 4, 3, 3]", "the filter is computed from inputs"),
        ("y = ops.aten.matmul.default(rounded, wide)", "bf16[0, 4, 8, 0]", "there is nothing to multiply"),
    ],
)  # fmt: skip
def test_refusals(body: str, w: str, reason: str) -> None:
    checked = check_pass(ALWAYS, product(body, x="f32[1, 4, 8, 8]", w=w).program)
    assert checked.fired == 0
    assert checked.reasons[0].startswith(reason)


def test_one_image_without_a_batch() -> None:
    body = "y = ops.aten.conv2d.default(rounded, wide)"
    checked = check_pass(ALWAYS, product(body, x="f32[4, 8, 8]", w="weight bf16[4, 4, 3, 3]").program)
    assert checked.reasons == ["it is of one image without a batch"]


def test_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    program = product("y = ops.aten.linear.default(rounded, wide)", x="f32[2, 3]", w="bf16[4, 3]").program
    monkeypatch.setattr(products, "supported", lambda: False)
    assert check_pass(NarrowProducts(), program).reasons == ["products of bfloat16 are not faster on this CPU"]
    monkeypatch.setattr(products, "supported", lambda: True)
    assert check_pass(NarrowProducts(), program).fired == 1


@pytest.mark.parametrize(
    "view",
    [
        "v = ops.aten.view.default(wide, [6, 4])",
        "v = ops.aten.as_strided.default(wide, [6, 4], [4, 1], 0)",
    ],
)
def test_views_of_what_lay_apart_before_it_was_widened_stay(view: str) -> None:
    """A copy of a part lies together: a view of it is no view of the part."""
    body = f"""
        part = ops.aten.slice.Tensor(w, 1, 0, 4)
        wide = ops.aten._to_copy.default(part, dtype=torch.float32)
        narrow = ops.aten._to_copy.default(x, dtype=torch.bfloat16)
        rounded = ops.aten._to_copy.default(narrow, dtype=torch.float32)
        {view}
        y = ops.aten.linear.default(rounded, v)
        return (y,)
    """
    checked = check_pass(ALWAYS, sketch(body, x="f32[2, 4]", w="bf16[6, 8]").program)
    assert checked.fired == 0


def test_a_factor_of_float32_stays() -> None:
    body = "y = ops.aten.linear.default(x, wide)"
    checked = check_pass(ALWAYS, product(body, x="f32[2, 3]", w="bf16[4, 3]").program)
    assert checked.fired == 0 and not checked.reasons


def test_weights_stay_narrow() -> None:
    """What is made of weights and kept is of bfloat16."""
    body = "c = ops.aten.cat.default([wide, wide])\ny = ops.aten.linear.default(rounded, c)"
    program = product(body, x="f32[2, 512]", w="weight bf16[512, 512]").rewritten(ALWAYS).program
    fold = next(entry for entry in generated if isinstance(entry, FoldConstants))
    folded = check_pass(fold, program).program
    kept = [node for node in folded.calls() if placement(node) == WEIGHTS]
    assert [node.meta["val"].dtype for node in kept] == [torch.bfloat16]
