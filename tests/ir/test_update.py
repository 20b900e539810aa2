"""Updates: coefficients against the schedulers' own formulas in float64, and results against the recorded ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sympy
import torch

from graphopt.capture.loop import record
from graphopt.ir.loop import LoopProgram
from graphopt.ir.update import Update, fold
from tests.ir.loops import GUIDANCE, trajectory

SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "PNDMScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "LCMScheduler": {},
    "UniPCMultistepScheduler": {},
}


def middle(loop: LoopProgram) -> int:
    """The step that `LoopProgram.update` describes."""
    regular = [step.start for step in loop.steps[:-1] if step.start not in loop.irregular]
    return regular[len(regular) // 2]


def ddim(s: Any, k: int) -> tuple[list[float], float, list[float]]:
    """Coefficients of the state (and of what came before), of the prediction, and of noise."""
    time = int(s.timesteps[k])
    now, then = (float(s.alphas_cumprod[t]) for t in (time, time - 1000 // s.num_inference_steps))
    return [math.sqrt(then / now)], math.sqrt(1 - then) - math.sqrt(then * (1 - now) / now), []


def euler(s: Any, k: int) -> tuple[list[float], float, list[float]]:
    return [1.0], float(s.sigmas[k + 1]) - float(s.sigmas[k]), []


def euler_ancestral(s: Any, k: int) -> tuple[list[float], float, list[float]]:
    now, then = float(s.sigmas[k]), float(s.sigmas[k + 1])
    up = math.sqrt(then**2 * (now**2 - then**2) / now**2)
    return [1.0], math.sqrt(then**2 - up**2) - now, [up]


def heun(s: Any, k: int) -> tuple[list[float], float, list[float]]:
    step = float(s.sigmas[k]) - float(s.sigmas[k - 1])  # the second call of a step: the mean of two slopes
    return [1.0, step / 2], step / 2, []


def dpm_solver(s: Any, k: int) -> tuple[list[float], float, list[float]]:
    alphas = [1 / math.sqrt(float(sigma) ** 2 + 1) for sigma in s.sigmas]
    sigmas = [float(sigma) * alpha for sigma, alpha in zip(s.sigmas, alphas, strict=True)]
    half = [math.log(a / b) if b else math.inf for a, b in zip(alphas, sigmas, strict=True)]
    h, before = half[k + 1] - half[k], half[k] - half[k - 1]
    factor = -alphas[k + 1] * math.expm1(-h)
    ahead = factor * (1 + h / (2 * before))
    state = sigmas[k + 1] / sigmas[k] + ahead / alphas[k]
    return [state, -factor * h / (2 * before)], -ahead * sigmas[k] / alphas[k], []


def lcm(s: Any, k: int) -> tuple[list[float], float, list[float]]:
    now, then = (float(s.alphas_cumprod[int(t)]) for t in s.timesteps[k : k + 2])
    time = float(s.timesteps[k]) * s.config.timestep_scaling
    skip, out = 0.25 / (time**2 + 0.25), time / math.sqrt(time**2 + 0.25)
    state = math.sqrt(then) * (out / math.sqrt(now) + skip)
    return [state], -math.sqrt(then) * out * math.sqrt((1 - now) / now), [math.sqrt(1 - then)]


FORMULAS = {
    "DDIMScheduler": ddim, "EulerDiscreteScheduler": euler, "EulerAncestralDiscreteScheduler": euler_ancestral,
    "HeunDiscreteScheduler": heun, "DPMSolverMultistepScheduler": dpm_solver, "LCMScheduler": lcm,
}  # fmt: skip


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "alone"])
@pytest.mark.parametrize("name", FORMULAS)
def test_coefficients(name: str, guided: bool) -> None:
    loop, scheduler, _ = trajectory(name, guided=guided, **SCHEDULERS[name])
    assert loop.update is not None
    _, update = loop.update
    noise = [value for node, value in update.coefficients().items() if "rand" in node.name]
    moved = [*loop.segments[middle(loop)]]
    outputs = [loop.step_calls[middle(loop)].node, *moved]
    predictions = [v for node, v in update.coefficients().items() if node in outputs and "rand" not in node.name]
    states = [v for node, v in update.coefficients().items() if node not in outputs]
    expected_states, prediction, expected_noise = FORMULAS[name](scheduler, middle(loop))
    branches = [1 - GUIDANCE, GUIDANCE] if guided else [1.0]
    # Without a guidance batch the state of the next call is its scaled input.
    scaled = not guided and name.startswith(("Euler", "Heun"))
    scale = 1 / math.sqrt(float(scheduler.sigmas[middle(loop) + 1]) ** 2 + 1) if scaled else 1.0
    assert sorted(states) == pytest.approx(sorted(scale * value for value in expected_states), rel=1e-4)
    assert predictions == pytest.approx([weight * prediction * scale for weight in branches], rel=1e-4)
    assert noise == pytest.approx([scale * value for value in expected_noise], rel=1e-4)


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "alone"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_applying_an_update_gives_what_was_recorded(name: str, guided: bool) -> None:
    loop, _, tensors = trajectory(name, guided=guided, **SCHEDULERS[name])
    assert loop.update is not None
    target, update = loop.update
    assert update.folded > 1
    torch.testing.assert_close(update.apply({node: tensors[node] for node in update.terms}), tensors[target])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_guidance(name: str) -> None:
    loop, _, _ = trajectory(name, **SCHEDULERS[name])
    assert {k: entry.weights for k, entry in loop.guidance.items()} == dict.fromkeys(
        range(len(loop.step_calls)), (1 - GUIDANCE, GUIDANCE)
    )
    alone, _, _ = trajectory(name, guided=False, **SCHEDULERS[name])
    assert not alone.guidance


def folded(function: Any, *tensors: torch.Tensor) -> tuple[Update, torch.Tensor, dict[Any, torch.Tensor]]:
    """The linear form of a function's last operation over its arguments."""
    with torch.no_grad(), record() as recording:
        result = function(*tensors)
        known = {recording._nodes[tensor]: tensor for tensor in tensors if tensor in recording._nodes}
        node = recording._nodes[result]
        inside = [entry for entry in recording.graph.nodes if entry.op == "call_function"]
    return fold(node, inside), result, known


@pytest.mark.parametrize(
    ("function", "coefficients"),
    [
        (lambda x, y: x + 2 * y, [1, 2]),
        (lambda x, y: torch.sub(x, y, alpha=3), [1, -3]),
        (lambda x, y: (x - y) / 4 + x, [1.25, -0.25]),
        (lambda x, y: -(x.clone().mul_(2)) + y, [-2, 1]),
        (lambda x, y: torch.lerp(x, y, 0.25), [0.75, 0.25]),
        (lambda x, y: x * torch.tensor(3.0) + y.to(torch.float64).to(torch.float32), [3, 1]),
        (lambda x, y: x + y - x, [1]),
        (lambda x, y: (x + y) * 0.5 + (x - y) * 0.5, [1]),
    ],
)
def test_rules(function: Any, coefficients: list[float]) -> None:
    update, result, known = folded(function, torch.randn(2, 3), torch.randn(2, 3))
    found = [value for value in update.coefficients().values() if value]
    assert found == pytest.approx(coefficients)
    torch.testing.assert_close(update.apply(known), result)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x * y,
        lambda x, y: x.sin() + y,
        lambda x, y: x + y[:1],
        lambda x, y: x / y,
        lambda x, y: (x * 3).to(torch.int64).to(torch.float32) + y,
        lambda x, y: x + 1,
        lambda x, y: x.clamp(-1, 1) - y,
        lambda x, y: torch.add(x, y, alpha=2) @ y.t(),
    ],
)
def test_what_is_not_linear_is_a_term_of_its_own(function: Any) -> None:
    update, _, known = folded(function, torch.randn(2, 3), torch.randn(2, 3))
    assert any(node not in known for node in update.terms)


def test_other_numbers_give_the_coefficients_of_another_step() -> None:
    update, _, _ = folded(lambda x, y: x * 0.25 + y * 0.5, torch.ones(2), torch.ones(2))
    assert all(isinstance(symbol, sympy.Symbol) for symbol in update.numbers)
    doubled = {symbol: 2 * value for symbol, value in update.numbers.items()}
    assert sorted(update.coefficients(doubled).values()) == [0.5, 1.0]
