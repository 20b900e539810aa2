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
    asked, kinds = itertools.count(), list[torch.dtype]()

    def multiply(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        kinds.append(one.dtype)
        return one

    def clock() -> float:  # 3 seconds for a product of float32, 2 for one of bfloat16, once 1, and 0 at the beginning
        number, ends = divmod(next(asked), 2)
        taken = 0 if number < 2 else 3 if kinds[-1:] == [torch.float32] else 1 if number == 31 else 2
        return 100.0 * number + ends * taken

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(time, "perf_counter", clock)
    assert products.gain.__wrapped__() == 3.0
    assert set(kinds[::2]) == {torch.float32} and set(kinds[1::2]) == {torch.bfloat16}


@pytest.mark.parametrize("inside", ["plain", "autocast", "device", "inference", "fake"])
def test_it_is_measured_wherever_it_is_asked_for(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "plain": torch.no_grad, "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "device": lambda: torch.device("meta"), "inference": torch.inference_mode, "fake": FakeTensorMode,
    }  # fmt: skip
    plain, before = list[tuple[Any, ...]](), torch.get_num_threads()

    def seconds(matrix: torch.Tensor) -> float:
        plain.append((type(matrix), matrix.device.type, matrix.dtype, torch.mm(matrix, matrix).dtype))
        return 1.0

    monkeypatch.setattr(products, "_seconds", seconds)
    with contexts[inside]():
        assert products.gain.__wrapped__() == 1.0
    assert set(plain) == {(torch.Tensor, "cpu", kind, kind) for kind in (torch.float32, torch.bfloat16)}
    assert torch.get_num_threads() == before
