"""Pointers to weights are kept from call to call: whatever becomes of a weight in between, results are the module's."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("tvm")

import graphopt
from graphopt.compile import compiled_calls
from graphopt.ir.program import val
from graphopt.ir.stages import WEIGHTS, split, stages
from graphopt.targets.tvm.running import Code, Frame
from graphopt.targets.tvm.target import Tvm
from graphopt.testing import trace

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


class Doubled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + (self.weight * 2).exp()).relu()


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

    def counted(self: Code, frame: Frame, slots: Any, known: Any) -> list[torch.Tensor]:
        seen.append(len(slots))
        return point(self, frame, slots, known)

    monkeypatch.setattr(Code, "_point", counted)
    (reads,) = code._reads
    assert right(module, prompt)
    assert seen == [len(reads.passing)] * 2 and len(reads.steady) > len(reads.passing)
    seen.clear()
    _add_in_place(module, "offset")
    assert right(module, prompt)
    assert sorted(seen) == sorted([len(reads.passing)] * 2 + [len(reads.steady)])


def _panels(code: Code) -> list[weakref.ref[torch.Tensor]]:
    return [weakref.ref(packed.made) for packed in code._packings.made.values()]


def test_panels_of_old_weights_do_not_outlive_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in frames that wait, nor in one that is in use when the weights become others."""
    module, prompt = compiled()
    assert right(module, prompt)
    code, point = step(module), Code._point

    def others(self: Code, frame: Frame, slots: Any, known: Any) -> list[torch.Tensor]:
        if self is code:
            self.weights_are(b"others", None)
        return point(self, frame, slots, known)

    for meanwhile in (False, True):
        assert right(module, prompt)
        before = _panels(code)
        with monkeypatch.context() as patch, torch.no_grad():
            if meanwhile:
                patch.setattr(Code, "_point", others)
                module(torch.randn(2, SIZE), prompt)
            else:
                code.weights_are(b"others", None)
        gc.collect()
        assert before and not any(panel() is not None for panel in before)


def test_what_interrupts_a_call_leaves_no_pointers_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    module, prompt = compiled()
    assert right(module, prompt)
    whole = step(module)._reads[0].steady
    point = Code._point

    def interrupted(self: Code, frame: Frame, slots: Any, known: Any) -> list[torch.Tensor]:
        if slots is whole:
            point(self, frame, slots, known)
            raise KeyboardInterrupt
        return point(self, frame, slots, known)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), torch.no_grad():
        patch.setattr(Code, "_point", interrupted)
        module(torch.randn(2, SIZE), torch.randn(2, SIZE))
    assert right(module, prompt), "pointers are those for the other prompt"


def test_a_call_does_not_vouch_for_what_another_thread_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread has its weights, and has not pointed at them yet, when another one replaces one of them and calls."""
    module, prompt = compiled()
    assert right(module, prompt)
    point, waiting, go = Code._point, threading.Event(), threading.Event()

    def slow(self: Code, frame: Frame, slots: Any, known: Any) -> list[torch.Tensor]:
        if threading.current_thread() is early:
            waiting.set()
            assert go.wait(60)
        return point(self, frame, slots, known)

    def work() -> None:
        with torch.no_grad():
            module(torch.randn(2, SIZE), prompt)

    early = threading.Thread(target=work)
    monkeypatch.setattr(Code, "_point", slow)
    _add_in_place(module, "norm.weight")
    early.start()
    assert waiting.wait(60)
    _replace(module, "offset")
    _replace(module, "project.weight")
    assert right(module, prompt)
    go.set()
    early.join()
    gc.collect()
    assert right(module, prompt)


def test_a_computed_weight_that_is_moved_is_pointed_at_anew() -> None:
    """As eviction moves what was computed of weights: the same tensor, elsewhere."""
    x = torch.randn(4, SIZE)
    program = trace(Doubled(), x).program
    for node, stage in stages(program).items():
        if node.op == "call_function" and stage == WEIGHTS:
            node.meta["placement"] = WEIGHTS
    first, last = split(program)
    code = Code(None, last.graph, [val(node) for node in last.graph.find_nodes(op="placeholder")], torch.nn.Module())
    (computed,) = (node for node in code.inputs if node.name in first.gives)
    value, places = torch.randn(SIZE), object()
    for moved in (False, True, False):
        if moved:
            before = value.data
            value.data = before.clone()
            before.fill_(torch.nan)
        code.weights_are(b"1", places)
        (got,) = code(*(value if node is computed else x for node in code.inputs))
        assert torch.equal(got, (x + value).relu())


def test_threads_change_weights_in_turn() -> None:
    """A change by one thread is seen by the other."""
    module, prompt = compiled()
    turn = threading.Barrier(2)

    def work(number: int) -> list[int]:
        """The rounds with a wrong result."""
        wrong = []
        for round_ in range(6):
            if round_ % 2 == number:
                WAYS[round_](module, PARTS[round_ % len(PARTS)])
            turn.wait(60)
            if not right(module, prompt):
                wrong.append(round_)
            turn.wait(60)
        return wrong

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [[], []]
