"""Winograd's convolutions: a tile of m × m outputs of a 3 × 3 filter from (m + 2)² products a channel, not 9 m².

``y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A`` per tile, summed up over channels before Aᵀ and A are applied (Lavin and Gray, "Fast
algorithms for convolutional neural networks", 2016). The matrices evaluate polynomials at points and interpolate (Cook
and Toom). ``graphopt.winograd_conv2d(x, weight, bias, padding, tile)`` is such a convolution, of stride 1. The weight
is not transformed yet: transformed it takes 16/9 or 4 times the memory, which costs more to read than to compute.

The points decide how errors grow. With tiles of 2 the usual 0, ±1 are as exact as the direct sum. With tiles of 4 the
usual 0, ±1, ±2 lose a digit; 0, ±5/8, ±13/8 stay within three to four times the direct sum's error: in float32 the best
of those with a denominator of 8, by the root mean square over random convolutions of 128 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
from torch.nn.functional import pad

FILTER = 3  # rows and columns of the filter
POINTS: dict[int, tuple[Fraction, ...]] = {  # by tile; one more lies at infinity
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(13, 8), Fraction(-13, 8)),
}

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Transforms:
    """The three matrices for one tile size.

    Attributes
    ----------
    output : Aᵀ, (tile, points).
    weight : G, (points, 3).
    input : Bᵀ, (points, points).
    """

    output: Matrix
    weight: Matrix
    input: Matrix

    @property
    def points(self) -> int:
        return len(self.input)


@cache
def transforms(tile: int) -> Transforms:
    """Exact in fractions, then rounded once."""
    points = POINTS[tile]
    product = _from_roots(points)
    inputs, weights, outputs = list[Sequence[Fraction]](), list[Sequence[Fraction]](), list[Sequence[Fraction]]()
    for point in points:
        others = [other for other in points if other != point]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        inputs.append([*_from_roots(others), Fraction(0)])
        weights.append([point**power / scale for power in range(FILTER)])
        outputs.append([point**power for power in range(tile)])
    inputs.append(product)
    weights.append([Fraction(0)] * (FILTER - 1) + [Fraction(1)])
    outputs.append([Fraction(0)] * (tile - 1) + [Fraction(1)])
    return Transforms(_rounded(list(zip(*outputs, strict=True))), _rounded(weights), _rounded(inputs))


def _from_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of Π (x - root), the constant one first."""
    found = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *found]
        found = [high - root * low for high, low in zip(shifted, [*found, Fraction(0)], strict=True)]
    return found


def _rounded(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(map(float, row)) for row in rows)


def tiles(size: int, padding: int, tile: int) -> int:
    """Tiles along a dimension of so many inputs."""
    return -(-(size + 2 * padding - FILTER + 1) // tile)


# -- operators -------------------------------------------------------------------------------------------------------

_LIBRARY = torch.library.Library("graphopt", "FRAGMENT")
_LIBRARY.define("winograd_conv2d(Tensor input, Tensor weight, Tensor? bias, int[2] padding, int tile) -> Tensor")


def _conv2d(
    source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int], tile: int
) -> torch.Tensor:
    given, points = transforms(tile), transforms(tile).points
    rows, columns = (size + 2 * extra - FILTER + 1 for size, extra in zip(source.shape[2:], padding, strict=True))
    down, across = (tiles(size, extra, tile) for size, extra in zip(source.shape[2:], padding, strict=True))
    bottom, right = down * tile - rows + padding[0], across * tile - columns + padding[1]
    padded = pad(source, (padding[1], right, padding[0], bottom))
    pieces = padded.unfold(2, points, tile).unfold(3, points, tile)  # (batch, channel, down, across, points, points)
    before, after = source.new_tensor(given.input), source.new_tensor(given.output)
    turn = weight.new_tensor(given.weight, dtype=torch.float64)
    pieces, factors = before @ pieces @ before.T, (turn @ weight.double() @ turn.T).to(weight.dtype)
    products = torch.einsum("ocij,bcyxij->boyxij", factors, pieces)
    found = after @ products @ after.T
    found = found.transpose(3, 4).reshape(*found.shape[:2], down * tile, across * tile)[..., :rows, :columns]
    result: torch.Tensor = found if bias is None else found + bias[:, None, None]
    return result.contiguous()


def _conv2d_shape(
    source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int], tile: int
) -> torch.Tensor:
    rows, columns = (size + 2 * extra - FILTER + 1 for size, extra in zip(source.shape[2:], padding, strict=True))
    return source.new_empty(source.shape[0], weight.shape[0], rows, columns)


_LIBRARY.impl("winograd_conv2d", _conv2d, "CompositeExplicitAutograd")
_LIBRARY.impl("winograd_conv2d", _conv2d_shape, "Meta")  # register_fake takes 20 ms, to find out who calls it

conv2d = torch.ops.graphopt.winograd_conv2d.default
