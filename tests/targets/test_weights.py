"""Pointers to weights are kept from call to call: whatever becomes of a weight in between, results are the module's."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("tvm")

import graphopt
from graphopt.compile import compiled_calls
from graphopt.targets.tvm.running import Code
from graphopt.targets.tvm.target import Tvm

SIZE = 48


class Network(torch.nn.Module):
    """Weights that are packed, that are read as they are, and one that is first put together with another."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.other = torch.nn.Linear(SIZE, SIZE), torch.nn.Linear(SIZE, SIZE)
        self.norm, self.prompt = torch.nn.LayerNorm(SIZE), torch.nn.Linear(SIZE, SIZE)
        self.offset = torch.nn.Parameter(torch.randn(SIZE))

    def forward(self, sample: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.project(sample)) * self.offset + self.prompt(prompt)
        joined = torch.cat([self.project.weight, self.other.weight]) * 0.5
        first, second = F.linear(hidden, joined).chunk(2, dim=-1)
        return first * second.sigmoid()


PARTS = ("project.weight", "project.bias", "other.weight", "norm.weight", "prompt.weight", "offset")


def compiled() -> tuple[Network, torch.Tensor]:
    module, prompt = Network().eval(), torch.randn(2, SIZE)
    graphopt.compile(
        module, target=Tvm(), inputs=(torch.randn(2, SIZE), prompt), strict=True,
        roles={"sample": "state", "prompt": "condition"},
    )  # fmt: skip
    return module, prompt


def right(module: Network, prompt: torch.Tensor) -> bool:
    """Whether two calls give what the module does; each with another sample."""
    with torch.no_grad():
        for _ in range(2):
            sample = torch.randn(2, SIZE)
            got, expected = module(sample, prompt), module.forward(sample, prompt)
            if not torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
                return False
    return True


def step(module: Network) -> Code:
    (call,) = compiled_calls(module)
    code = call.variants[0].built.kernels[-1]
    assert isinstance(code, Code)
    return code


def _add(module: Network, name: str) -> None:
    module.get_parameter(name).data.add_(1.0)


def _add_in_place(module: Network, name: str) -> None:
    with torch.no_grad():
        module.get_parameter(name).mul_(-1.5)


def _replace(module: Network, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    fresh = torch.nn.Parameter(torch.randn_like(module.get_parameter(name)))
    setattr(module.get_submodule(owner), leaf, fresh)


def _other_memory(module: Network, name: str) -> None:
    weight = module.get_parameter(name)
    weight.data = torch.randn_like(weight)


def _move(module: Network, name: str) -> None:
    """The same numbers elsewhere, and others where they were."""
    weight = module.get_parameter(name)
    before = weight.data
    weight.data = before.clone()
    before.fill_(torch.nan)


def _turn(module: Network, name: str) -> None:
    weight = module.get_parameter(name)
    weight.data = weight.data.t() if weight.ndim == 2 else weight.data.flip(0)


def _negate(module: Network, name: str) -> None:
    weight = module.get_parameter(name)
    weight.data = torch._neg_view(weight.data)


def _write_as_numpy(module: Network, name: str) -> None:
    module.get_parameter(name).detach().numpy()[...] += 2.0


def _same_memory(module: Network, name: str) -> None:
    """Another tensor with the very same memory, written to through the old one's name."""
    owner, _, leaf = name.rpartition(".")
    old = module.get_parameter(name)
    setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(old.data))
    with torch.no_grad():
        old.add_(1.0)


WAYS = [_add, _add_in_place, _replace, _other_memory, _move, _turn, _negate, _write_as_numpy, _same_memory]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("way", WAYS)
def test_a_changed_weight_is_seen_by_the_next_call(way: Callable[[Network, str], None], name: str) -> None:
    module, prompt = compiled()
    assert right(module, prompt)
    for _ in range(2):
        way(module, name)
        gc.collect(0)
        assert right(module, prompt), way.__name__


def test_weights_that_stay_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module, prompt = compiled()
    assert right(module, prompt)
    code, seen = step(module), list[int]()
    point = Code._point

    def counted(self: Code, frame: object, slots: dict[object, object], known: object) -> list[torch.Tensor]:
        seen.append(len(slots))
        return point(self, frame, slots, known)  # type: ignore[arg-type]

    monkeypatch.setattr(Code, "_point", counted)
    (reads,) = code._reads
    assert right(module, prompt)
    assert seen == [len(reads.passing)] * 2 and len(reads.steady) > len(reads.passing)
    seen.clear()
    _add_in_place(module, "offset")
    assert right(module, prompt)
    assert sorted(seen) == sorted([len(reads.passing)] * 2 + [len(reads.steady)])


def test_panels_of_old_weights_do_not_outlive_them() -> None:
    module, prompt = compiled()
    assert right(module, prompt)
    code = step(module)
    before = [tensor for frame in code._frames for pointed in frame.pointed.values() for tensor in pointed.held]
    assert before
    code.weights_are(b"others", None)
    assert not any(frame.pointed for frame in code._frames)


def test_threads_change_weights_in_turn() -> None:
    """Each thread has frames and digests of its own; a change by one is seen by the other."""
    module, prompt = compiled()
    wrong, turn = list[str](), threading.Barrier(2)

    def work(number: int) -> None:
        for round_ in range(6):
            if round_ % 2 == number:
                WAYS[round_](module, PARTS[round_ % len(PARTS)])
            turn.wait(60)
            if not right(module, prompt):
                wrong.append(f"thread {number}, round {round_}")
            turn.wait(60)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
