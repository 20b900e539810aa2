from __future__ import annotations

import pytest
import torch

from graphopt.passes import FoldConstants, SimplifyIdentities, Upcast
from graphopt.testing import Traced, check_pass, sketch, trace
from tests.goldens import Golden

ALWAYS = Upcast(always=True)
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
    assert check_pass(Upcast(), program).reasons == ["this CPU has instructions for torch.bfloat16"]
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
