from __future__ import annotations

import pytest
import torch

from graphopt.ir.program import Program
from graphopt.passes import FoldConstants, SimplifyIdentities, Upcast
from graphopt.testing import Traced, check_pass, sketch, trace
from tests.goldens import Golden

ALWAYS = Upcast(always=True, products=False)
ROUNDED = Upcast(always=True, products=True)
LINEAR = "linear = ops.aten.linear.default(x, w, b)\nreturn (linear,)"


class Block(torch.nn.Module):
    """Norms in float32, as diffusers computes them, a timestep that is cast, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project = torch.nn.LayerNorm(8), torch.nn.Linear(8, 24)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.nn.functional.layer_norm(x.float(), (8,), self.norm.weight.float(), self.norm.bias.float()).to(
            x.dtype
        )
        hidden = hidden + t.to(x.dtype)[:, None, None] * 0.01
        query, key, value = self.project(hidden)[:, None].chunk(3, dim=-1)
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + found, torch.cat([found, x], dim=-1).permute(0, 2, 1)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_block(kind: torch.dtype, golden: Golden) -> None:
    before = trace(Block().to(kind), torch.randn(2, 5, 8, dtype=kind), torch.tensor([3, 981]))
    checked = check_pass(ALWAYS, before.program)
    assert checked.fired == 1
    results = [(n.meta["val"].dtype, n.meta["val"].stride()) for n in checked.program.results if n is not None]
    assert results == [(n.meta["val"].dtype, n.meta["val"].stride()) for n in before.program.results if n is not None]
    if kind == torch.bfloat16:
        golden(Traced(checked.program).body, "block")


def test_casts_in_between_are_identities_afterwards() -> None:
    before = trace(Block().to(torch.bfloat16), torch.randn(2, 5, 8, dtype=torch.bfloat16), torch.tensor([3, 981]))
    after = before.rewritten(ALWAYS).rewritten(SimplifyIdentities()).program
    casts = [node for node in after.calls(torch.ops.aten._to_copy.default) if node.kwargs["dtype"] == torch.float32]
    sources = [node.all_input_nodes[0] for node in casts if node.all_input_nodes[0].meta["val"].is_floating_point()]
    assert sorted(node.name for node in sources if node.op == "call_function") == ["mul"]  # the timestep's


def test_weights_are_widened_once() -> None:
    before = sketch(LINEAR, x="bf16[4, 8]", w="weight bf16[512, 8]", b="weight bf16[512]").rewritten(ALWAYS)
    text = before.rewritten(FoldConstants()).body
    assert "w_wide = ops.aten._to_copy.default(w, dtype=torch.float32)  # f32[512, 8]; @weights" in text


def test_inputs_that_are_given_back() -> None:
    body = "y = ops.aten.neg.default(x)\nreturn (x, y, z)"
    checked = check_pass(ALWAYS, sketch(body, x="bf16[4, 8]", z="f32[3]").program)
    assert checked.fired == 1
    assert [node.meta["val"].dtype for node in checked.program.results if node is not None] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    ]


def test_what_is_wide_stays(golden: Golden) -> None:
    before = sketch(LINEAR, x="f32[4, 8]", w="weight f32[6, 8]", b="weight f32[6]")
    checked = check_pass(ALWAYS, before.program)
    assert checked.fired == 0 and not checked.reasons


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "y = ops.aten.view.dtype(x, torch.int16)\nz = ops.aten.neg.default(x)\nreturn (y, z)",
            "aten.view.dtype reads",
        ),
        ("y = ops.aten.rand_like.default(x)\nreturn (y,)", "aten.rand_like.default does more than compute"),
    ],
)
def test_refusals(body: str, reason: str) -> None:
    checked = check_pass(ALWAYS, sketch(body, x="bf16[4, 8]").program)
    assert checked.fired == 0
    assert checked.reasons[0].startswith(reason)


def test_instructions_for_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    program = sketch(LINEAR, x="bf16[4, 8]", w="weight bf16[6, 8]", b="weight bf16[6]").program
    monkeypatch.setitem(Upcast.find.__globals__["_HALVES"], torch.bfloat16, lambda: True)
    assert check_pass(Upcast(products=False), program).reasons == ["this CPU has fast instructions for torch.bfloat16"]
    assert check_pass(Upcast(products=True), program).fired == 1
    monkeypatch.setitem(Upcast.find.__globals__["_HALVES"], torch.bfloat16, lambda: False)
    assert check_pass(Upcast(), program).fired == 1


def test_timesteps_stay_rounded() -> None:
    """981 is 980 in bfloat16: a network that was trained with one of them is another function of the other."""

    class Timed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(8, 8, dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            angles = t.to(x.dtype)[:, None] * 10 * torch.arange(1, 9)
            result: torch.Tensor = self.project(x) + torch.sin(angles.float()).to(x.dtype)
            return result

    before = trace(Timed(), torch.randn(2, 8, dtype=torch.bfloat16), torch.tensor([3, 981]))
    after = check_pass(ALWAYS, before.program).program
    casts = [node for node in after.calls(torch.ops.aten._to_copy.default) if node.all_input_nodes[0].name == "t"]
    assert [node.kwargs["dtype"] for node in casts] == [torch.bfloat16]


def test_decisions_stay() -> None:
    decided = sketch("y = ops.aten.gt.Scalar(x, 0.5)\nz = ops.aten.neg.default(x)\nreturn (y, z)", x="bf16[4, 8]")
    assert check_pass(ALWAYS, decided.program).reasons[0].startswith("a result is of torch.bool")


def test_an_input_that_is_given_back_is_the_same_object() -> None:
    after = check_pass(ALWAYS, sketch("y = ops.aten.neg.default(x)\nreturn (x, y)", x="bf16[4]").program).program
    assert after.results[0] is after.placeholders[0]


def test_not_after_placing() -> None:
    before = sketch(LINEAR, x="bf16[4, 8]", w="weight bf16[512, 8]", b="weight bf16[512]")
    doubled = sketch("y = ops.aten.mul.Tensor(w, 2)\nz = ops.aten.mul.Tensor(x, y)\nreturn (z,)",
                     x="bf16[4, 8]", w="weight bf16[4, 8]")  # fmt: skip
    assert check_pass(ALWAYS, before.rewritten(FoldConstants()).program).fired == 1  # nothing to place
    (reason,) = check_pass(ALWAYS, doubled.rewritten(FoldConstants()).program).reasons
    assert reason.startswith("it is placed in a stage already")


def rounded(program: Program) -> list[str]:
    """Nodes that are rounded to bfloat16 and widened again."""
    copies = program.calls(torch.ops.aten._to_copy.default)
    narrow = [node for node in copies if node.meta["val"].dtype == torch.bfloat16 and program.output not in node.users]
    assert all(user.kwargs["dtype"] == torch.float32 for node in narrow for user in node.users)
    return [node.all_input_nodes[0].name for node in narrow]


def test_factors_of_products_are_rounded(golden: Golden) -> None:
    class Layers(torch.nn.Module):
        """Two layers read one value; a weight is computed; a product is by the user's will in float32."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False)
            self.conv = torch.nn.Conv2d(2, 3, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            hidden = torch.nn.functional.silu(x)
            both = self.first(hidden) + torch.nn.functional.linear(hidden, self.second.weight * 0.5)
            wide = hidden.float() @ self.second.weight.float()
            return both, wide, self.conv(torch.tanh(x).view(1, 2, 4, 8))

    before = trace(Layers().to(torch.bfloat16), torch.randn(8, 8, dtype=torch.bfloat16))
    checked = check_pass(ROUNDED, before.program)
    assert checked.fired == 1
    assert rounded(checked.program) == ["silu", "mul", "view"]
    assert rounded(check_pass(ROUNDED, checked.program).program) == ["silu", "mul", "view"]  # nothing is left to do
    golden(Traced(checked.program).body)


def test_attention_stays_in_float32() -> None:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.mT * 0.3, -1) @ v + q @ v

    inputs = (torch.randn(2, 8, 8, dtype=torch.bfloat16) for _ in range(3))
    before = trace(attend, *inputs)
    checked = check_pass(ROUNDED, before.program)
    assert checked.fired == 1 and rounded(checked.program) == []  # inputs are of bfloat16 to begin with
    (softmax,) = checked.program.calls(torch.ops.aten.softmax.int)
    assert [user.target for user in softmax.users] == [torch.ops.aten.matmul.default]


def test_float16_is_not_rounded() -> None:
    before = sketch(
        "y = ops.aten.neg.default(x)\nlinear = ops.aten.linear.default(y, w)\nreturn (linear,)",
        x="f16[4, 8]", w="weight f16[6, 8]",
    )  # fmt: skip
    assert rounded(check_pass(ROUNDED, before.program).program) == []
