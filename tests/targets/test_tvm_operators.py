"""The TVM target's operators besides those of plain networks: other dtypes, masks, products, convolutions, sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("tvm")

from benchmarks.fuzz_targets import check
from tests.targets.test_tvm import attend, built, launches, names, verify

r = torch.randn


# -- what is neither a view nor a function of numbers ----------------------------------------------------------------


def test_constants_and_ranges() -> None:
    def function(x: torch.Tensor) -> Any:
        places = torch.arange(37, dtype=torch.float32)
        return (
            x + places,
            x * torch.arange(0.5, 4.0, 0.25)[:5].view(5, 1) + torch.full_like(x, 2.5),
            (x + torch.arange(2, 39)).relu(),
            torch.where(torch.arange(37) < 20, x, torch.zeros_like(x)),
            torch.arange(5),
            torch.full((2, 3), 7),
            torch.ones(3, 2),
            torch.zeros(4, dtype=torch.bool),
        )

    verify(function, r(5, 37), left=["zeros.default"])


@pytest.mark.parametrize("size", [1, 3, 8, 20])
def test_ranges_of_any_length(size: int) -> None:
    def function(x: torch.Tensor) -> Any:
        places = torch.arange(0, size, dtype=torch.float32)
        return places * x, (places[:, None] * 0.5).expand(size, size) - x, torch.where(places > 1, x, places)

    verify(function, r(size, size))
    verify(lambda x: torch.arange(0, size, dtype=torch.float32) * x, r(size, size))


def test_embeddings() -> None:
    def function(i: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> Any:
        rows = F.embedding(i, w) + x
        return (
            rows,
            F.embedding(i + 1, w),
            w.index_select(0, i[0]),
            w.index_select(1, i[1] * 2),
            F.embedding(i[0, 0], w),
        )

    verify(function, torch.tensor([[0, 5, 2], [1, 3, 1]]), r(7, 19), r(2, 3, 19))


def test_rows_that_no_table_has_are_not_a_number() -> None:
    made, _ = built(lambda i, w: F.embedding(i, w) * 2, torch.tensor([0, 1]), w := r(4, 19))
    (result,) = made([torch.tensor([-1, 4]), w])
    assert result.isnan().all()


def test_timestep_embeddings() -> None:
    def function(t: torch.Tensor, x: torch.Tensor) -> Any:
        angles = t[:, None].float() * torch.exp(-9.2 * torch.arange(9, dtype=torch.float32) / 9)[None]
        return torch.cat([angles.sin(), angles.cos()], -1) + x

    verify(function, torch.tensor([7, 981]), r(2, 18))


def test_prelu() -> None:
    def function(x: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> Any:
        return F.prelu(x, w), F.prelu(x, s), F.prelu(x[0, 0, 0], s)

    verify(function, r(2, 6, 3, 5), r(6), r(1))


def test_other_names_of_cat() -> None:
    verify(lambda x, y: (torch.concat([x, y * 2], 1), torch.concatenate([x, x], -1) + 1), r(3, 5, 8), r(3, 2, 8))


def test_stack() -> None:
    def function(x: torch.Tensor, y: torch.Tensor, i: torch.Tensor) -> Any:
        turned = torch.stack([-x[..., 1::2], x[..., ::2] * 2], -1).flatten(-2)
        return turned, torch.stack([x, y, x + y], 1), torch.stack([x, y]) * 2, torch.stack([i, i * 2], -1)

    verify(function, r(3, 5, 8), r(3, 5, 8), torch.arange(5))


def test_parts_that_are_written_anew() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> Any:
        turned = torch.empty_like(x)
        turned[..., ::2] = x[..., ::2] * 2 - y
        turned[..., 1::2] = y
        rows = x * 2
        rows[:, 1] = y[:, 0].repeat(1, 2)
        rows[:, -2:, :3] = y[:1, :2, 1:]
        return turned, rows.relu()

    verify(function, r(3, 5, 8), r(3, 5, 4))


def test_constant_padding() -> None:
    def function(x: torch.Tensor) -> Any:
        return (
            F.pad(x, (0, 1, 0, 1)),
            F.pad(x * 2, (2, 0), value=-1.5).relu(),
            F.pad(x, (1, 1, 0, 2, 3, 0)),
            F.pad(x, (0, 0, 2, 2)).transpose(1, 2),
            F.pad(x, (0, 0)),
        )

    verify(function, r(2, 5, 7))
    verify(lambda x: F.pad(x, (-1, 2)) + 1, r(2, 7), left=["pad.default"])


# -- resampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1), (1, 9)])
def test_resampling(size: tuple[int, int]) -> None:
    def function(x: torch.Tensor) -> Any:
        return (
            F.interpolate(x * 2, scale_factor=2.0, mode="bilinear"),
            F.interpolate(x, size=(7, 5), mode="bilinear"),
            F.interpolate(x, size=(11, 4), mode="bilinear", align_corners=True).relu(),
            F.interpolate(x, scale_factor=3.0, mode="nearest") + 1,
        )

    verify(function, r(2, 3, *size))


def test_average_pooling() -> None:
    def function(x: torch.Tensor) -> Any:
        return F.avg_pool2d(x, 2), F.avg_pool2d(x * 2, 3, 1).relu(), F.avg_pool2d(x, (1, 2), (2, 1)), F.avg_pool2d(x, 1)

    verify(function, r(2, 3, 9, 7))
    verify(lambda x: F.avg_pool2d(x, 3, 1, 1) * 2, r(1, 2, 5, 5), left=["avg_pool2d.default"])


# -- products of computed factors ------------------------------------------------------------------------------------

PRODUCTS: dict[str, tuple[Callable[..., Any], Sequence[Sequence[int]]]] = {
    "matrices": (lambda x, y: (x @ y, (x * 2) @ y + 1, x.T.contiguous().T @ y), [(7, 37), (37, 19)]),
    "one of each": (lambda x, y: x @ y, [(1, 1), (1, 1)]),
    "rows and columns": (lambda x, y: (x @ y, y.T @ x.T), [(1, 5), (5, 1)]),
    "vectors": (lambda x, y, m: (x @ m, m @ y, x @ x), [(5,), (9,), (5, 9)]),
    "batches": (lambda x, y: (x @ y, torch.bmm(x, y).relu()), [(3, 13, 8), (3, 8, 43)]),
    "transposed": (lambda q, k: (q @ k.transpose(-1, -2), q.transpose(1, 2) @ k), [(2, 9, 16), (2, 9, 16)]),
    "broadcast": (lambda x, y, z: (x @ y, x @ z, z @ x), [(2, 3, 5, 7), (3, 7, 11), (7, 5)]),
    "broadcast batches": (lambda x, y: x @ y, [(2, 1, 5, 7), (1, 3, 7, 4)]),
    "addmm": (lambda b, x, y: (torch.addmm(b, x, y), torch.addmm(b[0], x, y)), [(5, 11), (5, 7), (7, 11)]),
    "baddbmm": (lambda b, x, y: torch.baddbmm(b, x, y) * 2, [(2, 5, 11), (2, 5, 7), (2, 7, 11)]),
    "einsum": (
        lambda x, y, z: (
            torch.einsum("bik,bjk->bij", x, y),
            torch.einsum("bik,bjk->bji", x, y),
            torch.einsum("bik,kcd->bcid", x, z),
            torch.einsum("bik,kcd->ibdc", x, z),
            torch.einsum("nhwpqc,nc->nhpwq", z.view(1, 2, 2, 2, 1, 15), z.view(4, 30)[:1, :15]),
        ),
        [(2, 5, 4), (2, 7, 4), (4, 3, 10)],
    ),
    "computed weights": (lambda x, w, b: F.linear(x, w * 2, b).view(2, 1, 5, 11) + 1, [(2, 5, 8), (11, 8), (11,)]),
    "many terms": (lambda x, y: x @ y, [(9, 1500), (1500, 21)]),
    "many tasks": (lambda x, y: (x @ y).sigmoid(), [(3, 130, 200), (3, 200, 150)]),
    "linear attention": (
        lambda q, k, v: q.relu() @ (k.relu().transpose(-1, -2) @ F.pad(v, (0, 1), value=1.0)),
        [(2, 3, 16, 8), (2, 3, 16, 8), (2, 3, 16, 8)],
    ),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_products(case: str) -> None:
    function, shapes = PRODUCTS[case]
    verify(function, *(r(*shape) / (shape[-1] ** 0.5) for shape in shapes))


def test_products_that_stay_with_torch() -> None:
    made, program = built(
        lambda x, y: (torch.einsum("ij,jk,kl->il", x, y, x), torch.addmm(x, x, y, beta=2)),
        *(given := (r(4, 4), r(4, 4))),
    )
    assert check(made, program, given) is None


def test_a_layer_whose_input_is_read_after_it_too() -> None:
    """The copy that the layer reads in rows is not what the residual reads."""
    verify(lambda x, w: x + F.linear(x, w), r(37, 40).T.contiguous().T[:37, :37], r(37, 37))
    verify(lambda x, w: x + F.linear(x, w), r(37, 37).T, r(37, 37))


@pytest.mark.parametrize("size", [1, 4, 6, 16, 20])
def test_what_is_read_backwards(size: int) -> None:
    """Through views that divide a place by a size: of a falling one TVM's simplifications have been wrong."""

    def function(x: torch.Tensor, w: torch.Tensor) -> Any:
        repeated, turned, rows = x.repeat(1, 3).flip(1), x.t().reshape(-1).flip(0), x.repeat(3, 2).flip(0, 1)
        spread = x.repeat_interleave(2, 1).flip(1)
        return (
            F.linear(repeated, w), repeated * 2, turned + 1, turned.view(3, -1).relu(), rows * rows.roll(1, 1),
            F.pixel_shuffle(x.reshape(1, size, 3, 1).repeat(1, 4, 1, 1).flip(1, 2), 2) * 3, repeated.softmax(1),
            spread + 1, F.layer_norm(turned, [3 * size]), rows.sum(0),
        )  # fmt: skip

    verify(function, r(3, size), r(5, 3 * size))


# -- attention -------------------------------------------------------------------------------------------------------


def test_attention_with_boolean_masks() -> None:
    def function(q: torch.Tensor, k: torch.Tensor, m: torch.Tensor, p: torch.Tensor) -> Any:
        wide = torch.zeros(2, 1, 1, 19).masked_fill(~m[:, None, None], -torch.inf)
        return attend(q, k, k, m[:, None, None]), attend(q, k, k, p), attend(q, k, k, wide), attend(q, k, k, p & m[0])

    mask = torch.rand(2, 19) < 0.7
    mask[1] = False
    verify(function, r(2, 3, 13, 8), r(2, 3, 19, 8), mask, torch.rand(13, 19) < 0.5)


def test_attention_without_heads() -> None:
    def function(q: torch.Tensor, k: torch.Tensor, m: torch.Tensor) -> Any:
        return attend(q, k, k) * 2, attend(q, k, k, m), attend(q, k, k, m[0]), attend(k, k, k, is_causal=True)

    verify(function, r(2, 13, 8), r(2, 19, 8), r(2, 13, 19))


def test_attention_of_grouped_queries() -> None:
    def function(q: torch.Tensor, k: torch.Tensor, m: torch.Tensor) -> Any:
        return attend(q, k, k, enable_gqa=True), attend(q, k, k, m, enable_gqa=True)

    verify(function, r(2, 6, 9, 8), r(2, 2, 11, 8), torch.rand(2, 6, 9, 11) < 0.8)


# -- reductions and norms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 37), (1, 1, 1), (3, 16, 8), (2, 3, 700)])
def test_reductions(shape: tuple[int, ...]) -> None:
    def function(x: torch.Tensor) -> Any:
        found: list[Any] = []
        for dims in ((-1,), (0,), (1, 2), (0, 2), (0, 1, 2)):
            found += [x.mean(dims, keepdim=True), x.sum(dims), x.amax(dims), x.amin(dims, True)]
            found += [torch.linalg.vector_norm(x, dim=dims), x.var(dims, correction=0), x.std(dims, correction=0)]
        return *found, x.mean(), (x * 2).sum()

    verify(function, r(*shape))


def test_what_is_written_out_around_reductions() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> Any:
        rms = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w
        return rms, F.normalize(x, dim=1) * 3, (x - x.mean(1, True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()

    made = verify(function, r(2, 19, 37), r(37))
    assert launches(made) <= 9


def test_reductions_of_special_numbers() -> None:
    x = torch.tensor([[1.0, torch.nan, 3.0], [torch.inf, 1.0, 2.0], [-torch.inf, 0.0, -1.0]])
    made, _ = built(lambda x: (x.amax(-1), x.amin(0), x.sum(-1)), x)
    for result, expected in zip(made([x]), (x.amax(-1), x.amin(0), x.sum(-1)), strict=True):
        assert torch.equal(result.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_integers_are_summed_up_by_torch() -> None:
    made, program = built(lambda i, x: (i.sum(-1) * x, x > i.sum()), *(given := (torch.arange(6).view(2, 3), r(2))))
    assert check(made, program, given) is None
    assert "sum.dim_IntList" in names(made)


def test_layer_norm_over_several_dimensions() -> None:
    def function(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> Any:
        return F.layer_norm(x, (5, 7), w, b).relu(), F.layer_norm(x + 1, (3, 5, 7)), F.layer_norm(x, (5, 7), w)

    verify(function, r(2, 3, 5, 7), r(5, 7), r(5, 7))


# -- convolutions ----------------------------------------------------------------------------------------------------

CONVOLUTIONS: dict[str, tuple[Callable[..., Any], Sequence[int], Sequence[int], dict[str, Any]]] = {
    "depthwise": (F.conv2d, (2, 6, 9, 8), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    "depthwise of odd rows": (F.conv2d, (1, 5, 7, 13), (10, 1, 5, 3), {"padding": (2, 1), "groups": 5}),
    "depthwise with stride": (F.conv2d, (1, 4, 11, 12), (4, 1, 3, 3), {"padding": 1, "stride": 2, "groups": 4}),
    "two groups": (F.conv2d, (2, 4, 6, 16), (6, 2, 3, 3), {"groups": 2}),
    "groups of lines of the cache": (F.conv2d, (2, 12, 16, 8), (9, 4, 1, 1), {"groups": 3}),
    "transposed, lines of the cache": (F.conv_transpose2d, (1, 5, 16, 16), (5, 3, 2, 2), {"stride": 2}),
    "groups of pixels": (F.conv2d, (1, 12, 3, 5), (9, 4, 1, 1), {"groups": 3}),
    "one dimension": (F.conv1d, (2, 5, 23), (7, 5, 3), {"padding": 1}),
    "one dimension with stride": (F.conv1d, (2, 5, 23), (7, 5, 4), {"stride": 2, "dilation": 2}),
    "one dimension, depthwise": (F.conv1d, (2, 6, 16), (6, 1, 3), {"padding": 2, "groups": 6}),
    "three dimensions": (F.conv3d, (1, 4, 5, 6, 8), (7, 4, 3, 3, 3), {"padding": 1}),
    "three dimensions, two videos": (F.conv3d, (2, 3, 4, 5, 7), (5, 3, 3, 1, 1), {"padding": (1, 0, 0)}),
    "three dimensions with stride": (
        F.conv3d, (2, 3, 6, 9, 8), (4, 3, 2, 3, 3), {"stride": (2, 2, 1), "dilation": (2, 1, 1)},
    ),
    "three dimensions, patches": (F.conv3d, (1, 4, 2, 8, 8), (13, 4, 1, 2, 2), {"stride": (1, 2, 2)}),
    "three dimensions, one plane": (F.conv3d, (2, 4, 3, 6, 6), (5, 4, 1, 3, 3), {"padding": (1, 1, 1)}),
    "three dimensions, depthwise": (F.conv3d, (2, 4, 3, 6, 6), (4, 1, 3, 3, 3), {"padding": 1, "groups": 4}),
    "transposed": (F.conv_transpose2d, (2, 6, 5, 7), (6, 5, 4, 4), {"stride": 2, "padding": 1}),
    "transposed with more": (
        F.conv_transpose2d, (1, 5, 4, 3), (5, 9, 3, 2), {"stride": (2, 3), "output_padding": (1, 2), "dilation": 2},
    ),
    "transposed without stride": (F.conv_transpose2d, (1, 3, 6, 8), (3, 4, 3, 3), {"padding": 2}),
    "transposed, patches": (F.conv_transpose2d, (2, 7, 3, 17), (7, 8, 2, 2), {"stride": 2}),
    "transposed with two strides": (
        F.conv_transpose2d, (1, 4, 7, 5), (4, 7, 3, 4), {"stride": (3, 1), "padding": 1, "output_padding": (2, 0)},
    ),
    "transposed, outputs without taps": (F.conv_transpose2d, (1, 2, 3, 5), (2, 3, 1, 3), {"stride": 2, "dilation": 2}),
    "transposed, no taps": (F.conv_transpose2d, (2, 2, 1, 1), (2, 3, 1, 1), {
        "stride": 3, "padding": 1, "output_padding": 2,
    }),
    "transposed, more padding than filter": (
        F.conv_transpose2d, (1, 3, 7, 11), (3, 2, 2, 1), {"stride": (1, 2), "padding": (2, 3)},
    ),
    "transposed, one pixel": (F.conv_transpose2d, (1, 3, 1, 1), (3, 2, 3, 3), {"stride": 3, "padding": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions(case: str) -> None:
    convolve, size, filters, options = CONVOLUTIONS[case]
    outputs = filters[1] if convolve is F.conv_transpose2d else filters[0]

    def function(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, e: torch.Tensor) -> Any:
        return convolve(x, w, **options), F.silu(convolve(F.silu(x * 2), w, b, **options) + e) * 2

    w = r(*filters) / torch.Size(filters[1:]).numel() ** 0.5
    verify(function, r(*size), w, r(outputs), r(1, outputs, *[1] * (len(size) - 2)))


def test_causal_convolutions_of_videos() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> Any:
        return F.conv3d(F.pad(x.relu(), (1, 1, 1, 1, 2, 0)), w), F.conv3d(F.pad(x, (0, 0, 0, 0, 2, 0), "replicate"), w)

    verify(function, r(1, 3, 4, 6, 5), r(4, 3, 3, 3, 3) / 9)


# -- norms of rows that are nearly constant --------------------------------------------------------------------------

NORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows": lambda x: F.layer_norm(x, (1000,)),
    "across": lambda x: F.layer_norm(x.view(1000, 32).t(), (1000,)),  # rows lie next to each other
    "blocks": lambda x: F.layer_norm(x.view(4, 8, 10, 100), (10, 100)),
    "groups": lambda x: F.group_norm(x.view(4, 80, 100), 8),
}


@pytest.mark.parametrize("form", NORMS)
def test_norms_of_nearly_constant_rows(form: str) -> None:
    norm = NORMS[form]
    constant = torch.full((32, 1000), 1234.567)
    made, _ = built(lambda x: (norm(x),), constant)
    assert not made([constant])[0].any()
    near = 1e6 + r(32, 1000) / 2  # a sixteenth apart
    (got,), exact = made([near]), norm(near.double())
    assert (got - exact).abs().max() < 1e-3


# -- what inputs look like when they come ----------------------------------------------------------------------------


def strided(x: torch.Tensor, w: torch.Tensor, m: torch.Tensor, i: torch.Tensor) -> Any:
    rows = F.linear(x, w)
    return rows.relu(), x * m, F.layer_norm(x, (8,)) + i, torch.where(m > 0, x, i), x.sum(0)


def test_inputs_of_any_strides() -> None:
    """Expanded, transposed, cut out of others, and back: at run time and when the kernels are built."""
    shapes = (6, 8), (8, 8), (6, 8), (6, 8)

    def given(how: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        return [how(r(*shape)) for shape in shapes[:3]] + [how(torch.randint(-3, 3, shapes[3]))]

    ways: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: x,
        lambda x: x[:1].expand_as(x),
        lambda x: x[:, :1].expand_as(x),
        lambda x: x[0, 0].expand_as(x),
        lambda x: x.T.contiguous().T,
        lambda x: torch.cat([x, x])[3:9].view_as(x) if x.shape[0] == 6 else torch.cat([x, x])[3:11],
        lambda x: torch.stack([x, x], -1)[..., 1],
        lambda x: x.flatten().repeat(2)[: x.numel() + 1].unfold(0, x.shape[1], 1)[: x.shape[0]],
    ]
    for build in (ways[0], ways[1], ways[3], ways[4], ways[7]):
        made, program = built(strided, *given(build))
        for way in ways:
            assert check(made, program, given(way), strided=False) is None


def test_negated_memory() -> None:
    """The imaginary part of a conjugate is a view that negates: its memory has the other sign."""
    x = torch.complex(r(3, 5), r(3, 5))
    made, _ = built(lambda x: x * 2, r(3, 5))
    negated = x.conj().imag
    assert negated.is_neg()
    (result,) = made([negated])
    assert torch.equal(result, negated * 2)


def test_results_of_other_dtypes_between_kernels_and_torch() -> None:
    def function(x: torch.Tensor, i: torch.Tensor) -> Any:
        mask = (x > 0) & (i < 2)
        return (
            mask,
            mask.cumsum(-1),
            (i * 2 + 1).sort().values + 1,
            mask.T,
            torch.cat([i, i + 1]),
            torch.stack([mask] * 2),
        )

    left = ["<built-in function getitem>", "cumsum.default", "sort.default"]
    made = verify(function, r(5, 7), torch.randint(0, 4, (5, 7)), left=left)
    assert launches(made) >= 4


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_empty_operands(shape: tuple[int, ...]) -> None:
    def function(x: torch.Tensor, m: torch.Tensor) -> Any:
        return (
            torch.where(m, x, 0.0), x.sum(-1), x @ x.T, torch.stack([x, x]), F.pad(x, (1, 2)), x.T @ x, x.mean(0), x > 0
        )  # fmt: skip

    made, program = built(function, *(given := (r(*shape), r(*shape) > 0)))
    assert check(made, program, given) is None


def test_operands_of_no_dimension() -> None:
    def function(x: torch.Tensor, s: torch.Tensor, n: torch.Tensor) -> Any:
        return torch.where(s > 0, x, n), s * n, (s > n) | (x > s), torch.stack([s, s * 2]), x.clamp_min(0) + n, s.sum()

    verify(function, r(3, 5), torch.tensor(0.5), torch.tensor(3))
