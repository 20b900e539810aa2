"""When the weights are digested again: at the start of a run, and after every write that torch knows of."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable

import pytest
import torch

from graphopt.ir.program import Input
from graphopt.runtime.trajectory import Trajectories
from graphopt.runtime.weights import Epoch, Weights


def _linear() -> tuple[torch.nn.Linear, Weights]:
    module = torch.nn.Linear(3, 4).requires_grad_(False)
    inputs = [Input("w", "weight", "weight"), Input("b", "weight", "bias")]
    return module, Weights(module, inputs, {})


def test_tables_are_read_once_in_a_generation() -> None:
    module, weights = _linear()
    first, second = object(), object()
    before = weights.read(first)
    module.weight = torch.nn.Parameter(torch.zeros(4, 3))
    assert weights.read(first) is before
    assert weights.read()[0] is weights.read(second)[0] is module.weight
    assert weights.read(first)[0] is module.weight  # another generation came in between


def test_weights_that_were_let_go_are_not_kept_alive() -> None:
    module, weights = _linear()
    weights.read(generation := object())
    gone = weakref.ref(module.weight)
    module.weight = torch.nn.Parameter(torch.zeros(4, 3))
    assert gone() is not None
    weights.let_go()
    assert gone() is None
    assert weights.read(generation)[0] is module.weight


def _times(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value) for value in values]


def _run(trajectory: Trajectories, weights: Weights, condition: torch.Tensor, *times: float) -> list[bytes]:
    return [trajectory.step(weights.read(), [condition], [time]) for time in _times(*times)]


def test_one_run_is_one_trajectory() -> None:
    _, weights = _linear()
    trajectory, condition = Trajectories(), torch.ones(2)
    assert len(set(_run(trajectory, weights, condition, 9, 6, 3))) == 1
    assert trajectory.started == 1


def test_a_step_back_or_a_repeated_time_starts_another() -> None:
    _, weights = _linear()
    for times, started in (((9, 6, 7), 2), ((9, 9), 2), ((1, 2, 3), 1), ((1, 2, 2, 3), 2), ((3, 6, 5, 4), 2)):
        trajectory = Trajectories()
        _run(trajectory, weights, torch.ones(2), *times)
        assert trajectory.started == started, times


def test_another_condition_object_starts_another() -> None:
    _, weights = _linear()
    trajectory = Trajectories()
    _run(trajectory, weights, torch.ones(2), 9, 6)
    _run(trajectory, weights, torch.ones(2), 3)
    assert trajectory.started == 2


def test_schedules_without_conditions() -> None:
    _, weights = _linear()
    trajectory, schedule = Trajectories(), torch.tensor([9, 6, 3])
    for time in schedule:
        trajectory.step(weights.read(), [], [time])
    assert trajectory.started == 1
    for time in _times(2, 1):  # tensors of their own say nothing about where they come from
        trajectory.step(weights.read(), [], [time])
    assert trajectory.started == 3


def test_hidden_writes_are_seen_by_the_next_run() -> None:
    module, weights = _linear()
    trajectory, condition = Trajectories(), torch.ones(2)
    epochs = []
    for edit in (
        lambda: None,
        lambda: module.weight.data.add_(1),
        lambda: module.bias.detach().numpy().fill(3),
        lambda: module.to(torch.bfloat16).to(torch.float32),
    ):
        edit()
        epochs += _run(trajectory, weights, condition, 9, 6)
    assert epochs[0::2] == epochs[1::2]
    assert len(set(epochs)) >= 3


def test_known_writes_are_seen_in_the_middle_of_a_run() -> None:
    module, weights = _linear()
    trajectory, condition = Trajectories(), torch.ones(2)
    epochs = _run(trajectory, weights, condition, 9)
    module.weight.mul_(2)
    epochs += _run(trajectory, weights, condition, 8)
    module.weight = torch.nn.Parameter(module.weight * 2, requires_grad=False)
    epochs += _run(trajectory, weights, condition, 7)
    module.load_state_dict({key: value * 2 for key, value in module.state_dict().items()}, assign=True)
    epochs += _run(trajectory, weights, condition, 6)
    for _ in range(3):  # other memory, which may come to lie where the old one lay
        module.weight.data = module.weight.data.clone() + 1
        epochs += _run(trajectory, weights, condition, 5 - len(epochs) / 10)
    assert len(set(epochs)) == len(epochs)
    assert trajectory.started == 1


def test_weights_made_in_inference_mode_have_no_versions() -> None:
    with torch.inference_mode():
        module, weights = _linear()
        trajectory, condition = Trajectories(), torch.ones(2)
        epochs = _run(trajectory, weights, condition, 9)
        module.weight.mul_(2)
        epochs += _run(trajectory, weights, condition, 8)
    assert len(set(epochs)) == 2


def test_other_kinds_of_weights_do_not_fit() -> None:
    module, weights = _linear()
    assert weights.fit()
    for change in (
        lambda: module.to(torch.float64),
        lambda: setattr(module.weight, "data", module.weight.data.t().contiguous().t()),
        lambda: setattr(module, "bias", None),
    ):
        module.to(torch.float32)
        module.weight.data = module.weight.data.contiguous()
        assert weights.fit()
        change()
        assert not weights.fit()


def test_an_interrupted_digest_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*tensors: object) -> bytes:
        raise KeyboardInterrupt

    module, weights = _linear()
    trajectory, condition = Trajectories(), torch.ones(2)
    epochs = _run(trajectory, weights, condition, 9, 8)
    writes: list[Callable[[], object]] = [lambda: module.weight.data.add_(1), lambda: module.weight.mul_(2)]
    for write, time in zip(writes, (9, 8), strict=True):
        write()
        with monkeypatch.context() as patched:
            patched.setattr(Weights, "contents", staticmethod(interrupted))
            with pytest.raises(KeyboardInterrupt):
                _run(trajectory, weights, condition, time)
        epochs += _run(trajectory, weights, condition, time - 0.5)
    assert epochs[0] == epochs[1]
    assert len(set(epochs)) == 3


def test_a_weight_rewritten_behind_torch_between_two_steps() -> None:
    weight, condition, schedule = torch.randn(5, 7), torch.ones(1), torch.tensor([9.0, 8.0, 7.0, 6.0])
    run = Trajectories()
    first = run.step([weight], [condition], [schedule[0]])
    assert run.step([weight], [condition], [schedule[1]]) == first
    weight.data.add_(1)
    changed = run.step([weight], [condition], [schedule[2]])
    assert changed != first
    weight.numpy()[:] = 0
    assert run.step([weight], [condition], [schedule[3]]) not in (first, changed)


def test_weights_fit_as_long_as_their_kind_is_the_same() -> None:
    module, weights = _linear()
    square = torch.nn.Linear(4, 4)
    tied = Weights(square, [Input("w", "weight", "weight"), Input("v", "weight", "weight")], {})
    assert weights.fit() and tied.fit()
    module.requires_grad_(True)
    module.weight.data = torch.ones(4, 3)  # other memory and values
    assert weights.fit() and weights.fit()
    with torch.inference_mode():
        assert weights.fit()
    module.weight = torch.nn.Parameter(torch.ones(4, 3))
    assert weights.fit()
    kept = module.weight.data
    for other in (kept.double(), kept.view(torch.int32), kept[:, :2], kept.t().contiguous().t(), kept[:0]):
        module.weight.requires_grad_(False).data = other
        assert not weights.fit() and not weights.fit(), other
        module.weight.data = kept
        assert weights.fit()
    square.weight.data = square.weight.data.t()  # the same memory, read in another order
    assert not tied.fit()
    module._parameters["weight"] = None
    assert not weights.fit()
    del module._parameters["weight"]
    assert not weights.fit()


def test_memory_that_is_gone_is_not_read() -> None:
    weight = torch.ones(3, 2**24).mT  # unmapped as soon as it is freed
    epoch = Epoch()
    before = epoch.of([weight], fresh=True)
    assert epoch._untouched([weight])
    weight.untyped_storage().resize_(0)
    assert not epoch._untouched([weight])
    weight.untyped_storage().resize_(3 * 2**26)
    weight.fill_(2.0)
    assert epoch.of([weight], fresh=False) != before
    weight.share_memory_()
    assert not epoch._untouched([weight])


MOVES = """
import sys, threading, time, torch
from graphopt.runtime.weights import Epoch
weight, epoch = torch.ones(2, 2**23).mT, Epoch()
epoch.of([weight], fresh=True)
sys.setswitchinterval(1e-6)
ends, size = time.monotonic() + 1.5, weight.untyped_storage().nbytes()
def move():
    while time.monotonic() < ends:
        weight.untyped_storage().resize_(0)
        weight.untyped_storage().resize_(size)
thread = threading.Thread(target=move)
thread.start()
while thread.is_alive():
    epoch._untouched([weight])
"""


def test_memory_that_another_thread_frees_is_not_read() -> None:
    subprocess.run([sys.executable, "-c", MOVES], check=True)
