"""The transforms are those of a convolution, exactly; the operators are, in every dtype and size."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.ir import winograd

SIZES = sorted(winograd.POINTS)


@pytest.mark.parametrize("tile", SIZES)
@given(data=st.data())
def test_a_row_of_outputs_is_a_sliding_sum(tile: int, data: st.DataObject) -> None:
    numbers = st.integers(-9, 9)
    line = data.draw(st.lists(numbers, min_size=tile + 2, max_size=tile + 2))
    weight = data.draw(st.lists(numbers, min_size=3, max_size=3))
    given = winograd.transforms(tile)

    def times(matrix: winograd.Matrix, vector: list[Fraction]) -> list[Fraction]:
        return [sum((Fraction(a) * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]

    before = times(given.input, [Fraction(n) for n in line])
    factors = times(given.weight, [Fraction(n) for n in weight])
    found = times(given.output, [a * b for a, b in zip(before, factors, strict=True)])
    expected = [sum(weight[k] * line[start + k] for k in range(3)) for start in range(tile)]
    assert [float(value) for value in found] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("tile", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_operators(tile: int, dtype: torch.dtype) -> None:
    x, w, b = torch.randn(2, 5, 9, 14, dtype=dtype), torch.randn(7, 5, 3, 3, dtype=dtype), torch.randn(7, dtype=dtype)
    for padding in ([1, 1], [0, 2]):
        found = torch.ops.graphopt.winograd_conv2d(x, w, b, padding, tile)
        expected = torch.nn.functional.conv2d(x.double(), w.double(), b.double(), padding=padding)
        assert found.dtype == dtype and found.is_contiguous()
        off = ((found.double() - expected).abs().max() / expected.abs().max()).item()
        assert off < {torch.float32: 3e-6, torch.float64: 1e-14, torch.bfloat16: 0.05}[dtype]


@pytest.mark.parametrize("tile", SIZES)
def test_operators_are_well_formed(tile: int) -> None:
    x, w = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3)
    torch.library.opcheck(winograd.conv2d, (x, w, None, [1, 1], tile), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("tile", "most"), [(2, 2.0), (4, 6.0)])
def test_errors_are_of_the_direct_sums_order(tile: int, most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 128, 16, 16, generator=generator), torch.randn(32, 128, 3, 3, generator=generator)
    exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)

    def error(found: torch.Tensor) -> float:
        return float((found.double() - exact).square().mean().sqrt())

    ours = winograd.conv2d(x, w, None, [1, 1], tile)
    assert error(ours) < most * error(torch.nn.functional.conv2d(x, w, padding=1))
