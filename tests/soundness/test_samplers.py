"""Compiled sampling functions: results, state of inputs and errors are those of the function itself, bit for bit."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import graphopt
from graphopt.ir.relations import Paired, Repeated
from graphopt.runtime.sampler import Sampler
from tests.soundness import tiny
from tests.soundness.tiny import WIDTH, Small, embeddings


class Unknown(torch.nn.Module):
    """A denoiser whose argument names say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(self, x: Any, sigma: Any, ctx: Any) -> Any:
        return self.inner(x, sigma, ctx)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def sampler_of(model: Any, steps: int = 5) -> Callable[..., torch.Tensor]:
    def sample(x: torch.Tensor, ctx: torch.Tensor, scale: float = 3.0) -> torch.Tensor:
        for sigma in torch.linspace(9.0, 1.0, steps):
            plain, conditional = model(torch.cat([x] * 2), sigma, ctx).chunk(2)
            x = x - 0.1 * (plain + scale * (conditional - plain))
        return x

    return sample


class Sampling:
    """As a bound method and as a callable object."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def sample(self, x: torch.Tensor, ctx: torch.Tensor) -> torch.Tensor:
        return sampler_of(self.model)(x, ctx)

    __call__ = sample


def requests(sample: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [sample(noise(seed), embeddings(prompt, 2)) for seed, prompt in ((0, 1), (3, 1), (0, 5), (0, 1))]


def same(theirs: list[torch.Tensor], ours: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


KINDS: dict[str, Callable[[Any], Any]] = {
    "closure": sampler_of,
    "method": lambda model: Sampling(model).sample,
    "object": Sampling,
    "partial": lambda model: functools.partial(sampler_of(model), scale=2.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_functions(kind: str) -> None:
    expected = requests(KINDS[kind](Unknown().eval()))
    model = Unknown().eval()
    sample = KINDS[kind](model)
    compiled = tiny.compiled(sample, inputs=(noise(9), embeddings(9, 2)))
    assert isinstance(compiled, Sampler)
    assert same(expected, requests(compiled))
    assert same(expected, requests(sample))  # outside of a compiled run the module is compiled all the same
    (installed,) = compiled.installed
    roles = {entry.path: entry.role for entry in installed.variants[0].arguments}
    assert roles == {"x": "state", "sigma": "time", "ctx": "condition"}
    assert any(Repeated("x", 2) in variant.relations for variant in installed.variants)
    assert "loop of" in str(graphopt.report(compiled))
    graphopt.restore(compiled)
    assert "_compiled_call_impl" not in model.__dict__
    assert same(expected, requests(compiled))


def test_separate_branches_of_a_function() -> None:
    def make(model: Any) -> Any:
        def sample(x: torch.Tensor, ctx: torch.Tensor) -> torch.Tensor:
            for sigma in torch.linspace(9.0, 1.0, 5):
                plain, conditional = (model(x, sigma, part) for part in ctx.split(1))
                x = x - 0.1 * (plain + 3 * (conditional - plain))
            return x

        return sample

    compiled = tiny.compiled(make(Unknown().eval()), inputs=(noise(9), embeddings(9, 2)))
    assert same(requests(make(Unknown().eval())), requests(compiled))
    assert any(Paired(2) in variant.relations for variant in compiled.installed[0].variants)


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = torch.nn.Linear(WIDTH, WIDTH)
        self.eval().requires_grad_(False)

    def forward(self, ctx: Any) -> Any:
        return self.layer(ctx).tanh()


def test_two_modules_and_one_that_is_called_once() -> None:
    def make() -> Any:
        encoder, first, second = Encoder(), Unknown().eval(), Unknown().eval()
        second.inner.enter.weight.data *= 0.5

        def sample(x: torch.Tensor, ctx: torch.Tensor) -> torch.Tensor:
            ctx = encoder(ctx)
            for step, sigma in enumerate(torch.linspace(9.0, 1.0, 6)):
                model = first if step < 3 else second
                x = x - 0.1 * model(torch.cat([x] * 2), sigma, ctx).mean(0, keepdim=True)
            return x

        return sample

    compiled = tiny.compiled(make(), inputs=(noise(9), embeddings(9, 2)))
    assert same(requests(make()), requests(compiled))
    assert [entry.name for entry in compiled.installed] == ["Encoder", "Unknown", "Unknown_1"]


def test_a_module_called_from_another_thread() -> None:
    model, other = Unknown().eval(), Unknown().eval()

    def make(model: Any, other: Any) -> Any:
        def sample(x: torch.Tensor, ctx: torch.Tensor) -> torch.Tensor:
            found: list[torch.Tensor] = []

            def aside() -> None:
                with torch.no_grad():
                    found.append(other(x, torch.tensor(3.0), ctx[:1]))

            worker = threading.Thread(target=aside)
            worker.start()
            result = sampler_of(model)(x, ctx)
            worker.join()
            return result + found[0]

        return sample

    compiled = tiny.compiled(make(model, other), inputs=(noise(9), embeddings(9, 2)))
    assert same(requests(make(Unknown().eval(), Unknown().eval())), requests(compiled))
    assert [entry.module for entry in compiled.installed] == [model]


def test_inputs_that_the_sampler_writes_to() -> None:
    def make(model: Any) -> Any:
        def sample(x: torch.Tensor, ctx: torch.Tensor) -> torch.Tensor:
            for sigma in torch.linspace(9.0, 1.0, 5):
                x.sub_(0.1 * model(torch.cat([x] * 2), sigma, ctx)[1:])
                ctx.mul_(0.9)
            return x

        return sample

    compiled = tiny.compiled(make(Unknown().eval()), inputs=(noise(9), embeddings(9, 2)))
    results = [requests(make(Unknown().eval())), requests(compiled)]
    assert same(*results)
    inputs = [(noise(), embeddings(1, 2)) for _ in range(2)]
    for sample, given in zip((make(Unknown().eval()), compiled), inputs, strict=True):
        with torch.no_grad():
            sample(*given)
    assert same(*(list(given) for given in inputs))


def test_random_numbers_go_on_as_if_nothing_had_run() -> None:
    def make(model: Any) -> Any:
        def sample(x: torch.Tensor, ctx: torch.Tensor, generator: Any = None) -> torch.Tensor:
            for sigma in torch.linspace(9.0, 1.0, 5):
                x = x - 0.1 * model(torch.cat([x] * 2), sigma, ctx)[1:] + torch.randn(x.shape, generator=generator)
            return x

        return sample

    original, model = make(Unknown().eval()), Unknown().eval()
    torch.manual_seed(3)
    expected = requests(original)
    generator = torch.Generator().manual_seed(4)
    before = generator.get_state()
    torch.manual_seed(3)
    compiled = tiny.compiled(make(model), inputs={"x": noise(9), "ctx": embeddings(9, 2), "generator": generator})
    assert torch.equal(generator.get_state(), before)
    assert same(expected, requests(compiled))


def test_a_sampler_that_raises() -> None:
    model = Unknown().eval()

    def broken(x: torch.Tensor, ctx: torch.Tensor, at: int) -> torch.Tensor:
        for step, sigma in enumerate(torch.linspace(9.0, 1.0, 5)):
            if step == at:
                raise KeyError("broken off")
            x = x - 0.1 * model(torch.cat([x] * 2), sigma, ctx)[1:]
        return x

    original = torch.nn.Module.__call__
    with pytest.raises(KeyError, match="broken off"):
        graphopt.compile(broken, inputs=(noise(), embeddings(1, 2), 2))
    assert torch.nn.Module.__call__ is original
    assert "_compiled_call_impl" not in model.__dict__
    compiled = tiny.compiled(broken, inputs=(noise(), embeddings(1, 2), 9))
    with torch.no_grad():
        expected = compiled(noise(), embeddings(1, 2), 9)
        with pytest.raises(KeyError, match="broken off"):
            compiled(noise(3), embeddings(4, 2), 3)
        assert torch.equal(compiled(noise(), embeddings(1, 2), 9), expected)


def test_compiled_twice() -> None:
    expected = requests(sampler_of(Unknown().eval()))
    model = Unknown().eval()
    first = tiny.compiled(sampler_of(model), inputs=(noise(9), embeddings(9, 2)))
    second = tiny.compiled(first, inputs=(noise(9), embeddings(9, 2)))
    third = tiny.compiled(sampler_of(model), inputs=(noise(9), embeddings(9, 2)))
    assert second.function is first.function
    for sample in (first, second, third):
        assert same(expected, requests(sample))
    graphopt.restore(third)
    assert "_compiled_call_impl" not in model.__dict__
    assert same(expected, requests(second))


def test_gradients_go_through_a_compiled_sampler() -> None:
    grads: list[Any] = []
    wraps: list[Callable[[Any], Any]] = [lambda f: f, lambda f: tiny.compiled(f, inputs=(noise(9), embeddings(9, 2)))]
    for wrap in wraps:
        x = noise().requires_grad_()
        wrap(sampler_of(Unknown().eval()))(x, embeddings(1, 2)).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("make", "inputs", "message"),
    [
        (lambda: sampler_of(Small()), None, "needs example arguments"),
        (lambda: lambda x: x + 1, (torch.ones(1),), "called no module"),
        (lambda: lambda x: torch.nn.ReLU()(x), (torch.ones(1),), "called no module"),
        (lambda: 3, (torch.ones(1),), "cannot compile a int"),
        (lambda: sampler_of(Small()), 5, "must be a tuple or a dict"),
    ],
)
def test_errors(make: Any, inputs: Any, message: str) -> None:
    with pytest.raises(graphopt.GraphoptError, match=message):
        graphopt.compile(make(), inputs=inputs)
