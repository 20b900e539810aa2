"""Which lines of packed weights kernels ask for before they read them: seen by having the request write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("tvm")

from graphopt.ir import winograd
from graphopt.targets.tvm import build, tiling
from graphopt.targets.tvm.isa import detect
from graphopt.targets.tvm.places import Panels
from graphopt.targets.tvm.running import Code
from graphopt.targets.tvm.tile import LINE
from graphopt.testing import trace

CPU = dataclasses.replace(detect(), cores=4)
_AWAY = 1 << 20  # numbers from a line to where the request for it is noted: more than any weight here has
_REQUEST = "call void @llvm.prefetch.p0(ptr %at, i32 0, i32 2, i32 1)"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """Runs a function's kernels on one thread; for each line of its weight, whether it was asked for."""
    assert _REQUEST in build._RUNTIME
    noted = f"%note = getelementptr float, ptr %at, i64 {_AWAY}\n  store float 1.0, ptr %note"
    monkeypatch.setattr(build, "_RUNTIME", build._RUNTIME.replace(_REQUEST, noted))
    memories: list[tuple[int, torch.Tensor]] = []

    def longer(pack: Callable[[Any, torch.Tensor], torch.Tensor]) -> Callable[[Any, torch.Tensor], torch.Tensor]:
        def made(place: Any, weight: torch.Tensor) -> torch.Tensor:
            packed = pack(place, weight)
            memory = torch.zeros(2 * _AWAY)
            memory[: packed.numel()] = packed.flatten()
            memories.append((packed.numel(), memory))
            return memory[: packed.numel()].view(packed.shape)

        return made

    monkeypatch.setattr(Panels, "pack", longer(Panels.pack))

    def run(function: Callable[..., Any], *inputs: torch.Tensor) -> torch.Tensor:
        graph = trace(function, *inputs).program.graph
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            (result,) = Code(CPU, graph, inputs, nn.Module(), {})(*inputs)
        finally:
            torch.set_num_threads(before)
        torch.testing.assert_close(result, function(*inputs), rtol=1e-4, atol=1e-4)
        ((numbers, memory),) = memories
        return memory[_AWAY : _AWAY + -(-numbers // LINE) * LINE].view(-1, LINE).any(1)

    return run


@pytest.mark.parametrize(
    ("rows", "terms", "columns"),
    [(48, 64, 960), (48, 640, 480), (24, 1200, 96), (7, 96, 192), (1, 256, 640), (200, 64, 256)],
)
def test_panels(rows: int, terms: int, columns: int, asked: Callable[..., torch.Tensor]) -> None:
    """All lines, but those that are read first: of the first panel, the first run of terms."""
    lines = asked(lambda x, w: F.linear(x, w), torch.randn(rows, terms), torch.randn(columns, terms))
    product = tiling.Product(rows, columns, terms)
    schedule = tiling.formula(CPU, product)
    form = tiling.Tiles(schedule.rows, schedule.vectors, CPU.lanes)
    size = tiling.cut(CPU, product, form, schedule.work)
    first = size.terms * form.columns // LINE
    assert size.across > 1 and lines[first:].float().mean() >= (1.0 if size.tiles % size.height == 0 else 0.5)
    if size.down == 1:  # else the tasks of other rows ask for them
        assert not lines[: first - 1].any()


@pytest.mark.parametrize(("channels", "outputs", "edge", "pixels"), [(32, 96, 3, 4), (48, 192, 1, 16), (7, 60, 5, 8)])
def test_filters(channels: int, outputs: int, edge: int, pixels: int, asked: Callable[..., torch.Tensor]) -> None:
    """All lines, but those of the first tile of output channels, and one at the end that is not full."""

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, w, None, 2, edge // 2)

    x, w = torch.randn(2, channels, 2 * pixels, 2 * pixels), torch.randn(outputs, channels, edge, edge)
    lines = asked(function, x, w)
    first = -(-CPU.tile[0] * channels * edge * edge // LINE)
    whole = outputs * channels * edge * edge // LINE
    assert lines[first:whole].all()


def test_taps(asked: Callable[..., torch.Tensor]) -> None:
    """Of Winograd's filters: all lines but those of the first task."""

    x, w = torch.randn(2, 64, 8, 8), torch.randn(192, 64, 3, 3)
    lines = asked(lambda x, w: winograd.conv2d(x, w, None, [1, 1], 4), x, w)
    assert lines[len(lines) // 3 :].all() and not lines.all()
