"""Runs of samplers on a module whose race `tvm` has won: what holds for a chosen target holds for the fastest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("tvm")

import graphopt
from graphopt.ir.accuracy import relative_error
from graphopt.ir.relations import Constant, Paired, Repeated
from tests.racing import let_win
from tests.soundness.test_trajectories import TIMES, guided, last, latents, painted, relations, separate
from tests.soundness.tiny import EXPLOITING, Small, embeddings


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[Small, Any]]:
    """A module and its compiled twin, in which all is relied on and kept that can be."""

    def pair(channels: int = 4) -> tuple[Small, Any]:
        let_win(monkeypatch, "tvm")
        return Small(channels), graphopt.compile(Small(channels), pipeline=EXPLOITING, strict=True)

    return pair


def both(models: tuple[Any, Any], work: Callable[[Any], torch.Tensor]) -> None:
    """The same work with each model, twice over; the compiled one serves all calls."""
    for _ in range(2):
        theirs, ours = map(work, models)
        assert relative_error(theirs, ours) < 1e-5
    report = graphopt.report(models[1]).modules[0]
    assert not report.asides
    assert all(entry.target == "tvm" and entry.runs.startswith("runs compiled by tvm") for entry in report.variants)


SAMPLERS: dict[str, tuple[int, Callable[[Any, int], Iterator[torch.Tensor]], Any]] = {
    "guided": (4, lambda model, seed: guided(model, latents(seed), embeddings(seed, 2)), Repeated("sample", 2)),
    "separate": (
        4,
        lambda model, seed: separate(model, latents(seed), [embeddings(seed), embeddings(9)]),
        Paired(2),
    ),
    "painted": (
        9,
        lambda model, seed: painted(model, latents(seed), embeddings(seed, 2), latents(seed + 1, channels=5)),
        Constant("sample", 1, 4, 9),
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run(name: str, models: Callable[[int], tuple[Any, Any]]) -> None:
    channels, sampler, relation = SAMPLERS[name]
    pair = models(channels)
    for seed in (0, 1):
        both(pair, lambda model, seed=seed: last(sampler(model, seed)))  # type: ignore[misc]
    assert relation in relations(pair[1])


def test_runs_in_turn_with_weights_that_change(models: Callable[[int], tuple[Any, Any]]) -> None:
    pair = models(4)
    sampler = SAMPLERS["guided"][1]

    def work(model: Any) -> torch.Tensor:
        first, second = sampler(model, 0), sampler(model, 3)
        for step in range(len(TIMES)):
            found = next(first), next(second)
            if step == 1:
                model.leave.weight.mul_(1.25)
            if step == 3:
                model.enter.weight.data = model.enter.weight.data * 1.5
        model.tokens.weight.data += 0.25  # in no version, seen where the next run begins
        return torch.stack([*found, last(sampler(model, 5))])

    both(pair, work)


def test_threads(models: Callable[[int], tuple[Any, Any]]) -> None:
    pair = models(4)
    sampler = SAMPLERS["guided"][1]
    expected = [last(sampler(pair[0], seed)) for seed in range(3)]
    found: dict[int, list[torch.Tensor]] = {}
    together = threading.Barrier(3)

    def work(seed: int) -> None:
        together.wait()
        with torch.no_grad():
            found[seed] = [last(sampler(pair[1], seed)) for _ in range(2)]

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed, theirs in enumerate(expected):
        assert all(relative_error(theirs, ours) < 1e-5 for ours in found[seed])


def test_restored(models: Callable[[int], tuple[Any, Any]]) -> None:
    original, model = models(4)
    last(SAMPLERS["guided"][1](model, 0))
    graphopt.restore(model)
    assert torch.equal(last(SAMPLERS["guided"][1](model, 0)), last(SAMPLERS["guided"][1](original, 0)))
