"""Random graphs through the TVM target; `python -m benchmarks.fuzz_targets` runs more of them."""

from __future__ import annotations

import warnings

import pytest
import torch

pytest.importorskip("tvm")

from benchmarks import fuzz_targets

FAST, SLOW, TOGETHER = 40, 400, 10


@pytest.mark.parametrize("first", range(0, FAST, TOGETHER))
def test_random_graphs(first: int) -> None:
    assert failures(range(first, first + TOGETHER)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FAST, SLOW, TOGETHER))
def test_more_random_graphs(first: int) -> None:
    assert failures(range(first, first + TOGETHER)) == {}


def failures(seeds: range) -> dict[str, str]:
    total = fuzz_targets.Tally()
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        for seed in seeds:
            total.add(fuzz_targets.run(seed, "tvm", None))
    assert total.graphs == len(seeds)
    return total.failures
