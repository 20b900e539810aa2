"""The TVM target's transposed convolutions: phases, and what filters read that hold infinities and not-a-number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("tvm")

from graphopt.ir.stages import split
from graphopt.targets.tvm import conv
from graphopt.targets.tvm.running import Code
from graphopt.testing import trace
from tests.targets.test_tvm import built, verify

r = torch.randn


def test_many_phases_stay_with_torch() -> None:
    verify(
        lambda x, w: F.conv_transpose2d(x, w, stride=5), r(1, 2, 3, 3), r(2, 2, 5, 5), left=["conv_transpose2d.input"]
    )


def test_weights_that_are_not_finite_reach_the_outputs_that_read_them() -> None:
    x, patches, wide = r(1, 3, 5, 9), r(3, 4, 2, 2), r(3, 4, 4, 4)
    patches[1, 2, 0, 1], patches[0, 3, 1, 1] = torch.inf, torch.nan
    wide[2, 1, 1, 2], wide[2, 1, 3, 0] = -torch.inf, torch.inf

    def function(x: torch.Tensor, patches: torch.Tensor, wide: torch.Tensor) -> Any:
        return F.conv_transpose2d(x, patches, stride=2), F.conv_transpose2d(x, wide, stride=2, padding=1)

    made, _ = built(function, x, patches, wide)
    (first, second), (wanted, inside) = made([x, patches, wide]), function(x, patches, wide)
    torch.testing.assert_close(first, wanted, equal_nan=True)
    assert wanted.isfinite().any() and inside.isfinite().any() and inside.isinf().any()
    # At the edges taps read zeros around the input, which torch leaves out.
    torch.testing.assert_close(second[..., 1:-1, 1:-1], inside[..., 1:-1, 1:-1], equal_nan=True)


@given(
    st.integers(1, 11), st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3), st.integers(0, 2)
)
def test_phases(size: int, kernel: int, stride: int, padding: int, dilation: int, more: int) -> None:
    outputs = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1
    assume(outputs > 0 and more < max(stride, dilation))
    x, w = torch.randn(size, dtype=torch.float64), torch.randn(kernel, dtype=torch.float64)
    found = conv.phases(outputs, kernel, stride, padding, dilation)
    before, after = conv.frame(found, size)
    framed, result = F.pad(x, (before, after)), torch.full((outputs,), torch.nan, dtype=torch.float64)
    for phase in found:
        terms = [
            framed[before + shift : before + shift + phase.count] * w[tap]
            for tap, shift in zip(phase.taps, phase.shifts, strict=True)
        ]
        result[phase.first :: stride] = sum(terms, start=torch.zeros(phase.count, dtype=torch.float64))
    wanted = F.conv_transpose1d(x.view(1, 1, -1), w.view(1, 1, -1), None, stride, padding, more, 1, dilation)
    torch.testing.assert_close(result, wanted.view(-1))


def test_kept_code_packs_the_same_taps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "cache"))
    x, w = r(1, 3, 4, 5), r(3, 2, 3, 3)
    (part,) = split(trace(lambda x, w: F.conv_transpose2d(x, w, stride=2), x, w).program)
    first, second = (Code(None, part.graph, (x, w), part.root) for _ in range(2))
    assert not first.kept and second.kept
    torch.testing.assert_close(first(x, w), second(x, w), rtol=0, atol=0)
