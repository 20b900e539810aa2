"""Guidance branches without weight are left out in compiled samplers, and nothing else changes."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import graphopt
from graphopt.ir.verify import compare
from graphopt.runtime import evict, mapped
from tests.soundness import tiny


class Sample:
    """A sampler with a guidance scale per step, as interval guidance has."""

    def __init__(self) -> None:
        self.unet, self.scheduler = tiny.unet(), tiny.scheduler()
        self.between: Any = None

    def __call__(self, noise: torch.Tensor, prompts: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
        x = noise
        self.scheduler.set_timesteps(len(scales))
        for scale, time in zip(scales, self.scheduler.timesteps, strict=True):
            predicted = self.unet(torch.cat([x, x]), time, encoder_hidden_states=prompts).sample
            if self.between is not None:
                self.between(self.unet, x, prompts)
            without, with_prompt = predicted.chunk(2)
            x = self.scheduler.step(without + scale * (with_prompt - without), time, x).prev_sample
        return x


INTERVAL = (5.0, 1.0, 1.0, 5.0)


def arguments(seed: int = 0, scales: Sequence[float] = INTERVAL) -> tuple[Any, ...]:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return noise, torch.cat([tiny.embeddings(seed), tiny.embeddings(seed + 1)]), tuple(scales)


def compile_anew(scales: Sequence[float] = INTERVAL) -> tuple[Sample, Any]:
    sample = Sample()
    return sample, graphopt.compile(sample, inputs=arguments(scales=scales), target="eager", strict=True)


_kept = functools.cache(compile_anew)


def compiled(scales: Sequence[float] = INTERVAL) -> tuple[Sample, Any]:
    """One for all tests that leave it as it is."""
    sample, fast = _kept(tuple(scales))
    sample.between = None
    return sample, fast


def counts(sample: Sample) -> tuple[int, int]:
    found = sample.unet._compiled_call_impl.branches.counts
    return found.branches, found.computed


def assert_right(
    result: torch.Tensor, seed: int, scales: Sequence[float] = INTERVAL, between: Any = None,
    kind: type[Sample] = Sample,
) -> None:  # fmt: skip
    """By the one oracle, against the original in float32 and in float64."""
    sample = kind()
    sample.between = between
    with torch.no_grad():
        single = sample(*arguments(seed, scales))
        sample.unet.double()
        noise, prompts, scales = arguments(seed, scales)
        exact = sample(noise.double(), prompts.double(), scales)
    assert compare([single], [result], "rounding", [exact]) is None


@pytest.mark.parametrize("scales", [INTERVAL, (1.0, 1.0, 1.0, 1.0), (4.0, 4.0, 4.0, 1.0)])
def test_branches_without_weight(scales: Sequence[float]) -> None:
    sample, fast = compiled(scales)
    before = counts(sample)
    with torch.no_grad():
        result = fast(*arguments(3, scales))
    assert_right(result, 3, scales)
    assert type(result) is torch.Tensor
    branches, computed = (now - was for now, was in zip(counts(sample), before, strict=True))
    assert (branches, computed) == (8, 8 - scales.count(1.0))
    assert f"{scales.count(1.0)} of 8 branches" in str(graphopt.report(fast)) or before != (0, 0)


def test_nothing_is_held_back_where_all_branches_had_weights() -> None:
    sample, fast = compiled((5.0, 5.0, 5.0, 5.0))
    with torch.no_grad():
        fast(*arguments(1))
    assert counts(sample) == (0, 0)


def through_numpy(unet: Any, x: torch.Tensor, prompts: torch.Tensor) -> None:
    prompts.numpy()[:] *= 1.25


def in_place(unet: Any, x: torch.Tensor, prompts: torch.Tensor) -> None:
    prompts.mul_(1.25)


def latents_too(unet: Any, x: torch.Tensor, prompts: torch.Tensor) -> None:
    prompts.data.add_(0.5)
    x.data.mul_(0.75)


@pytest.mark.parametrize("write", [through_numpy, in_place, latents_too])
def test_inputs_written_to_before_the_result_is_used(write: Any) -> None:
    sample, fast = compiled()
    sample.between = write
    with torch.no_grad():
        result = fast(*arguments(2))
    assert_right(result, 2, between=write)
    branches, computed = counts(sample)
    assert computed < branches


def test_weights_changed_before_the_result_is_used() -> None:
    sample, fast = compile_anew()
    sample.between = lambda unet, x, prompts: unet.conv_in.weight.mul_(2)
    with torch.no_grad(), pytest.raises(graphopt.GraphoptError, match="changed between a call and the first use"):
        fast(*arguments(2))
    sample.between = None
    with torch.no_grad():
        fast(*arguments(2))


def test_weights_brought_back_before_the_result_is_used() -> None:
    if mapped.unsupported():
        pytest.skip("no eviction here")
    sample = Sample()
    fast = graphopt.compile(sample, inputs=arguments(), target="eager", evict=evict.Eviction(min_bytes=64))
    with torch.no_grad():
        expected = fast(*arguments(2))
        sample.between = lambda unet, x, prompts: evict.bring_back(unet)
        assert torch.equal(fast(*arguments(2)), expected)


def test_autocast_around_the_combination_alone() -> None:
    class Mixed(Sample):
        def __call__(self, noise: torch.Tensor, prompts: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
            x = noise
            self.scheduler.set_timesteps(len(scales))
            for scale, time in zip(scales, self.scheduler.timesteps, strict=True):
                predicted = self.unet(torch.cat([x, x]), time, encoder_hidden_states=prompts).sample
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    without, with_prompt = predicted.chunk(2)
                    x = self.scheduler.step(without + scale * (with_prompt - without), time, x).prev_sample
            return x

    sample = Mixed()
    fast = graphopt.compile(sample, inputs=arguments(), target="eager", strict=True)
    before = counts(sample)
    with torch.no_grad():
        result = fast(*arguments(3))
    assert_right(result, 3, kind=Mixed)
    assert [now - was for now, was in zip(counts(sample), before, strict=True)] == [8, 6]


def test_a_condition_with_other_memory() -> None:
    _, fast = compiled()
    noise, prompts, scales = arguments(3)
    with torch.no_grad():
        fast(noise, prompts, scales)
        prompts.data = arguments(20)[1]
        result = fast(noise, prompts, scales)
        assert torch.equal(result, fast(noise, arguments(20)[1], scales))


def test_states_are_not_kept() -> None:
    given: list[weakref.ref[torch.Tensor]] = []

    class Seen(Sample):
        def __call__(self, noise: torch.Tensor, prompts: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
            cat = torch.cat([noise, noise])
            given.append(weakref.ref(cat))
            without, with_prompt = self.unet(cat, torch.tensor(5), encoder_hidden_states=prompts).sample.chunk(2)
            first = without + 1.0 * (with_prompt - without)
            return super().__call__(first, prompts, scales)

    fast = graphopt.compile(Seen(), inputs=arguments(), target="eager", strict=True)
    with torch.no_grad():
        fast(*arguments(3))
    gc.collect()
    assert len(given) == 2 and not any(ref() is not None for ref in given)
