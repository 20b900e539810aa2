"""Whether bfloat16 is multiplied as what it is: where the CPU is faster so."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graphopt.ir import products


@pytest.mark.parametrize(
    ("vectors", "tiles", "gain", "narrow", "torchs"),
    [
        *[(True, False, 1.9, True, True), (True, False, 0.5, False, False), (False, False, 1.9, False, False)],
        *[(True, True, 8.0, False, True), (False, True, 8.0, False, True)],
    ],
)
def test_where_it_is_faster(
    vectors: bool, tiles: bool, gain: float, narrow: bool, torchs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(products, "gain", lambda: gain)
    assert (products.supported(), products.in_torch()) == (narrow, torchs)


def test_the_gain_is_the_ratio_of_the_fastest_products(monkeypatch: pytest.MonkeyPatch) -> None:
    begins, kinds = itertools.count(), list[torch.dtype]()

    def multiply(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        kinds.append(one.dtype)
        return one

    def clock() -> float:  # 3 seconds for a product of float32, 2 for one of bfloat16, once 1
        number, ends = divmod(next(begins), 2)
        taken = 3 if kinds[-1:] == [torch.float32] else 1 if number == 30 else 2
        return 100.0 * number + ends * taken

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(time, "perf_counter", clock)
    before = torch.get_num_threads()
    assert products.gain.__wrapped__() == 3.0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("inside", ["plain", "autocast", "device", "inference", "fake"])
def test_it_is_measured_wherever_it_is_asked_for(inside: str) -> None:
    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "plain": torch.no_grad, "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "device": lambda: torch.device("meta"), "inference": torch.inference_mode, "fake": FakeTensorMode,
    }  # fmt: skip
    with contexts[inside]():
        assert 0.001 < products.gain.__wrapped__() < 1000
