"""Compiled pipelines are as accurate as the original's own float32, on the trained pipelines."""

from __future__ import annotations

import pytest

from benchmarks import fidelity
from benchmarks.fidelity import Case

NAMES = ("emoji-unet", "emoji-dit")


@pytest.mark.parametrize("name", NAMES[1:])  # the other one takes half a minute; the slow test has both
def test_as_accurate_as_the_original(name: str) -> None:
    for row in fidelity.rows(name, [Case("DDIM", 2, 4.0, 1), Case("Euler ancestral", 2, 4.0, 1)]):
        assert row.holds, row


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
def test_all_samplers_steps_guidances_and_batches(name: str) -> None:
    wrong = [row for row in fidelity.rows(name, fidelity.FULL) if not row.holds]
    assert not wrong, wrong


def test_the_bounds_bite() -> None:
    case = fidelity.FULL[0]
    assert fidelity.Row(case, 1e-5, 2e-5, 1).holds
    assert not fidelity.Row(case, 1e-5, 2.1e-5, 0).holds
    assert not fidelity.Row(case, 1e-5, 1e-5, 2).holds
    assert fidelity.Row(case, 0.0, 3e-6, 0).holds
    assert len(fidelity.FULL) > 40
