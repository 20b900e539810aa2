"""What diffusion models are made of, in pieces of one to a dozen operations: how random Programs grow."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch

from graphopt.ir.program import val
from graphopt.testing import operations as ops
from graphopt.testing.growing import Grower, sizes

aten = torch.ops.aten

INPUTS = {
    "w_linear": "weight f32[8, 8]", "w_project": "weight f32[8, 8]", "w_bias": "weight f32[8]",
    "w_scale": "weight f32[8]", "w_up": "weight f32[16, 8]", "w_down": "weight f32[8, 16]",
    "w_modulate": "weight f32[24, 8]", "w_conv": "weight f32[4, 4, 3, 3]", "w_point": "weight f32[4, 4, 1, 1]",
    "w_join": "weight f32[4, 8, 3, 3]", "w_depth": "weight f32[4, 1, 3, 3]", "w_conv_bias": "weight f32[4]",
    "w_table": "weight f32[8, 8]", "w_half": "weight bf16[8, 8]", "x": "state f32[B, T, 8]",
    "image": "state f32[B, 4, 6, 8]", "timestep": "time i64[]", "sigma": "time f32[B]",
    "prompt": "condition f32[B, 5, 8]", "pooled": "condition f32[B, 8]", "mask": "condition bool[B, 5]",
    "ids": "condition i64[B, 5]",
}  # fmt: skip


def linear(g: Grower) -> None:
    """A linear layer."""
    g.add(aten.linear.default, g.features(), g.inputs[g.of("w_linear", "w_project")], g.of(None, g.inputs["w_bias"]))


def feed_forward(g: Grower) -> None:
    """Two layers with a function in between, gated or not."""
    up = g.add(aten.linear.default, g.features(), g.inputs["w_up"])
    if g.choose(2):
        up = g.add(g.of(aten.gelu, aten.silu, aten.tanh).default, up)
    elif g.choose(2):  # gated
        gate, value = (g.add(operator.getitem, g.add(aten.split.Tensor, up, 8, -1), i) for i in (0, 1))
        g.add(aten.mul.Tensor, g.add(aten.silu.default, gate), value)
        return
    g.add(aten.linear.default, up, g.inputs["w_down"], g.of(None, g.inputs["w_bias"]))


def convolution(g: Grower) -> None:
    """A convolution: 3×3 or 1×1, dense or depthwise, with stride and padding or without."""
    name, groups, padding = g.of(("w_conv", 1, 1), ("w_conv", 1, 0), ("w_point", 1, 0), ("w_depth", 4, 1))
    step = g.of(1, 1, 2)
    bias = g.of(None, g.inputs["w_conv_bias"])
    g.add(
        aten.conv2d.default, g.image(), g.inputs[name], bias, [step, step], [padding, g.of(padding, 1)], [1, 1], groups
    )


def norm(g: Grower) -> None:
    """Normalisation: by layer, by root mean square, by group, or written out."""
    scale, shift = g.of((None, None), (g.inputs["w_scale"], g.inputs["w_bias"]), (g.inputs["w_scale"], None))
    kind = g.choose(4)
    if kind == 0:
        g.add(aten.layer_norm.default, g.features(), [8], scale, shift)
    elif kind == 1:
        g.add(aten.rms_norm.default, g.features(), [8], scale, 1e-6)
    elif kind == 2:
        bias = g.of(None, g.inputs["w_conv_bias"])
        g.add(aten.group_norm.default, g.image(), 2, bias, bias)
    else:  # written out
        source = g.features()
        mean = g.add(aten.mean.dim, g.add(aten.pow.Tensor_Scalar, source, 2), [-1], True)
        scaled = g.add(aten.mul.Tensor, source, g.add(aten.rsqrt.default, g.add(aten.add.Tensor, mean, 1e-6)))
        g.add(aten.mul.Tensor, scaled, g.inputs["w_scale"])


def attention(g: Grower) -> None:
    """Attention in heads, with a mask or without, and its projections."""
    query, memory = g.features(3), g.features(3)
    heads = []
    for source in (query, memory, memory):
        projected = g.add(aten.linear.default, source, g.inputs[g.of("w_linear", "w_project")])
        split = g.add(aten.view.default, projected, [g.size(projected, 0), -1, 2, 4])
        heads.append(g.add(aten.transpose.int, split, 1, 2))
    mask = None
    if sizes(val(memory))[1] == 5 and g.choose(2):
        mask = g.add(aten.unsqueeze.default, g.add(aten.unsqueeze.default, g.inputs["mask"], 1), 1)
    turned = g.add(aten.transpose.int, g.add(aten.scaled_dot_product_attention.default, *heads, mask), 1, 2)
    flat = g.add(g.of(aten.view, aten.reshape).default, turned, [g.size(turned, 0), -1, 8])
    g.add(aten.linear.default, flat, g.inputs["w_project"], g.inputs["w_bias"])


def written_attention(g: Grower) -> None:
    """Attention written out as products and a softmax, with a scale and often a mask."""
    query, memory = (
        g.features(3) if g.choose(2) else g.pick(lambda v: v.dtype == torch.float32 and v.ndim > 1) for _ in range(2)
    )
    if g.choose(2):
        query = g.add(aten.linear.default, query, g.inputs["w_linear"])
    scaled = g.add(aten.matmul.default, query, g.add(aten.transpose.int, memory, -2, -1))
    if g.choose(4):
        scaled = g.add(g.of(aten.mul, aten.div).Tensor, scaled, g.of(0.5, 2))
    kind = g.choose(4)
    if kind == 0:
        scaled = g.add(aten.add.Tensor, scaled, g.beside(scaled))
    elif kind == 1:
        wanted = sizes(val(scaled))[::-1]
        where = g.pick(lambda v: v.dtype == torch.bool and sizes(v)[::-1] == wanted[: v.ndim])
        scaled = g.add(aten.masked_fill.Scalar, scaled, where, g.of(-1e9, float("-inf"), -3.4e38, -1.0))
    g.add(aten.matmul.default, g.add(aten.softmax.int, scaled, g.of(-1, -1, -1, 0)), memory)


def time_embedding(g: Grower) -> None:
    """Sines and cosines of the timestep, projected."""
    time = g.add(aten.view.default, g.inputs[g.of("timestep", "sigma")], [-1, 1])
    time = g.add(aten._to_copy.default, time, dtype=torch.float32)
    rates = g.add(aten.exp.default, g.add(aten.mul.Tensor, g.add(aten.arange.default, 4, dtype=torch.float32), -2.3))
    angles = g.add(aten.mul.Tensor, time, rates)
    both = [g.add(aten.cos.default, angles), g.add(aten.sin.default, angles)]
    embedded = g.add(aten.linear.default, g.add(aten.cat.default, both, -1), g.inputs["w_linear"], g.inputs["w_bias"])
    g.add(aten.silu.default, embedded)


def modulation(g: Grower) -> None:
    """Shift, scale and gate by an embedding of time or condition: adaptive normalisation."""
    source = g.features(3)
    embedded = g.of(
        g.inputs["pooled"], g.pick(lambda v: v.dtype == torch.float32 and sizes(v)[-1:] == (8,) and v.ndim == 2)
    )
    table = g.add(aten.linear.default, g.add(aten.silu.default, embedded), g.inputs["w_modulate"])
    parts = g.add(*g.of((aten.split.Tensor, table, 8, -1), (aten.chunk.default, table, 3, 1)))
    shift, scale, gate = (g.add(aten.unsqueeze.default, g.add(operator.getitem, parts, i), 1) for i in range(3))
    normed = g.add(aten.layer_norm.default, source, [8])
    scaled = g.add(aten.mul.Tensor, normed, g.add(aten.add.Tensor, scale, 1))
    shifted = g.add(aten.add.Tensor, scaled, shift)
    if g.choose(2):
        branch = g.add(aten.linear.default, shifted, g.inputs["w_linear"], g.inputs["w_bias"])
        g.add(aten.add.Tensor, source, g.add(aten.mul.Tensor, gate, branch))


def skip(g: Grower) -> None:
    """What a U-Net does: an earlier image beside a later one, then a convolution."""
    joined = g.add(aten.cat.default, [g.image(), g.image()], 1)
    g.add(aten.conv2d.default, joined, g.inputs["w_join"], g.of(None, g.inputs["w_conv_bias"]), [1, 1], [1, 1])


def resampling(g: Grower) -> None:
    """An image at another resolution, or at the same."""
    source = g.image()
    g.add(
        *g.of(
            (aten.avg_pool2d.default, source, [2, 2]),
            (aten.upsample_nearest2d.vec, source, None, [2.0, 2.0]),
            (aten.upsample_nearest2d.vec, source, None, [1.0, 1.0]),
        )
    )


def image_modulation(g: Grower) -> None:
    """An embedding added to the channels of an image."""
    source = g.image()
    half = g.add(aten.slice.Tensor, g.inputs["pooled"], 1, 0, 4)
    column = g.add(aten.unsqueeze.default, g.add(aten.unsqueeze.default, half, -1), -1)
    g.add(g.of(aten.add, aten.mul).Tensor, source, column)


def tokens(g: Grower) -> None:
    """An image as a sequence, and back."""
    source = g.image()
    flat = g.add(aten.transpose.int, g.add(aten.flatten.using_ints, source, 2), 1, 2)
    if g.choose(2):
        turned = g.add(aten.transpose.int, flat, 1, 2)
        g.add(aten.reshape.default, turned, g.shape(source))


def scaled_layer(g: Grower) -> None:
    """A scale or a shift in front of a layer, or behind it."""
    weight, vector = g.inputs[g.of("w_linear", "w_project")], g.inputs[g.of("w_scale", "w_bias")]
    value = g.add(aten.linear.default, g.features(), weight, g.of(None, g.inputs["w_bias"]))
    operation = g.of(aten.mul, aten.mul, aten.add, aten.sub, aten.div).Tensor
    changed = g.add(operation, value, g.of(vector, vector, 0.5, 1.5, 3))
    if g.choose(2):
        g.add(aten.linear.default, changed, g.inputs["w_project"], g.of(None, g.inputs["w_bias"]))


def siblings(g: Grower) -> None:
    """Layers that share their input."""
    source = g.features()
    made = [
        g.add(aten.linear.default, source, g.inputs[n], g.of(None, g.inputs["w_bias"]))
        for n in ("w_linear", "w_project")
    ]
    if g.choose(2):
        g.add(aten.linear.default, source, g.inputs["w_up"])
    g.add(g.of(aten.add, aten.mul).Tensor, *made)


def update(g: Grower) -> None:
    """What a scheduler does: linear combinations of tensors of one shape."""
    total = first = g.pick(lambda v: v.is_floating_point() and v.ndim > 0)
    for _ in range(1 + g.choose(3)):
        other = g.pick(lambda v: v.dtype == val(first).dtype and sizes(v) == sizes(val(first)))
        scaled = g.add(g.of(aten.mul, aten.div).Tensor, other, g.of(0.25, 1.5, 7.5, -1.0))
        total = g.add(g.of(aten.add, aten.sub).Tensor, total, scaled, **g.of({}, {"alpha": 2}))


def sums(g: Grower) -> None:
    """Terms of several roles, added one after the other."""
    total = g.features()
    row = g.add(aten.unsqueeze.default, g.inputs["pooled"], 1)
    for _ in range(2 + g.choose(3)):
        total = g.add(aten.add.Tensor, total, g.of(g.beside(total), g.beside(total), row, g.inputs["w_bias"]))


def repeated(g: Grower) -> None:
    """What guidance does: a batch of equal parts, and layers that share what the parts have in common."""
    source = g.of(g.features(), g.image())
    parts = [source] * (2 + g.choose(2))
    batch = g.of(
        lambda: g.add(aten.cat.default, parts),
        lambda: g.add(aten.cat.default, parts, g.choose(val(source).ndim or 1)),
        lambda: g.add(aten.expand.default, source, [len(parts), *g.shape(source)]),
        lambda: g.add(aten.repeat.default, source, [2, *[1] * (val(source).ndim - 1)]),
    )()
    if g.choose(2) and sizes(val(batch))[-1] == 8:
        g.add(aten.linear.default, batch, g.inputs["w_linear"], g.inputs["w_bias"])
    elif g.choose(2):
        g.add(aten.conv2d.default, batch, g.inputs["w_conv"], None, [1, 1], [1, 1])


def mixed(g: Grower) -> None:
    """What inpainting does: inputs of different roles side by side, then a layer."""
    table = g.add(aten.cat.default, [g.inputs["w_linear"], g.inputs["w_project"]], 1)
    rows = [g.add(aten.slice.Tensor, g.inputs[name], 1, 0, 5) for name in ("x", "prompt")]
    joined = g.add(aten.cat.default, [g.of(*rows), g.of(*rows)], g.of(-1, 2, 1))
    g.add(aten.linear.default, joined, table, g.of(None, g.inputs["w_bias"]))


def streams(g: Grower) -> None:
    """What blocks with one stream do: a sequence taken apart into text and image, and put together again."""
    whole, after = g.features(3), g.of(1, 2, 3)
    bounds = ((0, after), (after, 9223372036854775807))
    text, image = (g.add(aten.slice.Tensor, whole, 1, *bound) for bound in bounds)
    if g.choose(2):
        g.add(aten.linear.default, image, g.inputs["w_linear"], g.inputs["w_bias"])
    joined = g.add(aten.cat.default, g.of([text, image], [text, image], [image, text]), 1)
    g.add(aten.silu.default, joined)


def half(g: Grower) -> None:
    """A layer in half precision between others in single."""
    narrowed = g.add(aten._to_copy.default, g.features(), dtype=torch.bfloat16)
    narrowed = g.add(aten.linear.default, narrowed, g.inputs["w_half"])
    if g.choose(2):
        g.add(aten._to_copy.default, g.add(aten.silu.default, narrowed), dtype=torch.float32)


def embedding(g: Grower) -> None:
    """Rows of a table by ids."""
    g.add(aten.embedding.default, g.inputs["w_table"], g.inputs["ids"])


# In the proportions in which models have them, or more where few graphs would otherwise have a use for a pass.
BLOCKS: tuple[Callable[[Grower], None], ...] = (
    linear, linear, ops.unary, ops.unary, ops.binary, ops.binary, ops.binary, ops.identity, ops.identity, ops.identity,
    ops.view, ops.view, ops.view, ops.again, ops.again, sums, sums, ops.cast, ops.slices, ops.cat, ops.split, norm,
    norm, convolution, convolution, scaled_layer, scaled_layer, siblings, feed_forward, attention, written_attention,
    written_attention, half, time_embedding, modulation, image_modulation, skip, tokens, resampling, update, update,
    repeated, repeated, mixed, mixed, mixed, streams, embedding, ops.boolean, ops.integer, ops.constant, ops.noise,
)  # fmt: skip
