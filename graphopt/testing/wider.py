"""What few diffusion models are made of: more operators for random graphs that go through targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from graphopt.ir.program import val
from graphopt.testing.growing import Grower, Unfit, sizes

aten = torch.ops.aten

WIDER_INPUTS = {
    "w_line": "weight f32[8, 8, 3]", "w_line_depth": "weight f32[8, 1, 3]", "w_groups": "weight f32[4, 2, 3, 3]",
    "w_cube": "weight f32[2, 2, 3, 3, 3]", "w_turned": "weight f32[4, 4, 2, 2]", "w_slope": "weight f32[4]",
}  # fmt: skip


def convolution(g: Grower) -> None:
    """In groups, of one or three dimensions, or transposed."""
    kind = g.choose(5)
    bias = g.of(None, g.inputs["w_conv_bias"])
    if kind == 0:
        g.add(aten.conv2d.default, g.image(), g.inputs["w_groups"], bias, [1, g.of(1, 2)], [1, g.of(0, 1)], [1, 1], 2)
    elif kind == 1:
        g.add(aten.conv_transpose2d.input, g.image(), g.inputs["w_turned"], bias, [g.of(1, 2), 2])
    elif kind == 2:
        video = g.add(aten.view.default, g.image(), [g.of(1, 2), 2, -1, 6, 8])
        g.add(aten.conv3d.default, video, g.inputs["w_cube"], None, [1, 1, 1], g.of([1, 1, 1], [1, 0, 1]))
    else:
        line = g.add(aten.transpose.int, g.features(3), 1, 2)
        name, groups = g.of(("w_line", 1), ("w_line_depth", 8))
        g.add(aten.conv1d.default, line, g.inputs[name], g.of(None, g.inputs["w_bias"]), [g.of(1, 2)], [1], [1], groups)


def product(g: Grower) -> None:
    """Of two computed factors."""
    left = g.features()
    right = g.pick(lambda v: v.dtype == torch.float32 and v.shape[-1:] == (8,) and v.ndim >= 2)
    turned = g.add(aten.transpose.int, right, -1, -2)
    kind = g.choose(4)
    if kind == 0 and val(left).ndim == 3 and val(right).ndim == 3:
        g.add(aten.einsum.default, g.of("bik,bjk->bij", "bik,bjk->bji", "bik,bjk->jbi"), [left, right])
    elif kind == 1:
        scores = g.add(aten.matmul.default, left, turned)
        g.add(aten.matmul.default, g.add(aten.relu.default, scores), right)
    else:
        g.add(aten.matmul.default, left, turned)


def reduction(g: Grower) -> None:
    """Over some dimensions."""
    source = g.pick(lambda v: v.dtype == torch.float32 and v.ndim > 0)
    rank = val(source).ndim
    dims = sorted({g.choose(rank) - rank, g.of(-1, -1, g.choose(rank) - rank)})
    keep = g.of(True, False)
    g.add(
        *g.of(
            (aten.mean.dim, source, dims, keep), (aten.sum.dim_IntList, source, dims, keep),
            (aten.amax.default, source, dims, keep), (aten.amin.default, source, dims, keep),
            (aten.linalg_vector_norm.default, source, 2, dims, keep), (aten.softmax.int, source, dims[0]),
        )
    )  # fmt: skip


def choice(g: Grower) -> None:
    """A comparison, and what it decides."""
    left = g.pick(lambda v: v.dtype == torch.float32)
    compare = g.of(aten.gt, aten.le, aten.eq, aten.ne)
    condition = g.add(compare.Tensor, left, g.beside(left)) if g.choose(2) else g.add(compare.Scalar, left, 0.25)
    if g.choose(2):
        other = g.pick(lambda v: v.dtype == torch.bool and sizes(v) == sizes(val(condition)))
        condition = g.add(g.of(aten.logical_and, aten.logical_or, aten.logical_xor).default, condition, other)
    g.add(
        *g.of(
            (aten.where.self, condition, left, g.beside(left)), (aten.where.ScalarOther, condition, left, 1.5),
            (aten.masked_fill.Scalar, left, condition, -2.0), (aten.mul.Tensor, left, condition),
        )
    )  # fmt: skip


def function(g: Grower) -> None:
    """A function of each element that few models have."""
    source = g.pick(lambda v: v.dtype == torch.float32)
    g.add(
        *g.of(
            (aten.leaky_relu.default, source, 0.1), (aten.elu.default, source), (aten.softplus.default, source),
            (aten.hardtanh.default, source, -0.5, 2.0), (aten.mish.default, source), (aten.hardswish.default, source),
            (aten.clamp.default, source, -1.0, 0.5), (aten.floor.default, source), (aten.square.default, source),
            (aten.prelu.default, source, g.inputs["w_slope"]), (aten.exp2.default, source),
        )
    )  # fmt: skip


def arrangement(g: Grower) -> None:
    """The same elements elsewhere, or beside others."""
    source = g.pick(lambda v: v.dtype == torch.float32 and v.ndim > 0)
    rank = val(source).ndim
    dim = g.choose(rank)
    g.add(
        *g.of(
            (aten.flip.default, source, [dim]), (aten.roll.default, source, [g.of(1, -2)], [dim]),
            (aten.stack.default, [source, *_like(g, source)], dim), (aten.repeat_interleave.self_int, source, 2, dim),
            (aten.repeat.default, source, [g.of(1, 2) for _ in range(rank)]),
            (aten.pad.default, source, [g.of(0, 2), 1], "constant", g.of(None, 0.5)),
            (aten.pad.default, source, [1, 1], g.of("reflect", "replicate", "circular")),
            (aten.slice_scatter.default, source, _half(g, source, dim), dim, 0, 2**62, 2),
            (aten.narrow.default, source, dim, 0, 1), (aten.movedim.intlist, source, [dim], [0]),
        )
    )  # fmt: skip


def _like(g: Grower, node: fx.Node) -> list[fx.Node]:
    return [g.pick(lambda v: v.dtype == torch.float32 and sizes(v) == sizes(val(node))) for _ in range(g.choose(3))]


def _half(g: Grower, node: fx.Node, dim: int) -> fx.Node:
    """Every second element, changed."""
    return g.add(aten.mul.Tensor, g.add(aten.slice.Tensor, node, dim, 0, 2**62, 2), g.of(0.5, -1.0))


def resampling(g: Grower) -> None:
    """An image at another resolution."""
    source = g.image()
    if sizes(val(source))[2] == 1:
        raise Unfit
    g.add(
        *g.of(
            (aten.upsample_bilinear2d.vec, source, None, False, [2.0, 2.0]),
            (aten.upsample_bilinear2d.vec, source, [5, 7], g.of(True, False), None),
            (aten.avg_pool2d.default, source, [3, 2], [1, 2]), (aten.pixel_shuffle.default, source, 2),
            (aten.pixel_unshuffle.default, source, 2),
        )
    )  # fmt: skip


def grouped_attention(g: Grower) -> None:
    """With fewer heads of keys than of queries, without heads, or causal."""
    query, memory = g.features(3), g.features(3)
    if g.choose(2):
        g.add(aten.scaled_dot_product_attention.default, query, memory, memory, None, 0.0, g.of(False, True))
        return
    heads = g.add(aten.transpose.int, g.add(aten.view.default, query, [g.size(query, 0), -1, 4, 2]), 1, 2)
    few = g.add(aten.slice.Tensor, memory, 2, 0, 4)
    few = g.add(aten.transpose.int, g.add(aten.view.default, few, [g.size(few, 0), -1, 2, 2]), 1, 2)
    g.add(aten.scaled_dot_product_attention.default, heads, few, few, enable_gqa=True)


WIDER_BLOCKS: tuple[Callable[[Grower], None], ...] = (
    convolution, convolution, product, product, reduction, reduction, choice, choice, function, function, arrangement,
    arrangement, arrangement, resampling, grouped_attention,
)  # fmt: skip
