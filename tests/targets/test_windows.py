"""Results that are views of what kernels wrote: made after all kernels, at once, as torch would make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("tvm")

from graphopt.ir.stages import split
from graphopt.targets.tvm.running import Code
from graphopt.targets.tvm.steps import Torch
from graphopt.targets.tvm.windows import Window
from graphopt.testing import trace

r = torch.randn
X, W = r(6, 8), r(24, 8)


def code(function: Callable[..., Any], *given: torch.Tensor) -> Code:
    (part,) = split(trace(function, *given).program)
    return Code(None, part.graph, given, part.root)


def windows(made: Code) -> list[Window]:
    return [step for step in made._steps if isinstance(step, Window)]


def by_torch(made: Code) -> list[Torch]:
    return [step for step in made._steps if isinstance(step, Torch)]


def check(made: Code, function: Callable[..., Any], *given: torch.Tensor) -> None:
    """Values, strides, and which results share memory with which, and with inputs."""
    for _ in range(2):
        results, expected = made(*given), function(*given)
        for got, want in zip(results, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
            assert got.stride() == want.stride() and got.storage_offset() == want.storage_offset()
            assert got.dtype == want.dtype and got.is_neg() == want.is_neg()
        shared = [
            [one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in (*values, *given)]
            for values in (results, expected)
            for one in values
        ]
        assert shared[: len(results)] == shared[len(results) :]


def parts(x: torch.Tensor, w: torch.Tensor) -> Any:
    shift, scale, gate = F.linear(x, w).chunk(3, -1)
    return shift.unsqueeze(1), scale.unsqueeze(1), gate


def several(x: torch.Tensor, w: torch.Tensor) -> Any:
    """Kernels between the views, which read some of them, too."""
    first, second = F.linear(x, w).split([8, 16], -1)
    y = F.linear(first.relu() + first, w)
    return first, y.view(6, 4, 6).transpose(1, 2), y[1:, ::2], second.unbind(0)[2], y.exp()


def whole(x: torch.Tensor, w: torch.Tensor) -> Any:
    y = F.linear(x, w)
    return y, y.t(), y[2].expand(5, 24)


@pytest.mark.parametrize("function", [parts, several, whole])
def test_views_of_results(function: Callable[..., Any]) -> None:
    made = code(function, X, W)
    assert len(made.plan.kernels) == 1 and not by_torch(made)
    assert len(windows(made)) >= 2
    check(made, function, X, W)


def copying(x: torch.Tensor, w: torch.Tensor) -> Any:
    y = F.linear(x, w)
    return y.t().reshape(-1), y[:, 1]


def joined(x: torch.Tensor, w: torch.Tensor) -> Any:
    """What else torch does reads views."""
    y = F.linear(x, w)
    found = torch.sort(y[:, :4]).values
    return found[1:], y[:, 4:]


def bits(x: torch.Tensor, w: torch.Tensor) -> Any:
    y = F.linear(x.round(), w.round()).abs()  # exact
    return y[:, 2:4], y.view(torch.int32), y.view(torch.float16)[:, :3]


def pairs(x: torch.Tensor, w: torch.Tensor) -> Any:
    y = F.linear(x, w)
    return y[:, 2:4], torch.view_as_complex(y.view(6, 12, 2))


def negative(x: torch.Tensor, w: torch.Tensor) -> Any:
    y = F.linear(x, w)
    return y[1:], torch._neg_view(y)[:, :2]


@pytest.mark.parametrize("function", [copying, joined, bits, pairs, negative])
def test_what_torch_does_beyond_looking_stays_with_it(function: Callable[..., Any]) -> None:
    made = code(function, X, W)
    assert windows(made) and by_torch(made)
    check(made, function, X, W)


def test_of_several_kernels() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> Any:
        y, z = F.linear(x, w), F.linear(x.relu(), w)
        return y[1:], z[:, 3:], y.t(), z

    made = code(function, X, W)
    assert len({window.source for window in windows(made)}) == 2
    check(made, function, X, W)


def test_code_that_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("GRAPHOPT_CACHE", raising=False)
    first, second = code(several, X, W), code(several, X, W)
    assert (first.kept, second.kept) == (False, True)
    assert len(windows(second)) == len(windows(first)) > 2
    check(second, several, X, W)


def test_views_of_inputs_stay_views_of_inputs() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> Any:
        y = F.linear(x, w)
        return x[1:], y[1:], w.t()

    made = code(function, X, W)
    assert [window.offset for window in windows(made)] == [24]
    check(made, function, X, W)
    check(made, function, r(8, 6).t(), r(12, 2, 8)[:, 0].repeat(2, 1))


def test_windows_into_what_torch_reads_last() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> Any:
        y = torch.cat([x.view(1, 4, 3, 4), w[:6].view(1, 4, 3, 4)])
        rows, shuffled = y.flatten(2), torch.pixel_shuffle(y, 2)
        return rows.expand(2, 2, 4, 12), shuffled

    made = code(function, X, W)
    assert windows(made)
    check(made, function, X, W)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_in_any_mode(mode: Callable[[], Any]) -> None:
    with mode():
        made = code(several, X, W)
        assert windows(made)
        check(made, several, X, W)
    with torch.no_grad():
        check(made, several, X, W)
