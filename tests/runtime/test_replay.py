"""Replays of samplers: what the function gives, for other arguments, seeds, weights, tables and numbers of steps.

The truth is the same function in float64, with noise drawn in float32 (`Double`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffusers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import graphopt
from graphopt import pipelines
from graphopt.errors import CaptureError, UsageError, VerificationError
from graphopt.ir.verify import compare
from graphopt.runtime.replay import Replay, Replays
from tests.soundness import tiny

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "dpm_solver": lambda: diffusers.DPMSolverMultistepScheduler(solver_order=2),
    "unipc": diffusers.UniPCMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
}
RANDOM = {"euler_ancestral", "lcm"}


class Double(TorchDispatchMode):
    """Noise of float64 tensors is that of float32 ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("dtype") == torch.float64:
            return func(*args, **{**kwargs, "dtype": torch.float32}).double()
        return func(*args, **kwargs)


def sampler(unet: Any, scheduler: Any, *, random: bool = False, guidance: float = 5.0) -> Any:
    """A sampling function as users write it."""

    @torch.no_grad()
    def sample(
        latents: torch.Tensor, prompt: torch.Tensor, steps: int = 4, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        latents = latents * scheduler.init_noise_sigma
        embeddings = torch.cat([torch.zeros_like(prompt), prompt])
        more = {"generator": generator} if random else {}
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            without, with_ = unet(both, t, encoder_hidden_states=embeddings).sample.chunk(2)
            noise = without + guidance * (with_ - without)
            latents = scheduler.step(noise, t, latents, **more).prev_sample
        return latents

    return sample


def arguments(seed: int, kind: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, 8, 8, generator=generator).to(kind), tiny.embeddings(seed).to(kind)


def only(replays: Replays) -> Replay:
    (found,) = replays.known.values()
    assert isinstance(found, Replay)
    return found


class Net(torch.nn.Module):
    """A denoiser of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.9))

    def forward(self, x: torch.Tensor, t: Any = 0.0) -> torch.Tensor:
        return torch.tanh(x * self.weight + t)


def replays(function: Any) -> Replays:
    return Replays(function, pipelines.loop, strict=True)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name: str) -> None:
    unet, random = tiny.unet(), name in RANDOM
    fast = replays(sampler(unet, SCHEDULERS[name](), random=random))
    function = sampler(unet, SCHEDULERS[name](), random=random)
    truth = sampler(copy.deepcopy(unet).double(), SCHEDULERS[name](), random=random)
    for seed in range(4):
        given = [arguments(seed), arguments(seed), arguments(seed, torch.float64)]
        draws = [torch.Generator().manual_seed(seed + 10) for _ in given]
        result = fast(*given[0], generator=draws[0])
        expected = function(*given[1], generator=draws[1])
        with Double():  # type: ignore[no-untyped-call]
            exact = truth(*given[2], generator=draws[2])
        assert compare([expected], [result], "rounding", [exact]) is None
        assert torch.equal(draws[0].get_state(), draws[1].get_state())
    assert only(fast).runs == 3 and not fast.asides  # the first call was recorded
    before, after = only(fast).operations
    assert after * 3 < before


def test_half_precision_states() -> None:
    unet = tiny.unet().to(torch.bfloat16)
    function = sampler(unet, SCHEDULERS["euler"]())
    fast = replays(sampler(unet, SCHEDULERS["euler"]()))
    truth = sampler(copy.deepcopy(unet).double(), SCHEDULERS["euler"]())
    for seed in range(3):
        given = arguments(seed, torch.bfloat16)
        exact = truth(*(tensor.double() for tensor in given))
        assert compare([function(*given)], [fast(*given)], "rounding", [exact]) is None
    assert only(fast).runs == 2


def test_weights_change_between_calls() -> None:
    net = Net().eval()
    fast, function = replays(sampler_of(net)), sampler_of(net)
    x = torch.randn(2, 3)
    for value in (0.9, 0.1, -0.7):
        net.weight.data.fill_(value)
        assert torch.equal(fast(x), function(x))
    net.weight = torch.nn.Parameter(torch.tensor(0.3))
    assert torch.equal(fast(x), function(x)) and only(fast).runs == 3


def sampler_of(net: torch.nn.Module) -> Any:
    @torch.no_grad()
    def sample(x: torch.Tensor) -> torch.Tensor:
        for t in torch.linspace(1, 0, 3):
            x = net(x, t)
        return x

    return sample


@pytest.mark.parametrize("write", [lambda table: table.mul_(0.9), lambda table: table.data.mul_(0.9),
                                   lambda table: table.numpy().__imul__(0.9)])  # fmt: skip
def test_scheduler_tables_change_in_place(write: Any) -> None:
    unet, scheduler = tiny.unet(), SCHEDULERS["ddim"]()
    fast = replays(sampler(unet, scheduler))
    for seed in range(3):
        fast(*arguments(seed))
    first = only(fast)
    write(scheduler.alphas_cumprod)
    again = arguments(7)
    expected = sampler(unet, scheduler)(*again)
    assert torch.equal(fast(*again), expected)  # recorded anew: the function's own
    assert only(fast) is not first
    for _ in range(2):
        assert compare([expected], [fast(*again)], "rounding", [expected.double()]) is None
    assert only(fast).runs == 2


def test_other_structure_shapes_and_numbers_are_recorded_anew() -> None:
    unet, scheduler = tiny.unet(), SCHEDULERS["ddim"]()
    fast, function = replays(sampler(unet, scheduler)), sampler(unet, SCHEDULERS["ddim"]())
    for steps in (2, 3, 2, 3, 2):
        given = arguments(steps)
        expected = function(*given, steps)
        assert compare([expected], [fast(*given, steps=steps)], "rounding", [expected.double()]) is None
    assert [entry.runs for entry in fast.known.values() if isinstance(entry, Replay)] == [1, 2]
    wide = torch.randn(1, 4, 8, 16), tiny.embeddings(1)
    assert torch.equal(fast(*wide, 2), function(*wide, 2)) and len(fast.known) == 3


def test_few_recordings_are_kept() -> None:
    fast = replays(sampler_of(Net().eval()))
    for size in range(1, 12):
        fast(torch.randn(size))
    assert len(fast.known) == 8 and not fast.asides


def test_default_generator_goes_on_as_after_the_function() -> None:
    net = Net().eval()

    @torch.no_grad()
    def sample(x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = net(x) + 0.1 * torch.randn_like(x) + torch.empty_like(x).normal_() * 0.2
        return x + torch.rand(3)

    fast, x = replays(sample), torch.randn(3)
    for seed in range(3):
        torch.manual_seed(seed)
        expected, state = sample(x), torch.get_rng_state()
        torch.manual_seed(seed)
        assert compare([expected], [fast(x)], "rounding", [expected.double()]) is None
        assert torch.equal(torch.get_rng_state(), state)
    assert only(fast).runs == 2


def test_one_generator_twice_is_not_two() -> None:
    net = Net().eval()

    @torch.no_grad()
    def sample(x: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        for generator in generators:
            x = net(x) + torch.randn(3, generator=generator)
        return x

    fast, x = replays(sample), torch.randn(3)
    for _ in range(3):
        for same in (True, False):
            draws = [[torch.Generator().manual_seed(4), torch.Generator().manual_seed(5)] for _ in range(2)]
            one, two = ([pair[0], pair[0]] if same else pair for pair in draws)
            assert torch.allclose(fast(x, one), sample(x, two), rtol=0, atol=0)
    assert len(fast.known) == 2


def test_writing_in_place_into_what_the_function_made() -> None:
    net = Net().eval()

    @torch.no_grad()
    def sample(x: torch.Tensor) -> dict[str, Any]:
        x = x.clone()
        total = torch.zeros_like(x)
        for t in torch.linspace(1, 0, 3):
            x.mul_(0.5).add_(net(x, t))
            total += x
        return {"x": x, "total": total, "steps": 3, "none": None}

    fast = replays(sample)
    for _ in range(3):
        given = torch.randn(4)
        kept, expected = given.clone(), sample(given)
        result = fast(given)
        assert (result["steps"], result["none"]) == (3, None) and torch.equal(given, kept)
        for key in ("x", "total"):
            assert compare([expected[key]], [result[key]], "rounding", [expected[key].double()]) is None
    assert only(fast).runs == 2


def test_a_constant_result_is_not_shared_between_calls() -> None:
    net = Net().eval()

    @torch.no_grad()
    def sample(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return net(x), torch.ones(3) * 2

    fast, x = replays(sample), torch.randn(3)
    for _ in range(4):
        assert torch.equal(fast(x)[1].add_(1), torch.full((3,), 3.0))


def written(tensor: torch.Tensor, write: Any) -> torch.Tensor:
    write(tensor)
    return tensor


TABLE = torch.arange(3.0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda net, x, g: net(x.mul_(2)), "an operation writes into a tensor that was there before"),
        (lambda net, x, g: net(x + TABLE.add_(0)), "an operation writes into a tensor that was there before"),
        (lambda net, x, g: net(x) if x.sum() > 0 else x + 1, "Python reads a value that depends on arguments"),
        (lambda net, x, g: net(x) * float(net(x).max()), "Python reads a value that depends on arguments"),
        (lambda net, x, g: net(x) * torch.rand(1).item(), "Python reads a value that depends on arguments"),
        (lambda net, x, g: net(x) + torch.tensor([x[0], 1.0, 2.0]), "Python reads a value that depends on arguments"),
        (lambda net, x, g: net(x) + torch.from_numpy(x.numpy() * 2), "Python reads a value that depends on"),
        (lambda net, x, g: net(x) + sum(x.tolist()), "Python reads a value that depends on arguments"),
        (lambda net, x, g: net(x) + copy.deepcopy(x), "a tensor is read after a view of it|deals with memory"),
        (lambda net, x, g: net(x) + torch.empty(0).set_(TABLE.untyped_storage(), 0, (3,), (1,)), "deals with memory"),
        (lambda net, x, g: net(x) if torch.equal(x, x + 1) else net(x + 1), "Python reads a value"),
        (lambda net, x, g: net(x[x > -9]), "the size of what aten.index.Tensor gives depends on values"),
        (lambda net, x, g: net(torch.nonzero(x)), "the size of what aten.nonzero.default gives depends on values"),
        (lambda net, x, g: net.train()(x), "Net is in training mode"),
        (lambda net, x, g: x, "a result shares memory with an argument"),
        (lambda net, x, g: net(x) * 0 + x.view(3, 1)[:, 0], None),
        (lambda net, x, g: (net(x), x.view(3, 1)), "a result shares memory with an argument"),
        (lambda net, x, g: (net(x), TABLE[:1]), "a result shares memory with a tensor of before"),
        (lambda net, x, g: (net(x), object()), "it returns a object"),
        (lambda net, x, g: net(x).numpy(), "Python reads a value|it returns a ndarray"),
        (lambda net, x, g: net(x) + torch.randn(3, generator=torch.Generator().manual_seed(1)),
         "a generator that is no argument is drawn from"),
        (lambda net, x, g: net(x) + torch.randn(3, generator=g.manual_seed(1)), "a random generator is seeded"),
        (lambda net, x, g: (torch.manual_seed(1), net(x) + torch.randn(3))[1], "a random generator is seeded"),
        (lambda net, x, g: torch.add(net(x), x, out=torch.empty(3)), "writes into a tensor in a way that has no other"),
        (lambda net, x, g: torch.autocast("cpu")(net)(x), "Net is called under autocast"),
        (lambda net, x, g: torch.enable_grad()(net)(x), "gradients flow through Net"),
        (lambda net, x, g: torch.ops.graphopt_test.custom(net(x)), "the effects of graphopt_test.custom.default"),
        (lambda net, x, g: net(x) + x.new_tensor([x[0], 1.0, 2.0]), "Python reads a value that depends on arguments"),
        (lambda net, x, g: written(x * 1, lambda y: y[1:].add_(1)) + net(x), "a tensor is read after a view of it"),
        (lambda net, x, g: written(x * 1, lambda y: torch._foreach_add_([y], 1.0)) + net(x),
         "aten._foreach_add_.Scalar writes into a tensor in a way that has no other form"),
    ],
)  # fmt: skip
def test_refusals(body: Any, reason: str | None) -> None:
    net, x = Net().eval(), torch.randn(3)

    @torch.no_grad()
    def sample(x: torch.Tensor, generator: torch.Generator) -> Any:
        return body(net, x, generator)

    strict = replays(sample)
    if reason is None:
        strict(x, torch.Generator())
        return
    with pytest.raises(CaptureError, match=reason) as caught:
        strict(x.clone(), torch.Generator())
    assert caught.value.where
    lenient = Replays(sample, pipelines.loop)
    with pytest.warns(RuntimeWarning, match="sample is not replayed"):
        lenient(x.clone(), torch.Generator())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lenient(x.clone(), torch.Generator())  # said once
    assert sum(lenient.asides.values()) == 1


@torch.library.custom_op("graphopt_test::custom", mutates_args=())
def custom(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_calls_that_are_left_to_the_function() -> None:
    net = Net().eval()
    fast, x = replays(sampler_of(net)), torch.randn(3)
    for _ in range(2):
        fast(x)
    with torch.autocast("cpu"):
        fast(x)
    net.train()
    fast(x)
    net.eval()
    fast(x)
    assert dict(fast.asides) == {"autocast is active": 1, "a module is in training mode": 1}
    with pytest.raises(TypeError, match="sample"):
        fast(x, object())


def test_arguments_whose_state_cannot_be_seen() -> None:
    net = Net().eval()

    @torch.no_grad()
    def sample(module: torch.nn.Module, x: torch.Tensor, table: Any = None) -> torch.Tensor:
        return module(x) * (1 if table is None else table.scale)  # type: ignore[no-any-return]

    fast, x = replays(sample), torch.randn(3)
    for _ in range(3):
        assert torch.equal(fast(net, x), net(x))
    table = type("Table", (), {"scale": 2})()
    assert torch.equal(fast(net, x, table), net(x) * 2) and only(fast).runs == 2
    assert list(fast.asides) == ["an argument is or holds a Table, whose state graphopt cannot see"]
    other = Net().eval()
    other.weight.data.fill_(5)
    assert torch.equal(fast(other, x), other(x)) and len(fast.known) == 2


def test_gradients_of_the_result_are_the_functions() -> None:
    net = Net().eval()

    def sample(x: torch.Tensor) -> torch.Tensor:
        return net(x) * 2  # type: ignore[no-any-return]

    fast, x = Replays(sample, pipelines.loop), torch.randn(3)
    with pytest.warns(RuntimeWarning, match="gradients flow through Net"):
        assert fast(x).requires_grad
    assert fast(x).requires_grad
    for _ in range(3):
        with torch.no_grad():
            assert not fast(x).requires_grad
    assert sum(entry.runs for entry in fast.known.values() if isinstance(entry, Replay)) == 2


def test_a_wrong_claim_is_found_by_the_first_call() -> None:
    net, scale = Net().eval(), [1.0]

    @torch.no_grad()
    def sample(x: torch.Tensor) -> torch.Tensor:
        return net(x) * scale[0]  # type: ignore[no-any-return]

    x = torch.randn(3)
    lenient, strict = Replays(sample, pipelines.loop), replays(sample)
    lenient(x), strict(x)
    scale[0] = 2.0
    with pytest.raises(VerificationError, match="the replay of sample is wrong"):
        strict(x)
    with pytest.warns(RuntimeWarning, match="is off by"):
        assert torch.equal(lenient(x), net(x) * 2)
    assert torch.equal(lenient(x), net(x) * 2)


def test_exceptions_are_those_of_the_function() -> None:
    net = Net().eval()
    fast, x = replays(sampler_of(net)), torch.randn(3)
    expected = fast(x)
    fast(x)

    def refuse(*_: Any) -> None:
        raise KeyError("hook")

    hook = net.register_forward_pre_hook(refuse)
    with pytest.raises(KeyError, match="hook"):
        fast(x)
    hook.remove()
    assert torch.equal(fast(x), expected)


def test_threads() -> None:
    net = Net().eval()
    fast, function = replays(sampler_of(net)), sampler_of(net)
    for _ in range(2):
        fast(torch.randn(16))
    wrong: list[int] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            x = torch.randn(16, generator=generator)
            if not torch.equal(fast(x), function(x)):
                wrong.append(seed)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))  # raises what a thread raised
    assert not wrong and only(fast).runs >= 70


def test_compile() -> None:
    unet, scheduler = tiny.unet(), SCHEDULERS["ddim"]()
    function = sampler(unet, scheduler)
    given = arguments(0)
    fast = graphopt.compile(sampler(unet, scheduler), inputs=given, target="eager", strict=True, pure=True)
    expected = [function(*arguments(seed)) for seed in range(3)]
    for seed in range(3):
        result = fast(*arguments(seed))
        assert compare([expected[seed]], [result], "rounding", [expected[seed].double()]) is None
    report = graphopt.report(fast)
    assert report.replays[0].runs == 3 and report.replays[0].calls == 4
    assert "operations around the modules per step, update of" in str(report)
    assert report.to_dict()["replays"][0]["operations"] == list(report.replays[0].operations)
    graphopt.restore(fast)
    assert fast.replays is None
    assert torch.equal(fast(*arguments(1)), sampler(unet, scheduler)(*arguments(1)))


def test_only_sampling_functions_are_pure() -> None:
    with pytest.raises(UsageError, match="no sampling function"):
        graphopt.compile(Net(), pure=True)


def test_what_cannot_be_replayed_is_compiled_all_the_same() -> None:
    unet = tiny.unet()
    plain = sampler(unet, SCHEDULERS["ddim"]())

    def sample(latents: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = plain(latents, prompt)
        return result if float(result.max()) > -1e9 else latents

    with pytest.warns(RuntimeWarning, match="sample is not replayed: Python reads a value"):
        fast = graphopt.compile(sample, inputs=arguments(0), target="eager", pure=True)
    fast(*arguments(1))
    assert "left to the function, 1 time: Python reads a value" in str(graphopt.report(fast))
