from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from diffusers.models.attention_processor import Attention, AttnProcessor
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir.program import Program, bind
from graphopt.ir.stages import REQUEST
from graphopt.passes import FuseAttention, SimplifyViews
from graphopt.testing import Traced, check_pass, programs, sketch, trace
from tests.goldens import Golden

aten = torch.ops.aten
EVERY = FuseAttention(min_bytes=0)
Tensor = torch.Tensor


def fused(program: Program) -> list[dict[str, Any]]:
    return [bind(node) for node in program.calls(aten.scaled_dot_product_attention.default)]


def written(
    q: Tensor, k: Tensor, v: Tensor, weights: Callable[[Tensor], Tensor] = lambda scores: (scores * 0.3).softmax(-1)
) -> Traced:
    return trace(lambda q, k, v: weights(q @ k.transpose(-1, -2)) @ v, q, k, v)


def heads(*batch: int, keys: int = 5, kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    one, two, three = (torch.randn(*batch, rows, 4, dtype=kind) for rows in (6, keys, keys))
    return one, two, three


BIAS, CLOSED = torch.randn(1, 1, 6, 5), torch.ones(6, 5, dtype=torch.bool).triu(2)
OPENING = torch.ones(6, 5, dtype=torch.bool).tril(2)  # with CLOSED all of each row, some of it twice
FACTOR = torch.tensor([2.0])
LOWEST = torch.finfo(torch.float32).min
FORMS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "plain": (lambda s: s.softmax(-1), 1.0),
    "multiplied": (lambda s: (s * 0.5).softmax(3), 0.5),
    "divided": (lambda s: (s / 4).softmax(-1), 0.25),
    "twice": (lambda s: (s * 3 / 4).softmax(-1), 0.75),
    "mask": (lambda s: (s * 0.5 + BIAS).softmax(-1), 0.5),
    "mask-first": (lambda s: (BIAS[0] + s).softmax(-1), 1.0),
    "mask-of-a-row": (lambda s: (s + BIAS[0, 0, 0]).softmax(-1), 1.0),
    "mask-of-a-column": (lambda s: (s + BIAS[..., :1]).softmax(-1), 1.0),
    "mask-of-integers": (lambda s: (s + CLOSED).softmax(-1), 1.0),
    "filled": (lambda s: s.masked_fill(CLOSED, LOWEST).softmax(-1), 1.0),
    "filled-everywhere": (lambda s: s.masked_fill(CLOSED | True, LOWEST).softmax(-1), 1.0),
    "where": (lambda s: torch.where(CLOSED, LOWEST, s).softmax(-1), 1.0),
    "where-not": (lambda s: torch.where(~CLOSED, s, LOWEST).softmax(-1), 1.0),
    "wide": (lambda s: s.double().softmax(-1).float(), 1.0),
    "wide-softmax": (lambda s: (s * 2).softmax(-1, dtype=torch.float64).float(), 2.0),
    "dropout": (lambda s: torch.nn.functional.dropout(s.softmax(-1), 0.5, False), 1.0),
    "regrouped": (lambda s: (s.view(2, 3, 6, 5) + BIAS).view(s.shape).softmax(-1), 1.0),
    "masks": (lambda s: ((s * 0.5 + BIAS).masked_fill(CLOSED, LOWEST) + BIAS[0]).softmax(-1), 0.5),
    "filled-twice": (lambda s: s.masked_fill(CLOSED, LOWEST).masked_fill(OPENING, LOWEST).softmax(-1), 1.0),
    "filled-over-mask": (lambda s: torch.where(CLOSED, s + LOWEST * OPENING, LOWEST).softmax(-1), 1.0),
    "core": (lambda s: torch.ops.aten._softmax.default(s, -1, False), 1.0),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    weights, scale = FORMS[form]
    checked = check_pass(EVERY, written(*heads(2, 3), weights).program)
    assert (checked.fired, checked.reasons) == (1, [])
    assert [entry["scale"] for entry in fused(checked.program)] == [pytest.approx(scale)]


@pytest.mark.parametrize(
    "batch", [(), (3,), (2, 3), (1, 1), (2, 1, 3)], ids=["none", "one", "two", "ones", "three"]
)  # fmt: skip
@pytest.mark.parametrize("masked", [False, True])
def test_batch_dimensions(batch: tuple[int, ...], masked: bool) -> None:
    mask = torch.randn(*batch[-1:], 6, 5)
    before = written(*heads(*batch), lambda s: (s + mask if masked else s).softmax(-1))
    checked = check_pass(EVERY, before.program)
    assert checked.fired == 1
    assert all(bind_["query"].meta["val"].ndim == 4 for bind_ in fused(checked.program))


def test_batch_dimensions_broadcast() -> None:
    q, k, v = heads(2, 3)
    assert check_pass(EVERY, written(q, k[:1, :1], v[0]).program).fired == 1
    assert check_pass(EVERY, written(q[0, 0], k, v).program).fired == 1


def test_scale_in_front() -> None:
    root = math.sqrt(0.5)
    before = trace(lambda q, k, v: ((q * root) @ (k * root).mT).softmax(-1) @ v, *heads(2, 3))
    checked = check_pass(EVERY, before.program)
    assert [entry["scale"] for entry in fused(checked.program)] == [pytest.approx(0.5)]
    assert not list(checked.program.calls(aten.mul.Tensor))


def test_strided_operands() -> None:
    def attention(x: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in x.unflatten(-1, (2, 12)).split(4, -1))
        mixed: Tensor = ((q @ k.permute(0, 1, 3, 2)) / 2).softmax(-1) @ v
        return mixed

    before = trace(attention, torch.randn(3, 7, 24)).program
    after = check_pass(EVERY, before).program
    (old,), (new,) = before.results, after.results
    assert old is not None and new is not None
    x = torch.randn(3, 7, 24)
    assert after.module()(x)[0].stride() == before.module()(x)[0].stride() == new.meta["val"].stride()


def test_keys_that_lie_in_columns() -> None:
    q, k, v = heads(3)
    checked = check_pass(EVERY, trace(lambda q, k, v: (q @ k).softmax(-1) @ v, q, k.mT.contiguous(), v).program)
    assert checked.fired == 1
    assert fused(checked.program)[0]["key"].meta["val"].stride(-1) == 1


class Scores(torch.nn.Module):
    """The products of diffusers' `Attention.get_attention_scores`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        base = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype) if mask is None else mask
        scores = torch.baddbmm(base, q, k.transpose(-1, -2), beta=0 if mask is None else 1, alpha=0.5)
        return torch.bmm(scores.softmax(-1), v)


def test_baddbmm(golden: Golden) -> None:
    before = trace(Scores(), *heads(3), torch.randn(3, 6, 5))
    checked = check_pass(EVERY, before.program)
    assert checked.fired == 1 and fused(checked.program)[0]["attn_mask"] is not None
    golden(before.rewritten(EVERY).body)
    assert check_pass(EVERY, trace(Scores(), *heads(3)).program).fired == 1


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(kind: torch.dtype) -> None:
    attention = Attention(16, 12, heads=2, dim_head=8, upcast_softmax=kind.itemsize < 8, processor=AttnProcessor()).to(
        kind
    )
    states = torch.randn(2, 6, 16, dtype=kind), torch.randn(2, 5, 12, dtype=kind)
    for upcast in (False, kind.itemsize == 2):
        attention.upcast_attention = upcast
        assert check_pass(EVERY, trace(attention, *states).program).fired == 1


@settings(max_examples=20)  # each is exported
@given(
    batch=st.lists(st.integers(1, 3), max_size=3),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    scale=st.floats(-4, 4).filter(lambda number: abs(number) > 1e-3),
    mask=st.sampled_from(["none", "keys", "queries", "both", "filled"]),
    kind=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_any_attention(
    batch: list[int], sizes: tuple[int, int, int], scale: float, mask: str, kind: torch.dtype
) -> None:
    rows, keys, width = sizes
    q, k, v = (torch.randn(*batch, count, width, dtype=kind) for count in (rows, keys, keys))
    bias = {"keys": (keys,), "queries": (rows, 1), "both": (rows, keys)}.get(mask)

    def weights(scores: Tensor) -> Tensor:
        scores = scores * scale
        if mask == "filled":
            scores = scores.masked_fill(torch.arange(keys) > 0, torch.finfo(kind).min)
        return (scores if bias is None else scores + torch.arange(math.prod(bias)).view(bias).to(kind)).softmax(-1)

    assert check_pass(EVERY, written(q, k, v, weights).program).fired == 1


@given(program=programs())
def test_random_graphs(program: Program) -> None:
    check_pass(EVERY, program, seeds=1)


# -- models ----------------------------------------------------------------------------------------------------------


def test_t5() -> None:
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, attn_implementation="eager"
    )  # fmt: skip
    ids, mask = torch.randint(2, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    before = trace(transformers.T5EncoderModel(config).eval(), input_ids=ids, attention_mask=mask)
    assert check_pass(EVERY, before.program).fired == 2


def test_clip() -> None:
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        attn_implementation="eager",
    )  # fmt: skip
    before = trace(transformers.CLIPTextModel(config).eval(), input_ids=torch.randint(2, 50, (2, 7)))
    assert check_pass(EVERY, before.program).fired == 2


def test_middle_block_of_a_vae() -> None:
    attention = Attention(
        8, heads=1, dim_head=8, norm_num_groups=2, residual_connection=True, bias=True, upcast_softmax=True,
        _from_deprecated_attn_block=True, processor=AttnProcessor(),
    )  # fmt: skip
    assert check_pass(EVERY, trace(attention, torch.randn(1, 8, 4, 5)).program).fired == 1


# -- refusals --------------------------------------------------------------------------------------------------------


def refused(reason: str, *args: Any) -> None:
    checked = check_pass(EVERY, (args[0] if isinstance(args[0], Traced) else written(*args)).program)
    assert checked.fired == 0 and [found[: len(reason)] for found in checked.reasons] == [reason]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (lambda s: s.softmax(-2), "the softmax runs over another dimension"),
        (lambda s: (s * FACTOR).softmax(-1), "the scale is a tensor"),
        (lambda s: (s * math.inf).softmax(-1), "the scale is not finite"),
        (lambda s: ((s + BIAS) * 0.5).softmax(-1), "a mask is scaled"),
        (lambda s: ((s + BIAS).view(2, 1, 6, 5) + BIAS).view(s.shape).softmax(-1), "masks are applied to scores of"),
        (lambda s: (s + BIAS.expand(3, 1, 6, 5)).softmax(-1), "the values or a mask have batch dimensions"),
        (lambda s: s.masked_fill(CLOSED, -math.inf).softmax(-1), "a row that is masked everywhere is NaN here"),
        (lambda s: s.masked_fill(CLOSED, -10000).softmax(-1), "a row that -10000.0 masks everywhere is uniform here"),
        (lambda s: (s + BIAS.double()).softmax(-1).float(), "torch.float32 does not hold a mask of torch.float64"),
        (lambda s: s.bfloat16().softmax(-1).float(), "the softmax is torch.bfloat16"),
    ],
)
def test_refusals(weights: Callable[[Tensor], Tensor], reason: str) -> None:
    refused(reason, *heads(1, 2), weights)


def test_maps_that_are_read_elsewhere_stay() -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = (q @ k.mT).softmax(-1)
        return weights @ v, weights

    refused("the scores or their softmax are read elsewhere too", trace(attention, *heads(2, 3)))
    refused("the scores or their softmax", trace(lambda q, k, v: (s := q @ k.mT).softmax(-1) @ v + s.sum(), *heads(3)))


def test_values_with_batch_dimensions_of_their_own() -> None:
    refused("the values or a mask have batch dimensions", *heads(3)[:2], torch.randn(2, 3, 5, 4))


def test_values_of_another_width() -> None:
    refused("keys and values have different widths", *heads(3)[:2], torch.randn(3, 5, 8))
    refused("keys and values have different widths", *heads()[:2], torch.randn(5))


def test_masks_of_many_batch_dimensions() -> None:
    mask = torch.randn(2, 3, 6, 5)
    refused("a mask has more than two", *heads(2, 2, 3), lambda s: (s + mask).softmax(-1))


def test_masks_times_a_number() -> None:
    program = trace(
        lambda q, k, v, m: torch.bmm(torch.baddbmm(m, q, k.mT, beta=2).softmax(-1), v), *heads(3), torch.randn(3, 6, 5)
    )
    refused("a mask is scaled", program)


def test_small_ones_stay() -> None:
    checked = check_pass(FuseAttention(), written(*heads(2, 3)).program)
    assert checked.reasons == ["the scores take 720 bytes, fewer than min_bytes=2097152"]
    assert check_pass(EVERY, written(*heads(2, 0)).program).reasons == [
        "the scores take 0 bytes, fewer than min_bytes=0"
    ]


def test_dtypes_differ() -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q.double() @ k.double().mT).softmax(-1).bfloat16() @ v.bfloat16()

    refused("queries, keys and values have different dtypes", trace(attention, *heads(3)))


EARLY = """
    turned = ops.aten.transpose.int(k, 1, 2)
    scores = ops.aten.bmm.default(q, turned)
    softmax = ops.aten.softmax.int(scores, -1)
    mixed = ops.aten.bmm.default(softmax, v)
    return (mixed,)
"""


def test_what_is_known_early_stays_there() -> None:
    early = {"q": "condition f32[1, 6, 4]", "k": "condition f32[1, 5, 4]", "v": "f32[1, 5, 4]"}
    refused("the softmax could be kept from an earlier stage", sketch(EARLY, **early))
    late = {**early, "q": "f32[1, 6, 4]", "v": "condition f32[1, 5, 4]"}
    assert check_pass(EVERY, sketch(EARLY, **late).program).fired == 1


def test_placements() -> None:
    program = sketch(EARLY, **dict.fromkeys("qkv", "condition f32[1, 6, 4]")).program
    for node in program.calls():
        node.meta["placement"] = REQUEST
    after = check_pass(EVERY, program).program
    assert all(node.meta["placement"] == REQUEST for node in after.calls())
    next(reversed(list(program.calls()))).meta.pop("placement")
    refused("the softmax could be kept from an earlier stage", Traced(program))


def test_symbolic_sizes() -> None:
    program = written(*heads(3)).program
    mode = program.placeholders[0].meta["val"].fake_mode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode.shape_env = ShapeEnv()
    match = next(iter(EVERY.find(program)))
    with mode:
        program.placeholders[2].meta["val"] = torch.empty(3, mode.shape_env.create_unbacked_symint(), 4)
    refusal = EVERY.legal(program, match)
    assert refusal is not None and refusal.reason == "a size is known only when the program runs"


def test_other_products_are_left_alone() -> None:
    for weights in (
        lambda s: torch.nn.functional.dropout(s.softmax(-1), 0.5),
        lambda s: (s.relu() + 1).softmax(-1),
        lambda s: s.softmax(-1).mT.mT * 2,
        lambda s: (s + s).softmax(-1),
    ):
        assert not list(EVERY.find(written(*heads(3), weights).program))
    square = trace(lambda q: (p := (q @ q.mT).softmax(-1)) @ p, torch.randn(3, 4, 4))
    assert not list(EVERY.find(square.rewritten(SimplifyViews()).program))
