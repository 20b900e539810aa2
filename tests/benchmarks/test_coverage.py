"""What the target covers is counted: `benchmarks.coverage`."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

import torch

from benchmarks.coverage import Coverage, add, counted, markdown, of_module
from benchmarks.families import families
from graphopt.testing import trace


def test_all_of_a_decoder_is_generated() -> None:
    found = counted("tiny", lambda: of_module("tiny", families()["AutoencoderTiny"]))
    assert found.error is None
    assert found.nodes > 10 and found.flops > 1000
    assert (found.generated, found.left) == ((1.0, 1.0), {})


def test_what_is_left_is_counted_by_operator_and_dtype() -> None:
    found = Coverage("sorted")
    program = trace(lambda x: (x * 2).sort(-1).values + x.double().cumsum(-1).float(), torch.randn(2, 3)).program
    add(found, program.graph)
    assert found.left["sort.default"] == (1, 12)
    assert found.left["cumsum.default (float64)"] == (1, 6)
    assert found.nodes > len(found.left)
    table = markdown([found, Coverage("broken", error="no reason")])
    assert "1 sort.default" in table and "no reason" in table and "| sort.default | 1 | 1 | 0.000 |" in table
