"""The part of a report that describes the loop, whole text."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import graphopt
from graphopt.runtime.loop_report import loops_of
from tests.goldens import Golden
from tests.soundness import tiny
from tests.soundness.tiny import Small, embeddings

PLAIN, CONDITIONAL = embeddings(1), embeddings(2)
BOTH = torch.cat([PLAIN, CONDITIONAL])
REST = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(4))
TIMES = torch.linspace(900.0, 100.0, 6)


def guided(model: Any, x: torch.Tensor) -> torch.Tensor:
    for time in TIMES:
        plain, conditional = model(torch.cat([x] * 2), time, BOTH).chunk(2)
        x = 1.25 * x - 0.5 * (plain + 3.0 * (conditional - plain))
    return x


def separate(model: Any, x: torch.Tensor) -> torch.Tensor:
    for time in TIMES:
        plain, conditional = (model(x, time, branch) for branch in (PLAIN, CONDITIONAL))
        x = x - 0.5 * (plain + 3.0 * (conditional - plain)) + 0.125 * torch.randn_like(x)
    return x


def painted(model: Any, x: torch.Tensor) -> torch.Tensor:
    rest = torch.cat([REST] * 2)
    for time in TIMES:
        joined = torch.cat([torch.cat([x] * 2), rest], dim=1)
        x = x - 0.5 * model(joined, time, BOTH).mean(0, keepdim=True)
    return x


@pytest.mark.parametrize("sampler", [guided, separate, painted])
def test_text(sampler: Any, golden: Golden) -> None:
    model = Small(9 if sampler is painted else 4)

    def sample(x: torch.Tensor) -> torch.Tensor:
        return sampler(model, x)  # type: ignore[no-any-return]

    compiled = tiny.compiled(sample, inputs=(torch.randn(1, 4, 8, 8),))
    with torch.no_grad():
        for _ in range(2):
            compiled(torch.randn(1, 4, 8, 8))
    (loop,) = loops_of(compiled.installed)
    text = re.sub(r"([\w/]+\.py):\d+", r"\1", "\n".join(loop.lines()))  # lines of this file may move
    assert all(line in str(graphopt.report(compiled)) for line in loop.lines())
    golden(text, suffix=".txt")
