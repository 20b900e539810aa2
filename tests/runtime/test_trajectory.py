"""Trajectories: which calls continue a run, and when weights are digested anew."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from graphopt.runtime.trajectory import Trajectories, Trajectory, run

PROMPT = torch.ones(1, 2)


def indices(times: Sequence[float], conditions: Sequence[torch.Tensor] = (PROMPT,)) -> list[int]:
    trajectory, found = Trajectory(), []
    for time in times:
        trajectory.enter(list(conditions), [torch.tensor(time)])
        found.append(trajectory.index)
    return found


@pytest.mark.parametrize(
    ("times", "alone", "inside"),
    [
        ([9, 7, 5], [0, 1, 2], [0, 1, 2]),
        ([1, 2, 3], [0, 1, 2], [0, 1, 2]),
        ([9, 7, 7, 5], [0, 1, 0, 1], [0, 1, 2, 3]),
        ([9, 7, 8, 7], [0, 1, 0, 1], [0, 1, 0, 1]),
        ([9, 9, 9], [0, 0, 0], [0, 1, 2]),
        ([9, float("nan"), 3], [0, 0, 0], [0, 0, 0]),
    ],
)
def test_times(times: list[float], alone: list[int], inside: list[int]) -> None:
    assert indices(times) == alone
    with run():
        assert indices(times) == inside


def test_a_run_of_its_own() -> None:
    trajectory, time = Trajectory(), torch.tensor(5.0)
    for expected in (0, 1):
        with run():
            assert trajectory.enter([PROMPT], [time]) is False
            assert trajectory.enter([PROMPT], [time]) is True
            with run():
                assert trajectory.enter([PROMPT], [time]) is False
            assert trajectory.started == 3 * expected + 2
        assert trajectory.enter([PROMPT], [torch.tensor(4.0)]) is False


def test_a_run_does_not_go_on_where_another_ended() -> None:
    trajectory = Trajectory()
    with run():
        assert [trajectory.enter([PROMPT], [torch.tensor(time)]) for time in (9.0, 7.0)] == [False, True]
    with run():
        assert [trajectory.enter([PROMPT], [torch.tensor(time)]) for time in (5.0, 3.0)] == [False, True]
    assert [trajectory.enter([PROMPT], [torch.tensor(time)]) for time in (2.0, 1.0)] == [False, True]


def test_other_conditions_begin_anew() -> None:
    trajectory = Trajectory()
    for k, prompt in enumerate((PROMPT, PROMPT, PROMPT.clone(), PROMPT)):
        assert trajectory.enter([prompt], [torch.tensor(9.0 - k)]) is (k == 1)
    assert trajectory.enter([PROMPT, PROMPT], [torch.tensor(1.0)]) is False


def test_without_conditions_the_schedule_tells() -> None:
    schedule, trajectory = torch.tensor([9.0, 7.0, 5.0]), Trajectory()
    assert [trajectory.enter([], [time]) for time in schedule] == [False, True, True]
    assert [trajectory.enter([], [torch.tensor(time)]) for time in (3.0, 2.0)] == [False, False]
    assert Trajectory().enter([], []) is False


def test_many_times_are_not_read() -> None:
    trajectory, times = Trajectory(), torch.arange(65.0)
    assert trajectory.enter([PROMPT], [times]) is False
    assert trajectory.enter([PROMPT], [times]) is False
    assert trajectory.enter([PROMPT], [times - 1]) is True


def test_branches_go_on_where_they_were() -> None:
    trajectories, weights = Trajectories(), [torch.ones(3)]
    prompts = [torch.ones(1), torch.zeros(1)]
    for k, time in enumerate((9.0, 7.0, 5.0)):
        for prompt in prompts:
            trajectories.step(weights, [prompt], [torch.tensor(time)])
            assert trajectories.current.index == k
    assert trajectories.started == 2
    for number in range(12):
        trajectories.step(weights, [torch.full((1,), float(number))], [torch.tensor(1.0)])
    assert trajectories.started == 14


def test_weights_are_digested_where_a_trajectory_begins() -> None:
    trajectories, weights = Trajectories(), [torch.arange(100.0)]
    first = trajectories.step(weights, [PROMPT], [torch.tensor(9.0)])
    weights[0].data[50] += 1  # behind the first bytes
    assert trajectories.step(weights, [PROMPT], [torch.tensor(9.0)]) != first
    second = trajectories.step(weights, [PROMPT], [torch.tensor(7.0)])
    weights[0].data[0] += 1
    assert trajectories.step(weights, [PROMPT], [torch.tensor(5.0)]) != second
    third = trajectories.step(weights, [PROMPT], [torch.tensor(4.0)])
    weights[0][60] += 1
    assert trajectories.step(weights, [PROMPT], [torch.tensor(3.0)]) != third


def test_runs_of_other_threads_are_their_own() -> None:
    found: list[bool] = []
    trajectory = Trajectory()

    def other() -> None:
        trajectory.enter([PROMPT], [torch.tensor(9.0)])
        found.append(trajectory.enter([PROMPT], [torch.tensor(9.0)]))

    with run():
        worker = threading.Thread(target=other)
        worker.start()
        worker.join()
        assert found == [False]
