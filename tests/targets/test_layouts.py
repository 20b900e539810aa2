"""How the target tvm lays weights and images out in memory."""

from __future__ import annotations

import itertools
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

pytest.importorskip("tvm")

from graphopt.targets.tvm.conv import Framed, Geometry, Layout
from graphopt.targets.tvm.places import Panels, Taps, Turned

NODE = fx.Graph().placeholder("weight")


def laid(size: tuple[int, ...], order: int) -> torch.Tensor:
    """Numbers all different, whose dimensions lie in memory in some order."""
    orders = list(itertools.permutations(range(len(size))))
    chosen = orders[order % len(orders)]
    numbers = torch.arange(1.0, torch.Size(size).numel() + 1).reshape([size[k] for k in chosen])
    return numbers.permute([chosen.index(k) for k in range(len(size))])


def panels(weight: torch.Tensor, columns: int, group: int) -> torch.Tensor:
    """What `Panels.shape` says, number by number."""
    outputs, inner = weight.shape[:2]
    taps = weight.reshape(outputs, inner, -1)
    terms = ceil(inner / group) * taps.shape[2]
    found = torch.zeros(ceil(outputs / columns), terms, columns, group)
    for output, term, tap in itertools.product(range(outputs), range(inner), range(taps.shape[2])):
        place = term // group * taps.shape[2] + tap
        found[output // columns, place, output % columns, term % group] = taps[output, term, tap]
    return found if group > 1 else found.squeeze(3)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(size=sizes, columns=st.integers(1, 9), group=st.sampled_from([1, 2, 4]), order=st.integers(0, 23))
def test_packed(size: tuple[int, ...], columns: int, group: int, order: int) -> None:
    weight = laid(size, order)
    made = Panels(NODE, columns, group=group).pack(weight)
    assert made.is_contiguous() and torch.equal(made, panels(weight, columns, group))
    assert made.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 17), inner=st.integers(1, 9), size=st.integers(1, 16), lanes=st.sampled_from([1, 4, 8, 16]),
    order=st.integers(0, 23),
)  # fmt: skip
def test_taps(outputs: int, inner: int, size: int, lanes: int, order: int) -> None:
    weight = laid((outputs, inner, 3, 3), order)
    made = Taps(NODE, size, lanes=lanes).pack(weight)
    assert made.is_contiguous() and made.shape == (ceil(outputs / size), 9, ceil(inner * size / lanes) * lanes)
    expected = torch.zeros_like(made)
    for output, term, tap in itertools.product(range(outputs), range(inner), range(9)):
        expected[output // size, tap, term * size + output % size] = weight[output, term].flatten()[tap]
    assert torch.equal(made, expected)
    assert made.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("kind", [Panels(NODE, 2), Turned(NODE, 2, rows=(0, 2), columns=(1,))])
def test_a_weight_that_is_a_panel_already_is_copied(kind: Panels) -> None:
    weight = torch.arange(18.0).reshape(2, 1, 3, 3)
    made = kind.pack(weight)
    assert made.is_contiguous() and made.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()


def geometry(size: int, width: int, kernel: int, stride: int, padding: int) -> Geometry:
    return Geometry(1, 3, size, width, 5, (kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1))


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(3, 70), width=st.integers(3, 70), kernel=st.integers(1, 3), stride=st.integers(1, 3),
    padding=st.integers(0, 2), lanes=st.sampled_from([4, 8, 16]),
)  # fmt: skip
def test_channels_lie_apart(size: int, width: int, kernel: int, stride: int, padding: int, lanes: int) -> None:
    """Neither over one another, nor a multiple of eight lines of 64 bytes apart."""
    given_ = geometry(size, width, kernel, stride, padding)
    for layout in (Layout(given_, lanes), Framed(given_, lanes, (padding, padding))):
        assert layout.numbers <= layout.channel <= layout.numbers + 2 * 16
        assert layout.channel % (8 * 16)
        assert layout.size >= 3 * layout.channel


def test_pixels_of_latents_do_not_share_cache_sets() -> None:
    for side in (16, 32, 64, 128):
        assert Layout(geometry(side, side, 1, 1, 0), 8).channel == side * side + 16
