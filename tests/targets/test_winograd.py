"""Kernels of Winograd's convolutions against eager ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("tvm")

from benchmarks.fuzz_targets import Built, check
from graphopt.ir import winograd
from graphopt.ir.program import Program
from graphopt.targets.tvm.isa import Isa, of
from graphopt.targets.tvm.target import Tvm
from graphopt.targets.tvm.winograd import Cut, Shape, cut
from graphopt.testing import trace

SHAPES = [  # batch, channels, outputs, rows, columns
    (1, 3, 5, 8, 8),
    (2, 8, 12, 16, 16),
    (1, 7, 13, 9, 14),
    (3, 5, 6, 12, 20),
    (2, 16, 20, 32, 32),
    (1, 700, 7, 8, 8),  # sums in several runs, the last one shorter
    (1, 6, 100, 40, 44),  # several tasks of several groups and blocks, the last ones smaller
    (2, 4, 60, 4, 4),  # fewer tiles than lanes
    (1, 5, 5, 3, 70),
    (1, 1, 1, 1, 1),
]


def built(function: Any, *inputs: torch.Tensor) -> tuple[Built, Program]:
    program = trace(function, *inputs).program
    made = Built(Tvm(), program, inputs)
    assert not made.refused
    return made, program


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...], tile: int) -> None:
    batch, channels, outputs, rows, columns = shape
    x, w, b = torch.randn(batch, channels, rows, columns), torch.randn(outputs, channels, 3, 3), torch.randn(outputs)
    for padding in ([1, 1], [0, 2], [2, 1]):
        if min(rows + 2 * padding[0], columns + 2 * padding[1]) < 3:
            continue

        def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, padding: Any = padding) -> torch.Tensor:
            result: torch.Tensor = winograd.conv2d(x, weight, bias, padding, tile)
            return result

        made, program = built(function, x, w, b)
        assert check(made, program, [x, w, b]) is None


@pytest.mark.parametrize("tile", [2, 4])
def test_what_comes_before_and_after_is_part_of_the_kernels(tile: int) -> None:
    def function(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        before = F.interpolate(F.silu(torch.cat([x, y], dim=1)), scale_factor=2.0)
        return F.silu(winograd.conv2d(before, weight, bias, [1, 1], tile)) + before[:, :6]

    x, y = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8).transpose(2, 3)
    inputs = x, y, torch.randn(6, 9, 3, 3), torch.randn(6)
    made, program = built(function, *inputs)
    assert check(made, program, inputs) is None


def test_a_weight_that_is_computed_is_left_to_torch() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        turned, scaled = w.flip(2), w * 2 + 1
        result: torch.Tensor = winograd.conv2d(x, turned, None, [1, 1], 4) + winograd.conv2d(x, scaled, None, [1, 1], 4)
        return result

    inputs = torch.randn(2, 4, 8, 8), torch.randn(4, 4, 3, 3)
    made, program = built(function, *inputs)
    assert check(made, program, inputs) is None


def test_values_outside_are_zeros_whatever_lies_at_the_edge() -> None:
    x = torch.randn(1, 2, 8, 8)
    x[:, :, -1] = 1e30  # of which a sum with a zero times it would show
    inputs = x, torch.randn(3, 2, 3, 3)
    made, program = built(lambda x, w: winograd.conv2d(x, w, None, [1, 1], 4)[:, :, :4], *inputs)
    assert check(made, program, inputs) is None


@pytest.mark.parametrize("isa", [of("x86-64"), Isa("any", 8, 16), Isa("any", 16, 32)], ids=str)
def test_memory_holds_all_points(isa: Isa) -> None:
    shape = Shape(isa, 2, 8, (30, 30), 12, (1, 1), 4)
    assert (shape.down, shape.across, shape.tiles, shape.points) == (8, 8, 128, 36)
    assert shape.blocks * shape.block >= shape.tiles
    assert shape.floats == shape.blocks * 36 * 9 * shape.block


@pytest.mark.parametrize("isa", [Isa("x86-64-v3", 8, 16), Isa("x86-64-v4", 16, 32)], ids=["v3", "v4"])
@pytest.mark.parametrize("outputs", [1, 5, 64, 512])
@pytest.mark.parametrize("size", [2, 8, 16, 64])
def test_sums_of_few_tiles_are_of_more_channels(isa: Isa, outputs: int, size: int) -> None:
    """All sums fit into registers, and a core is never without one that it can add to."""
    shape = Shape(isa, 1, 8, (size, size), outputs, (1, 1), 4)
    assert shape.height * shape.vectors + shape.vectors + 1 <= isa.registers
    assert shape.height * shape.vectors >= 8 or shape.height == outputs
    assert (shape.high - 1) * shape.height < outputs


@pytest.mark.parametrize("cores", [1, 2, 64])
@pytest.mark.parametrize("size", [4, 8, 64, 300])
@pytest.mark.parametrize(("channels", "outputs"), [(3, 8), (64, 64), (512, 500), (1280, 640)])
def test_tasks_fit_into_the_cache_and_leave_no_core_idle(cores: int, size: int, channels: int, outputs: int) -> None:
    for isa in (Isa("any", 8, 16, cores), Isa("any", 16, 32, cores)):
        shape = Shape(isa, 1, channels, (size, size), outputs, (1, 1), 4)
        found = cut(shape)
        assert found.fits(shape)
        assert 1 <= found.groups <= shape.high and 1 <= found.blocks <= shape.blocks
        assert 1 <= found.channels <= channels
        smallest = Cut.of(shape, 1, 1).tasks(shape)
        assert found.tasks(shape) >= min(cores, smallest) // 2  # as many cores as there are tasks for, or nearly
