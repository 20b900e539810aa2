"""Evicted weights: whatever a user changes, results are the original's bit for bit, and nothing is computed in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import graphopt
from graphopt.runtime import mapped
from graphopt.runtime.evict import Eviction
from graphopt.runtime.mapped import mapping_of
from tests.soundness import tiny
from tests.soundness.test_changes import CHANGES, Change, check
from tests.soundness.tiny import generate

pytestmark = pytest.mark.skipif(mapped.unsupported() is not None, reason=str(mapped.unsupported()))


def evicted(module: torch.nn.Module) -> int:
    return sum(mapping_of(parameter) is not None for parameter in module.parameters())


@pytest.fixture(scope="module")
def pipes() -> tuple[Any, Any]:
    original, compiled = tiny.pair(tiny.stable_diffusion, evict=Eviction(min_bytes=0))
    generate(compiled)
    assert evicted(compiled.unet) > 5
    return original, compiled


# What writes weights is what eviction could get wrong; the rest of the table is slow, and the same as without.
_WRITES = ("weight", "parameter", "dtype", "float64", "copy")


def _cases() -> list[Any]:
    return [
        pytest.param(case, id=repr(case), marks=() if any(w in repr(case) for w in _WRITES) else pytest.mark.slow)
        for case in CHANGES
    ]


@pytest.mark.parametrize("case", _cases())
def test_change(pipes: tuple[Any, Any], case: Change) -> None:
    check(*pipes, case)


def test_saved_and_restored(tmp_path: Path) -> None:
    original, compiled = tiny.pair(tiny.stable_diffusion, evict=Eviction(min_bytes=0))
    expected = generate(original)
    assert torch.equal(generate(compiled), expected)
    count, objects = evicted(compiled.unet), [id(parameter) for parameter in compiled.unet.parameters()]
    assert count > 5
    compiled.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(generate(loaded), expected)
    assert evicted(compiled.unet) == count
    graphopt.restore(compiled)
    assert evicted(compiled.unet) == 0
    assert [id(parameter) for parameter in compiled.unet.parameters()] == objects
    states = original.unet.state_dict(), compiled.unet.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert torch.equal(generate(compiled), expected)
