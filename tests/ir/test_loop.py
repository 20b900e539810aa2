"""What a LoopProgram says of recorded trajectories: period, groups of calls, relations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from graphopt.capture.loop import record
from graphopt.ir.loop import LoopProgram, repetitions
from graphopt.ir.relations import Constant, Paired, Repeated, Unchanged
from tests.ir.loops import Denoiser, trajectory


@pytest.mark.parametrize(
    ("name", "calls", "period", "per_timestep", "options"),
    [
        ("DDIMScheduler", 6, 1, 1, {"clip_sample": False}),
        ("EulerDiscreteScheduler", 6, 1, 1, {}),
        ("EulerAncestralDiscreteScheduler", 6, 1, 1, {}),
        ("HeunDiscreteScheduler", 11, 2, 2, {}),
        ("KDPM2DiscreteScheduler", 11, 1, 1, {}),  # its second call of a step is at a timestep of its own
        ("PNDMScheduler", 15, 4, 2, {}),
        ("PNDMScheduler", 13, 1, 2, {"skip_prk_steps": True, "steps": 12}),
        ("DPMSolverMultistepScheduler", 6, 1, 1, {}),
        ("LCMScheduler", 6, 1, 1, {}),
        ("UniPCMultistepScheduler", 6, 1, 1, {}),
    ],
)
def test_schedulers(name: str, calls: int, period: int, per_timestep: int, options: dict[str, Any]) -> None:
    loop, _, _ = trajectory(name, **options)
    assert (len(loop.step_calls), loop.period, loop.calls_per_timestep) == (calls, period, per_timestep)
    assert [finding.what for finding in loop.findings] == [Repeated("sample", 2), Unchanged("prompt")]
    assert not any(finding.against for finding in loop.findings)
    assert [list(step) for step in loop.steps] == [[k] for k in range(calls)]


PROMPTS = torch.ones(2, 5)


def recorded(sample: Callable[[Any, Any], Any], channels: int = 4) -> LoopProgram:
    model = Denoiser(channels)
    with torch.no_grad(), record() as recording:
        sample(model, torch.randn(1, 4, 8, 8))
    return recording.program()


def whats(loop: LoopProgram) -> list[Any]:
    return [finding.what for finding in loop.findings if not finding.against]


def test_separate_branches() -> None:
    def sample(model: Any, x: Any) -> None:
        for time in torch.arange(6.0):
            found = [model(x, time, prompt[None]) for prompt in PROMPTS]
            x = x - 0.1 * sum(found)

    loop = recorded(sample)
    assert Paired(2) in whats(loop)
    assert [len(step) for step in loop.steps] == [2] * 6
    assert loop.period == 2
    assert loop.calls_per_timestep == 1


def test_separate_branches_that_scale_the_state_each() -> None:
    def sample(model: Any, x: Any) -> None:
        for time in torch.arange(6.0):
            x = x - 0.1 * sum(model(x * 0.5, time, prompt[None]) for prompt in PROMPTS)

    loop = recorded(sample)
    assert Paired(2) in whats(loop)
    assert loop.calls_per_timestep == 1


def test_parts_that_stay_are_computed_again_and_change() -> None:
    mask, image = torch.ones(1, 1, 8, 8), torch.randn(1, 4, 8, 8)

    def sample(model: Any, x: Any) -> None:
        still = torch.cat([image] * 2)
        for time in torch.arange(5.0):
            joined = torch.cat([torch.cat([x] * 2), still, torch.cat([mask * 2] * 2), torch.cat([mask * time] * 2)], 1)
            x = x - 0.1 * model(joined, time, PROMPTS)[1:]

    loop = recorded(sample, channels=10)
    assert Repeated("sample", 2) in whats(loop)
    assert {Constant("sample", 1, 4, 8), Constant("sample", 1, 8, 9)} <= {*whats(loop)}
    refused = {finding.what: finding.against for finding in loop.findings if finding.against}
    assert refused == {Constant("sample", 1, 9, 10): "it is another value in other calls"}


def test_a_condition_computed_again_is_one_value() -> None:
    def sample(model: Any, x: Any) -> None:
        for time in torch.arange(5.0):
            x = x - 0.1 * model(x, time, PROMPTS.half().float()[:1])

    loop = recorded(sample)
    prompts = {call.arguments["prompt"] for call in loop.step_calls}
    times = {call.arguments["timestep"] for call in loop.step_calls}
    assert len(prompts) == len({*map(loop.values.get, times)}) == 5
    assert len({loop.values[node] for node in prompts}) == 1


def test_random_numbers_and_writes_are_new_values() -> None:
    def sample(model: Any, x: Any) -> None:
        prompt = PROMPTS[:1].clone()
        for time in torch.arange(4.0):
            model(torch.randn(1, 4, 8, 8), time, prompt)
            prompt.mul_(2)

    loop = recorded(sample)
    for path in ("sample", "prompt"):
        assert len({loop.values[call.arguments[path]] for call in loop.step_calls}) == 4
    assert all(call.arguments["sample"] in loop.moving for call in loop.step_calls)


def test_no_loop_at_all() -> None:
    loop = recorded(lambda model, x: model(x, torch.tensor(1.0), PROMPTS[:1]))
    assert (len(loop.calls), loop.step_calls, loop.period) == (1, (), 0)
    assert (loop.update, loop.guidance, loop.findings) == (None, {}, ())
    assert LoopProgram(torch.fx.Graph(), ()).update is None


@pytest.mark.parametrize(
    ("make", "times"),
    [
        (lambda x: torch.cat([x] * 3), 3),
        (lambda x: torch.cat([x, x + 1]), 1),
        (lambda x: torch.cat([x] * 2).mul(0.5).to(torch.float64), 2),
        (lambda x: torch.cat([torch.cat([x] * 2), torch.cat([x + 1] * 2)], dim=1), 2),
        (lambda x: torch.cat([torch.cat([x] * 2), x.repeat(2, 1)], dim=-1), 2),
        (lambda x: torch.cat([torch.cat([x] * 2), torch.cat([x, x + 1])], dim=1), 1),
        (lambda x: x.expand(4, -1), 4),
        (lambda x: x.repeat(2, 2), 2),
        (lambda x: torch.cat([x] * 2) + torch.cat([x, x + 1]), 1),
        (lambda x: torch.cat([x] * 2) * torch.tensor([[1.0], [2.0]]), 1),
        (lambda x: torch.cat([x] * 2).t(), 1),
    ],
)
def test_repetitions(make: Any, times: int) -> None:
    with record() as recording:
        result = make(torch.ones(1, 3))
        node = recording._nodes[result]
    assert repetitions(node) == times
