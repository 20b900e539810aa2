from __future__ import annotations

from collections.abc import Callable

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from graphopt.ir.cost import program_cost
from graphopt.ir.program import Program, shape
from graphopt.ir.repeats import repeats
from graphopt.ir.stages import REQUEST, placement
from graphopt.passes import MergeCommon, RemoveDead, ShareRepeats, SimplifyIdentities, SimplifyViews
from graphopt.testing import Traced, check_pass, random_graph, sketch, trace
from tests.goldens import Golden
from tests.passes.relations import repeated

# Sharing pays however small the work.
EVERY = ShareRepeats(flops_per_byte=1e-3, dispatch_bytes=0)
CLEAN = (RemoveDead(), SimplifyViews(), SimplifyIdentities(), MergeCommon())


class UNetBlock(torch.nn.Module):
    """A residual block with a timestep embedding, then self- and cross-attention over pixels."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(4, width, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, width)
        self.second = torch.nn.Conv2d(width, width, 3, padding=1)
        self.time = torch.nn.Linear(4, width)
        self.query, self.key, self.value, self.cross = (torch.nn.Linear(width, width) for _ in range(4))
        self.last = torch.nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        attend = torch.nn.functional.scaled_dot_product_attention
        hidden = self.first(sample)
        angles = timestep[:, None].float() * torch.exp(torch.arange(2.0))
        embedded = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        hidden = hidden + self.second(torch.nn.functional.silu(self.norm(hidden)) + embedded[:, :, None, None])
        tokens = hidden.flatten(2).transpose(1, 2)
        heads = [x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (self.query(tokens), self.key(tokens), tokens)]
        tokens = tokens + attend(*heads).transpose(1, 2).flatten(2)
        keys = [x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (self.key(prompt), self.value(prompt))]
        query = self.cross(tokens).unflatten(-1, (2, -1)).transpose(1, 2)
        tokens = tokens + attend(query, *keys).transpose(1, 2).flatten(2)
        result: torch.Tensor = self.last(tokens.transpose(1, 2).reshape(hidden.shape))
        return result


class PixArtBlock(torch.nn.Module):
    """Patches, modulation by a table and the timestep, self-attention, cross-attention."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(4, width, 2, stride=2)
        self.register_buffer("position", torch.randn(1, 16, width))
        self.table = torch.nn.Parameter(torch.randn(3, width))
        self.time = torch.nn.Linear(1, 3 * width)
        self.project, self.cross = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        attend = torch.nn.functional.scaled_dot_product_attention
        tokens = self.patch(sample).flatten(2).transpose(1, 2) + self.position
        modulation = self.time(timestep[:, None].float()).reshape(sample.shape[0], 3, -1) + self.table[None]
        shift, scale, gate = modulation.chunk(3, dim=1)
        normed = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:]) * (1 + scale) + shift
        tokens = tokens + gate * attend(*self.project(normed).chunk(3, dim=-1))
        result: torch.Tensor = tokens + attend(self.cross(tokens), prompt, prompt)
        return result


def guided(model: torch.nn.Module, images: int = 1, count: int = 2) -> Traced:
    batch = images * count
    args = torch.randn(batch, 4, 8, 8), torch.zeros(batch, dtype=torch.int64), torch.randn(batch, 5, 8)
    before = trace(model, *args, roles={"timestep": "time", "prompt": "condition"}).rewritten(*CLEAN)
    return Traced(repeated(before.program, "sample", "timestep", count=count))


def unshared(program: Program, batch: int) -> int:
    """Layers and attentions that still run on the whole batch."""
    layers = torch.ops.aten.linear.default, torch.ops.aten.conv2d.default
    attention = torch.ops.aten.scaled_dot_product_attention.default
    return sum(shape(node)[0] == batch for node in program.calls(*layers, attention))


@pytest.mark.parametrize("model", [UNetBlock, PixArtBlock])
def test_guidance(model: type[torch.nn.Module], golden: Golden) -> None:
    before = guided(model())
    assert check_pass(EVERY, before.program).fired == 1
    golden(before.rewritten(EVERY).body, case=f"guided_{model.__name__}")


@pytest.mark.parametrize("model", [UNetBlock, PixArtBlock])
@pytest.mark.parametrize(("images", "count"), [(2, 2), (1, 3), (3, 2)])
def test_guidance_of_several_images(model: type[torch.nn.Module], images: int, count: int) -> None:
    before = guided(model(), images, count)
    after = check_pass(EVERY, before.program).program
    # Left: keys and values of the prompt, cross-attention, and the last convolution of the U-Net.
    assert unshared(after, images * count) == (4 if model is UNetBlock else 1)


def test_one_timestep_for_several_images(golden: Golden) -> None:
    body = """
        batch = ops.aten.cat.default([x, x])
        times = ops.aten.expand.default(t, [6, 8])
        embedded = ops.aten.linear.default(times, w)
        add = ops.aten.add.Tensor(batch, embedded)
        mul = ops.aten.mul.Tensor(add, c)
        return (mul,)
    """
    before = sketch(body, x="f32[3, 8]", t="time f32[1, 8]", c="condition f32[6, 8]", w="weight f32[8, 8]")
    assert check_pass(EVERY, before.program).fired
    golden(before.rewritten(EVERY).body)


def small_unet() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    model = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return model, {"sample": torch.randn(2, 4, 16, 16)}


def small_pixart() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=16, caption_channels=16,
        cross_attention_dim=16,
    )  # fmt: skip
    return model, {"hidden_states": torch.randn(2, 4, 16, 16)}


UNET_PARTS = (
    "conv_in",
    "down_blocks.0.resnets.0.conv2",
    *(f"down_blocks.0.attentions.0.transformer_blocks.0.{layer}" for layer in ("attn1.to_out.0", "attn2.to_q")),
)
PIXART_PARTS = "pos_embed.proj", *(f"transformer_blocks.0.{layer}" for layer in ("attn1.to_out.0", "attn2.to_q"))


@pytest.mark.parametrize(("make", "parts"), [(small_unet, UNET_PARTS), (small_pixart, PIXART_PARTS)])
def test_models(make: Callable[[], tuple[torch.nn.Module, dict[str, torch.Tensor]]], parts: tuple[str, ...]) -> None:
    model, states = make()
    (state,) = states
    given = {**states, "timestep": torch.ones(2), "encoder_hidden_states": torch.randn(2, 5, 16)}
    options = {} if state == "sample" else {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    roles = {"timestep": "time", "encoder_hidden_states": "condition"}
    traced = trace(model.eval(), **given, **options, return_dict=False, roles=roles)  # type: ignore[arg-type]
    before = repeated(traced.rewritten(*CLEAN).program, state, "timestep")
    after = check_pass(EVERY, before, seeds=1).program
    assert program_cost(after).flops < program_cost(before).flops
    layers = torch.ops.aten.linear.default, torch.ops.aten.conv2d.default
    shared = {node.meta["module"] for node in after.calls(*layers) if shape(node)[0] == 1}
    whole = {node.meta["module"] for node in after.calls(*layers) if shape(node)[0] == 2}
    for part in parts:
        assert any(part in name for name in shared) and part not in whole, part


# -- operators -------------------------------------------------------------------------------------------------------

INPUTS = {"x": "f32[1, 4, 6, 8]", "c": "f32[2, 4, 6, 8]", "w": "weight f32[8, 8]", "k": "weight f32[4, 4, 3, 3]",
          "b": "weight f32[8]", "i": "i64[1, 3]", "p": "f32[1, 3]"}  # fmt: skip
CARRIED = [
    "linear.default(h, w)", "conv2d.default(h, k, None, [1, 1], 'same')", "group_norm.default(h, 2)",
    "conv2d.padding(h, k, None, [1, 1], 'same')", "conv_transpose2d.input(h, k)", "layer_norm.default(h, [8], b)",
    "rms_norm.default(h, [8], b)", "softmax.int(h, -1)", "mean.dim(h, [1, 2])", "mean.dim(h, [-1], True)",
    "sum.dim_IntList(h, [2])", "var.correction(h, [3], correction=1)", "amax.default(h, [1])",
    "view.default(h, [2, 24, 8])", "view.default(h, [48, 8])", "view.default(h, [-1])", "flatten.using_ints(h, 0, 1)",
    "unflatten.int(h, 0, [2, 1])", "unflatten.int(h, 1, [2, 2])", "reshape.default(h, [2, 2, 2, 6, 8])",
    "transpose.int(h, 0, -1)", "permute.default(h, [3, 1, 0, -2])", "unsqueeze.default(h, 0)",
    "unsqueeze.default(h, -1)", "squeeze.dim(h, 1)", "expand.default(h, [3, 2, 4, 6, 8])",
    "repeat.default(h, [1, 3, 1, 1])",
    "slice.Tensor(h, 2, 1, 4)", "select.int(h, 1, 0)", "select.int(h, -1, 0)", "narrow.default(h, 1, 1, 2)",
    "flip.default(h, [2])", "cumsum.default(h, 1)", "glu.default(h, -1)",
    "index_select.default(h, 1, ops.aten.arange.default(2))",
    "upsample_nearest2d.vec(h, None, [2.0, 2.0])", "upsample_bilinear2d.vec(h, [5, 5], False, None)",
    "pad.default(h, [1, 1, 0, 2])", "constant_pad_nd.default(h, [1, 1])", "avg_pool2d.default(h, [2, 2])",
    "pixel_shuffle.default(h, 2)", "neg.default(ops.aten.clone.default(h, memory_format=torch.channels_last))",
    "_to_copy.default(h, dtype=torch.float64)", "zeros_like.default(h)", "stack.default([h, h], 1)",
    "where.ScalarSelf(ops.aten.gt.Scalar(h, 0), 1.0, h)", "cat.default([h, h], -1)", "mul.Tensor(h, x)",
    "add.Tensor(h, b)", "clamp.default(h, 0)",
    "matmul.default(h, w)", "matmul.default(w, ops.aten.transpose.int(h, -1, -2))",
    "matmul.default(h, ops.aten.transpose.int(h, -1, -2))", "mm.default(ops.aten.view.default(h, [48, 8]), w)",
    "addmm.default(b, ops.aten.view.default(h, [48, 8]), w)",
    "mm.default(w, ops.aten.transpose.int(ops.aten.view.default(h, [48, 8]), 0, 1))",
    "scaled_dot_product_attention.default(h, h, h)", "embedding.default(w, ops.aten.cat.default([i, i]))",
]  # fmt: skip
ENDS = [
    "mul.Tensor(h, c)", "softmax.int(h, 0)", "sum.dim_IntList(h, [0])", "mean.dim(h, None)", "cumsum.default(h, 0)",
    "flip.default(h, [0])", "roll.default(h, [1])", "slice.Tensor(h, 0, 1, 2)", "select.int(h, 0, 0)",
    "view.default(h, [3, 128])", "layer_norm.default(h, [2, 4, 6, 8])", "cat.default([h, c], 1)",
    "rand_like.default(h)", "dropout.default(h, 0.5, True)", "scaled_dot_product_attention.default(h, c, c)",
    "matmul.default(h, ops.aten.transpose.int(c, -1, -2))",
    "bmm.default(ops.aten.select.int(h, 1, 0), ops.aten.reshape.default(c, [2, 8, 24]))",
    "sort.default(h)", "pad.default(h, [0, 0, 0, 0, 0, 0, 1, 1])",
]  # fmt: skip


def operator(text: str) -> Traced:
    """``cat([x, x])``, then an operation on it, nested ones first."""
    lines, number = ["h = ops.aten.cat.default([x, x])"], 0
    while (start := text.rfind("ops.aten.")) > 0:
        depth, stop = 1, text.index("(", start)
        while depth:
            stop += 1
            depth += {"(": 1, ")": -1}.get(text[stop], 0)
        number += 1
        lines.append(f"inner{number} = {text[start : stop + 1]}")
        text = text[:start] + f"inner{number}" + text[stop + 1 :]
    result = "getitem" if text.startswith("sort") else "result"
    lines.append(f"result = ops.aten.{text}")
    lines += ["getitem = operator.getitem(result, 0)"] if result == "getitem" else []
    return sketch("\n".join([*lines, f"return ({result},)"]), **INPUTS)


@pytest.mark.parametrize("text", CARRIED)
def test_operators_that_carry_parts_on(text: str) -> None:
    program = operator(text.replace("1], 'same')", "1], [1, 1])") if "2d.default" in text else text).program
    known = repeats(program)
    assert program.results[0] in known
    check_pass(EVERY, program)


@pytest.mark.parametrize("text", ENDS)
def test_operators_that_end_the_region(text: str) -> None:
    program = operator(text).program
    assert program.results[0] not in repeats(program)


# -- refusals and edges ----------------------------------------------------------------------------------------------

SMALL = """
    cat = ops.aten.cat.default([x, x])
    relu = ops.aten.relu.default(cat)
    mul = ops.aten.mul.Tensor(relu, c)
    return (mul,)
"""


def small(kind: str = "f32", body: str = SMALL) -> Traced:
    return sketch(body, x=f"{kind}[2, 8]", c=f"condition {kind}[4, 8]")


def test_small_regions_stay() -> None:
    kept = SMALL.replace("(mul,)", "(mul, cat)")
    (reason,) = check_pass(ShareRepeats(), small(body=kept).program).reasons
    assert reason.startswith("sharing saves at most the work of moving 65 bytes, less than copies for those outside")


def test_halves_that_differ_at_once() -> None:
    checked = check_pass(EVERY, small(body=SMALL.replace("relu.default(cat)", "mul.Tensor(cat, c)")).program)
    assert checked.reasons == ["no operation that reads it can be done for one part alone"]


def test_symbolic_sizes() -> None:
    program = small().program
    cat = next(program.calls())
    mode = cat.meta["val"].fake_mode
    mode.shape_env = ShapeEnv()
    size = mode.shape_env.create_unbacked_symint()
    with mode:
        for node in (cat, next(iter(cat.users))):
            node.meta["val"] = torch.empty(size, 8)
    (match,) = EVERY.find(program)
    refusal = EVERY.legal(program, match)
    assert refusal is not None and refusal.reason == "a size is known only when the program runs"


@pytest.mark.parametrize("kind", ["f64", "bf16", "f16", "i64", "c64"])
def test_dtypes(kind: str) -> None:
    assert check_pass(EVERY, small(kind, SMALL.replace("relu", "neg")).program).fired == 1


def test_lists_written_twice() -> None:
    program = sketch(
        "cat = ops.aten.cat.default([x, y, x, y], -1)\nneg = ops.aten.neg.default(cat)\nreturn (neg, cat)",
        x="f32[3, 64]", y="f32[3, 192]",
    ).program  # fmt: skip
    after = check_pass(EVERY, program).program
    assert [shape(node) for node in after.calls(torch.ops.aten.neg.default)] == [(3, 256)]


def test_placements_are_kept() -> None:
    body = SMALL.replace("[x, x]", "[c, c]").replace("relu, c", "relu, x")
    program = sketch(body, x="f32[4, 8]", c="condition f32[2, 8]").program
    for node in list(program.calls())[:2]:
        node.meta["placement"] = REQUEST
    after = check_pass(EVERY, program).program
    assert [(node.name, placement(node)) for node in after.calls()][:2] == [("relu", REQUEST), ("repeated", REQUEST)]


@pytest.mark.parametrize(("rows", "shared"), [(1, []), (2, ["sin"])])
def test_strides_that_are_read_do_not_change(rows: int, shared: list[str]) -> None:
    body = f"""
        cat = ops.aten.cat.default([x, x])
        sin = ops.aten.sin.default(cat)
        turned = ops.aten.transpose.int(sin, 0, 1)
        cos = ops.aten.cos.default(turned)
        read = ops.aten.as_strided.default(cos, [{2 * rows}, 8], [8, 1])
        result = ops.aten.neg.default(read)
        return (result,)
    """
    program = sketch(body, x=f"f32[{rows}, 8]").program
    after = check_pass(EVERY, program).program
    assert [node.name for node in after.calls() if shape(node) == (rows, 8) and node.name != "read"] == shared


def test_results_have_memory_of_their_own() -> None:
    program = small(body=SMALL.replace("return (mul,)", "return (mul, relu, cat)")).program
    after = check_pass(EVERY, program).program
    with torch.no_grad():
        results = after.module()(torch.ones(2, 8), torch.ones(4, 8))
    assert all(value.is_contiguous() for value in results)
    results[1].add_(1)
    assert bool((results[1] == 2).all()) and bool((results[2] == 1).all())


@given(choices=st.integers(0, 2**32))
def test_any_graph_behind_a_repetition(choices: int) -> None:
    program = random_graph(choices, 16)
    even = {node.name for node in program.placeholders if node.meta["val"].shape[:1] in ((2,), (4,))}
    names = [name for name in ("x", "image", "sigma", "prompt", "ids") if name in even]
    check_pass(EVERY, repeated(program, *names[: 1 + choices % 5]), seeds=1)
