"""The guard notices every kind of change of a module's Python state, and nothing else."""

from __future__ import annotations

import copy
import functools
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import graphopt
from graphopt.capture import tags
from graphopt.capture.guards import ModuleGuard, interference, twin


class Processor:
    def __init__(self) -> None:
        self.scale = 1.0
        self.options = {"heads": [2, 3]}


class OtherProcessor(Processor):
    pass


class Copies:
    """Gives another dict whenever it is asked for its own."""

    __dict__ = property(lambda self: {"scale": 1.0})


def _scaled(by: float) -> tuple[Callable[[], float], Callable[[float], None]]:
    def get() -> float:
        return by

    def rebind(value: float) -> None:
        nonlocal by
        by = value

    return get, rebind


def _function(by: float = 1.0, *, times: int = 1) -> float:
    return by * times


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3, bias=False)
        self.tied = torch.nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.register_buffer("table", torch.ones(3))
        self.processor, self.scaling, self.flag, self.factor = Processor(), {"a": 0.5}, True, 1.0
        self.constant = torch.ones(1)
        self.extra = [Processor()]
        self.order, self.chosen = OrderedDict(a=1, b=2), {"a"}
        self.partial = functools.partial(max, 0, key=None)
        self.scaled, self.rebind = _scaled(1.0)
        self.copies = Copies()
        self.function: Any = types.FunctionType(_function.__code__, {}, "function", (1.0,))
        self.function.__kwdefaults__ = {"times": 1}
        self.function.__module__ = __name__

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.tied(self.second(self.first(x))) * self.processor.scale
        return result


def _set(path: str, value: Any) -> Callable[[Net], object]:
    def change(net: Net) -> None:
        owner, _, name = path.rpartition(".")
        target: Any = net
        for part in filter(None, owner.split(".")):
            target = target[int(part)] if part.isdigit() else getattr(target, part)
        setattr(target, name, value)

    return change


def _parameter(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(*shape))


def _both(net: Net, parameter: torch.nn.Parameter) -> None:
    net.first.weight = net.tied.weight = parameter


CHANGES: dict[str, Callable[[Net], object]] = {
    "training": lambda net: net.train(),
    "training of a submodule": lambda net: net.second.train(),
    "scalar": _set("factor", 2.0),
    "sign of zero": lambda net: _set("factor", -0.0)(net),
    "bool to int": _set("flag", 1),
    "int to float": _set("first.in_features", 3.0),
    "attribute added": _set("new", None),
    "attribute removed": lambda net: delattr(net, "flag"),
    "attribute renamed": lambda net: net.__dict__.update(flagged=net.__dict__.pop("flag")),
    "dict entry": lambda net: net.scaling.update(a=0.25),
    "dict key": lambda net: net.scaling.update(b=0.5),
    "dict key renamed": lambda net: net.scaling.update(b=net.scaling.pop("a")),
    "object in attribute": _set("processor", Processor()),
    "scale of a processor": _set("processor.scale", 0.5),
    "list in a dict in an object": lambda net: net.processor.options["heads"].append(4),
    "object in a list": _set("extra.0.scale", 3.0),
    "list element": lambda net: net.extra.append(Processor()),
    "list element exchanged": lambda net: net.extra.__setitem__(0, Processor()),
    "set element": lambda net: net.chosen.add("b"),
    "order": lambda net: net.order.move_to_end("a"),
    "value in order": lambda net: net.order.update(a=3),
    "keyword of a partial": lambda net: net.partial.keywords.update(key=abs),
    "variable of a closure": lambda net: net.rebind(2.0),
    "defaults of a function": lambda net: setattr(net.function, "__defaults__", (2.0,)),
    "defaults by keyword of a function": lambda net: setattr(net.function, "__kwdefaults__", {"times": 2}),
    "a default by keyword of a function": lambda net: net.function.__kwdefaults__.update(times=2),
    "code of a function": lambda net: setattr(net.function, "__code__", (lambda by, *, times: 0.0).__code__),
    "written into the dict": lambda net: net.__dict__.update(factor=2.0),
    "dict exchanged": lambda net: setattr(net, "__dict__", {**net.__dict__, "factor": 2.0}),
    "dict of a submodule exchanged": lambda net: setattr(net.first, "__dict__", {**net.first.__dict__, "out": 2}),
    "dict of a processor exchanged": lambda net: setattr(net.processor, "__dict__", {"scale": 3.0, "options": {}}),
    "class of a processor": lambda net: setattr(net.processor, "__class__", OtherProcessor),
    "table exchanged": lambda net: net.second.__dict__.update(_parameters={"weight": None}),
    "table emptied": lambda net: net.second._parameters.clear(),
    "hook written into its table": lambda net: net.second._forward_hooks.update({-1: lambda *_: None}),
    "tensor attribute replaced": _set("constant", torch.ones(1)),
    "submodule replaced": _set("second", torch.nn.Linear(3, 3, bias=False).eval()),
    "submodule added": lambda net: net.add_module("third", torch.nn.Identity()),
    "submodule removed": lambda net: delattr(net, "second"),
    "class of a submodule": lambda net: setattr(net.second, "__class__", torch.nn.Bilinear),
    "hook": lambda net: net.register_forward_hook(lambda *_: None),
    "hook before": lambda net: net.second.register_forward_pre_hook(lambda *_: None),
    "forward replaced": _set("second.forward", lambda x: x),
    "bias given": _set("second.bias", _parameter(3)),
    "bias taken": _set("first.bias", None),
    "parameter added": lambda net: net.register_parameter("more", _parameter(1)),
    "buffer added": lambda net: net.register_buffer("more", torch.ones(1)),
    "buffer to parameter": lambda net: net.register_parameter(
        "table", _parameter(*net.__dict__["_buffers"].pop("table").shape)
    ),
    "tie undone": _set("tied.weight", _parameter(3, 3)),
    "tie made": lambda net: setattr(net.second, "weight", net.first.weight),
    "parametrisation": lambda net: torch.nn.utils.parametrize.register_parametrization(
        net.second, "weight", torch.nn.Identity()
    ),
}

NO_CHANGES: dict[str, Callable[[Net], object]] = {
    "nothing": lambda net: None,
    "a call": lambda net: net(torch.ones(2, 3)),
    "weights in place": lambda net: net.first.weight.data.add_(1),
    "parameter replaced": lambda net: setattr(net.second, "weight", _parameter(3, 3)),
    "both tied replaced": lambda net: _both(net, _parameter(3, 3)),
    "equal string": lambda net: setattr(net, "flag", bool(1)),
    "training there and back": lambda net: net.train().eval(),
    "equal float": lambda net: setattr(net, "factor", float("1.0")),
    "hook that is gone": lambda net: net.register_forward_hook(lambda *_: None).remove(),
    "state dict": lambda net: net.load_state_dict(net.state_dict()),
    "an equal number, elsewhere": lambda net: net.scaling.update(a=float("0.5")),
    "there and back": lambda net: (net.scaling.update(a=1.0), net.scaling.update(a=0.5)),
    "out and in again": lambda net: net._buffers.update(table=net._buffers.pop("table")),
    "equal defaults": lambda net: setattr(net.function, "__defaults__", (float("1.0"),)),
    "compiled call": lambda net: setattr(net.second, "_compiled_call_impl", net.second._call_impl),
}


@pytest.fixture(params=["by tags", "by value"])
def tagged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Where dicts have tags, and where Python keeps none."""
    if request.param == "by value":
        monkeypatch.setattr(tags, "kept", lambda: False)
    return bool(request.param != "by value")


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name: str, tagged: bool) -> None:
    net: Any = Net().eval()
    net.factor = 0.0 if name == "sign of zero" else 1.0
    guard = ModuleGuard(net)
    assert guard.holds()
    assert guard.holds()
    CHANGES[name](net)
    assert not guard.holds()
    assert not guard.holds()


@pytest.mark.parametrize("name", NO_CHANGES)
def test_nothing_that_matters_changed(name: str, tagged: bool) -> None:
    net: Any = Net().eval()
    guard = ModuleGuard(net)
    assert guard.holds()
    NO_CHANGES[name](net)
    assert guard.holds()
    assert guard.holds()
    net.processor.options["heads"].append(5)
    assert not guard.holds()


def test_a_generation_ends_with_any_write(tagged: bool) -> None:
    net: Any = Net().eval()
    guard = ModuleGuard(net)
    assert guard.holds()
    before = guard.generation
    assert guard.holds()
    assert (guard.generation is before) == tagged
    net.second.weight = _parameter(3, 3)
    assert guard.holds()
    assert guard.generation is not before


def test_a_class_attribute(tagged: bool) -> None:
    guard = ModuleGuard(Net().eval())
    with pytest.MonkeyPatch.context() as patch:
        assert guard.holds()
        patch.setattr(Processor, "shared", 1, raising=False)
        assert not guard.holds()
    assert guard.holds()


def test_a_dict_that_comes_to_lie_where_another_lay(tagged: bool) -> None:
    net: Any = Net().eval()
    guard = ModuleGuard(net)
    for factor in range(100):  # each dict is freed before the next one is made
        assert guard.holds() == (factor == 0)
        net.first.__dict__ = {**net.first.__dict__, "out_features": factor}


def test_a_forward_patched_into_a_class() -> None:
    net: Any = Net().eval()
    guard = ModuleGuard(net)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", lambda self, x: x)
        assert not guard.holds()
    assert guard.holds()


def test_interference() -> None:
    net: Any = Net()
    assert interference(net) is None
    handle = net.second.register_forward_hook(lambda *_: None)
    assert interference(net) == "hooks are registered on the module or its submodules"
    handle.remove()
    net.first.forward = lambda x: x
    assert interference(net) == "the forward of the module or of a submodule was replaced"


def test_a_twin_shares_tensors_and_nothing_that_tracing_exchanges() -> None:
    net: Any = Net().eval()
    other: Any = twin(net)
    assert other is not None
    assert other.first.weight is net.first.weight is other.tied.weight
    assert other.first is not net.first
    assert other.first._parameters is not net.first._parameters
    with torch.no_grad():
        x = torch.ones(2, 3)
        assert torch.equal(other(x), net(x))


def test_no_twin_of_a_module_that_refers_to_itself() -> None:
    net: Any = Net()
    net.again = [net.first]
    assert twin(net) is None
    other: Any = Net()
    other.method = other.first.extra_repr
    assert twin(other) is None


def test_a_guard_is_not_confused_by_threads_and_copies() -> None:
    net: Any = Net().eval()
    net.lock = threading.Lock()
    guard = ModuleGuard(net)
    del net.lock
    copy.deepcopy(net)
    assert not guard.holds()


def _by(factors: dict[str, float]) -> float:
    return factors["by"]


class Numbers(torch.nn.Module):
    """Reads numbers from places that a traced graph holds as they were."""

    scale = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.tensor(3.0)
        self.array = np.array([4.0])
        self.queue = deque([5.0])
        box = [6.0]
        self.box = box
        self.partial = functools.partial(_by, {"by": 7.0})
        self.closure: Callable[[], float] = lambda: box[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * type(self).scale * self.plain.item() * float(self.array[0])
        product: torch.Tensor = x * self.queue[0] * self.closure() * self.partial()
        return product


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.plain.fill_(1.5),
        lambda m: m.array.fill(1.5),
        lambda m: m.queue.__setitem__(0, 1.5),
        lambda m: m.box.__setitem__(0, 1.5),
        lambda m: m.partial.args[0].update(by=1.5),
    ],
    ids=["plain tensor", "numpy array", "deque", "closure", "partial"],
)
def test_numbers_read_from_what_changes_in_place(change: Callable[[Numbers], object]) -> None:
    module, x = Numbers().eval(), torch.ones(2)
    graphopt.compile(module, inputs=(x,), target="eager", strict=True)
    with torch.no_grad():
        before = module(x)
        change(module)
        after = module(x)
        assert torch.equal(after, module.forward(x))
    assert not torch.equal(before, after)


def test_class_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Numbers().eval(), torch.ones(2)
    graphopt.compile(module, inputs=(x,), target="eager", strict=True)
    monkeypatch.setattr(Numbers, "scale", 9.0)
    with torch.no_grad():
        assert torch.equal(module(x), module.forward(x))
