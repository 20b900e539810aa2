"""Digests of what a capture depends on: the same for the same module in another process, another for another one."""

from __future__ import annotations

import cProfile
import functools
import gc
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graphopt.capture.fingerprint import Executed, fingerprint
from tests.structure.checks import ROOT

FACTOR = 2.0


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * FACTOR


def tripled(x: torch.Tensor) -> torch.Tensor:
    return x * 3


class Processor:
    """As of attention: a plain object with a number."""

    scale = 0.5

    def __init__(self, power: int) -> None:
        self.power = power

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return helper(x) ** self.power * self.scale


helper = doubled


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.again = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.register_buffer("shift", torch.zeros(4))
        self.processor, self.names, self.table = Processor(2), ["a", "b"], {"one": 1, "two": (2, 2.5)}
        self.small, self.function = torch.arange(3), _shifted(1)
        self.partial = functools.partial(torch.add, alpha=2)
        self.large: Any = torch.zeros(2000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.partial(self.function(self.processor(self.linear(x))), self.again(x))


def _shifted(by: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def shifted(x: torch.Tensor) -> torch.Tensor:
        return x + by

    return shifted


def told(model: torch.nn.Module, *about: Any) -> str | None:
    with torch.no_grad(), Executed() as executed:
        model(torch.ones(2, 4))
    return fingerprint(model, executed, *about)


def _set(name: str, value: Any) -> Callable[[Model], None]:
    owner, _, leaf = name.rpartition(".")
    return lambda model: setattr(model.get_submodule(owner) if owner else model, leaf, value)


def _tie(model: Model) -> None:
    model.again.weight = model.linear.weight


CHANGES: dict[str, Callable[[Model], Any]] = {
    "training": lambda model: model.linear.eval(),
    "a number": _set("linear.in_features", 5),
    "an object's number": lambda model: setattr(model.processor, "power", 3),
    "another class of object": _set("processor", _shifted(0)),
    "a new attribute": _set("extra", None),
    "a list's entry": lambda model: model.names.append("c"),
    "the order of a list": lambda model: model.names.reverse(),
    "a dict's entry": lambda model: model.table.update(one=1.0),
    "a small tensor's numbers": lambda model: model.small.add_(1),
    "a large tensor's shape": _set("large", torch.zeros(2001)),
    "a closure's variable": _set("function", _shifted(2)),
    "a partial function": _set("partial", functools.partial(torch.add, alpha=3)),
    "a weight's shape": _set("again", torch.nn.Linear(4, 4, bias=False)),
    "a weight's dtype": lambda model: setattr(model, "shift", model.shift.double()),
    "a weight's strides": lambda model: setattr(model.linear, "weight", torch.nn.Parameter(torch.zeros(4, 4).T)),
    "weights that are one": _tie,
    "another submodule": _set("again", torch.nn.Sequential(torch.nn.Linear(4, 4))),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_state_has_another_digest(change: Callable[[Model], Any]) -> None:
    model, other = Model(), Model()
    known = told(model)
    assert known is not None and known == told(other)
    change(other)
    assert told(other) not in (None, known)


def test_values_of_weights_do_not_count() -> None:
    model = Model()
    known = told(model)
    with torch.no_grad():
        model.linear.weight.add_(1)
        model.large.add_(1)
    assert told(model) == known


def test_functions_and_global_numbers_count_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, here, found = Model(), sys.modules[__name__], set[Any]()
    found.add(told(model))
    for name, value in (("FACTOR", 2.5), ("helper", tripled)):
        with monkeypatch.context() as patch:
            patch.setattr(here, name, value)
            found.add(told(model))
    with monkeypatch.context() as patch:
        patch.setattr(Processor, "scale", 0.25)
        found.add(told(model))
    with monkeypatch.context() as patch:
        patch.setattr(Processor, "__call__", lambda self, x: x)
        found.add(told(model))
    assert len(found) == 5 and None not in found
    assert told(model) in found


class Options:
    """Read by name where it is used."""

    factor = 1.0


TABLE, NESTED, SPACE = {"factor": 1.0}, [(1, {2})], types.SimpleNamespace(factor=1.0)


def _with_default(x: torch.Tensor, by: float = 1.0) -> torch.Tensor:
    return x * by


def surrounded(x: torch.Tensor) -> torch.Tensor:
    """Reads what lies around it in every way."""
    x = x * Options.factor * TABLE["factor"] * NESTED[0][0] * SPACE.factor
    return _with_default(x) * _shifted(1)(x)


AROUND: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a class's attribute": lambda patch: patch.setattr(Options, "factor", 1.5),
    "a dict's entry": lambda patch: patch.setitem(TABLE, "factor", 1.5),
    "a nested entry": lambda patch: patch.setattr(sys.modules[__name__], "NESTED", [(1, {3})]),
    "an object's attribute": lambda patch: patch.setattr(SPACE, "factor", 1.5),
    "a default": lambda patch: patch.setattr(_with_default, "__defaults__", (1.5,)),
}


@pytest.mark.parametrize("change", AROUND.values(), ids=AROUND)
def test_what_lies_around_functions_counts(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    model.function = surrounded
    known = told(model)
    assert known is not None and told(model) == known
    change(monkeypatch)
    assert told(model) not in (None, known)


def test_defaults_of_methods_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    known = told(model)
    monkeypatch.setattr(Processor.__call__, "__kwdefaults__", {"unread": 1})
    assert told(model) not in (None, known)


def test_functions_without_a_file_count_by_their_code() -> None:
    found = set[Any]()
    for number in (1, 2):
        space: dict[str, Any] = {"__name__": "typed"}
        exec(f"def typed(x): return x + {number}", space)  # as at a prompt
        model = Model()
        model.function = space["typed"]
        found.add(told(model))
    assert len(found) == 2 and None not in found


def test_what_else_is_given_counts() -> None:
    model, digests = Model(), set[Any]()
    for about in ((), (1,), (1.0,), ("1",), (torch.float32,), ((1, 2),), ((2, 1),), (frozenset("ab"),)):
        digests.add(told(model, *about))
    assert len(digests) == 8 and None not in digests
    assert told(model, frozenset("ba")) in digests


class Slotted:
    __slots__ = ("number",)


@pytest.mark.parametrize(
    "value",
    [Slotted(), torch.Generator(), iter([1]), torch.zeros(3).to_sparse()],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_told_has_no_digest(value: Any) -> None:
    model = Model()
    model.extra = value
    assert told(model) is None


def test_hooks_have_no_digest() -> None:
    model = Model()
    model.linear.register_forward_hook(lambda *args: None)
    assert told(model) is None


def test_beside_another_profiler_there_is_no_digest() -> None:
    profile = cProfile.Profile()
    profile.enable()
    try:
        assert told(Model()) is None
    finally:
        profile.disable()
    before = sys.getprofile()
    with Executed() as executed:
        sys.setprofile(other := lambda *args: None)
    try:
        assert fingerprint(Model(), executed) is None
        assert sys.getprofile() is other  # it is not ours to end
    finally:
        sys.setprofile(before)


TELL = """
import torch
from tests.capture.test_fingerprint import told
import diffusers
model = diffusers.UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
).eval()
model.forward_of = None
class Call(torch.nn.Module):
    def __init__(self): super().__init__(); self.model = model
    def forward(self, x): return self.model(torch.ones(1, 4, 8, 8), 3, torch.ones(1, 2, 8))
print(told(Call(), frozenset({"a", "b", "c"})))
"""


def test_the_same_in_other_processes(tmp_path: Path) -> None:
    digests = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", TELL], env=environment, text=True, capture_output=True, check=True)
        digests.add(done.stdout.split()[-1])
    assert len(digests) == 1 and "None" not in digests


def test_what_a_collection_finalises_during_a_call_does_not_count() -> None:
    finalised = []

    class Cycle:
        def __init__(self) -> None:
            self.own = self

        def __del__(self) -> None:
            finalised.append(1)

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                cycle: list[object] = [[] for _ in range(2000)]  # enough for a collection to be due
                cycle.append(cycle)
            return x + 1

    before = gc.get_threshold()
    gc.set_threshold(100)
    try:
        with Executed() as executed:
            Cycle()
            Net()(torch.ones(2))
            assert finalised == []
        assert gc.isenabled()
        assert "__del__" not in [code.co_name for code, *_ in executed.functions()]
    finally:
        gc.set_threshold(*before)
