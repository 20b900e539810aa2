"""The recorder: what it notes of views, writes, aliases and calls, and that it leaves everything as it was."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from graphopt.capture.loop import Recording, active, record
from graphopt.capture.tracing import tracing
from graphopt.ir.loop import ModuleCall, written_beside

aten = torch.ops.aten


class Pair(torch.nn.Module):
    """Several results, nested arguments."""

    def forward(self, x: Any, options: Any = None, scale: float = 1.0) -> Any:
        return {"sum": x * scale, "parts": (x[:1], None, options["more"][0] if options else x)}


def node_of(recording: Recording, tensor: torch.Tensor) -> fx.Node:
    found = recording._nodes[tensor]
    assert isinstance(found, fx.Node)
    return found


def test_operations_and_numbers() -> None:
    x = torch.ones(2)
    with record() as recording:
        y = x * torch.tensor(3.0)
        z = torch.linspace(0, 1, 3)[1]
    assert [node.op for node in recording.graph.nodes].count("placeholder") >= 1
    assert node_of(recording, y).target is aten.mul.Tensor
    assert node_of(recording, z).meta["value"] == 0.5
    assert node_of(recording, y).meta["val"].device.type == "meta"
    assert str(node_of(recording, y).meta["source"]).startswith("test_loop.py:")


def test_a_write_makes_a_new_value_of_all_that_shares_its_memory() -> None:
    base = torch.zeros(4, 3)
    view = base[:2]
    other = torch.zeros(3)
    with record() as recording:
        first, second = base + 1, other + 1
        before = {name: node_of(recording, t) for name, t in {"base": base, "other": other}.items()}
        inside = base[2:]
        view.add_(1)
        assert node_of(recording, view).target is aten.add_.Tensor
        assert node_of(recording, base) is not before["base"]
        assert node_of(recording, base).target is written_beside
        assert node_of(recording, inside).target is written_beside
        assert node_of(recording, other) is before["other"]
        third = base + 1
        assert node_of(recording, third).args[0] is node_of(recording, base)
    assert torch.equal(third, base + 1)
    assert not torch.equal(first, third)
    assert second.sum() == 3


@pytest.mark.parametrize(
    "write",
    [
        lambda base, view: torch.add(view, 1, out=view),
        lambda base, view: torch._foreach_add_([view], 1),
        lambda base, view: view.copy_(torch.ones(2, 3)),
        lambda base, view: view.data.mul_(2),
        lambda base, view: view.zero_(),
        lambda base, view: torch.nn.init.ones_(view),
        lambda base, view: view.__setitem__((0, 0), 5.0),
        lambda base, view: view.index_fill_(0, torch.tensor([0]), 1.0),
    ],
)
def test_ways_of_writing(write: Any) -> None:
    base = torch.zeros(4, 3)
    view = base[:2]
    with record() as recording:
        base + 1, view + 1
        before = node_of(recording, base)
        write(base, view)
        assert node_of(recording, base) is not before


def test_a_state_written_by_way_of_a_view_depends_on_the_model() -> None:
    model, buffer, prompt = torch.nn.Linear(3, 3), torch.zeros(2, 3), torch.ones(3)
    with torch.no_grad(), record() as recording:
        for _ in range(4):
            buffer[:1].copy_(model(buffer[:1] + prompt))
    loop = recording.program()
    assert all(call.arguments["input"] in loop.moving for call in loop.step_calls[1:])


def test_calls_of_modules() -> None:
    pair, named = Pair(), torch.nn.Linear(3, 3)
    with record({named: "denoiser"}) as recording:
        x = torch.ones(2, 3)
        result = pair(x, options={"more": [x + 1]}, scale=2.0)
        given = node_of(recording, result["sum"])
        pair(result["sum"])
        named(named(x))
    assert [call.module for call in recording.calls] == ["Pair", "Pair", "denoiser", "denoiser"]
    first = recording.calls[0]
    assert isinstance(first.node.target, ModuleCall)
    assert first.node.target.paths == ("x", "options.more.0")
    assert first.times == {"scale": (2.0,)}
    assert len(first.node.users) == 3
    assert recording.calls[1].arguments["x"] is given
    assert recording.examples["denoiser"][0][0] is x
    assert recording.modules == {"Pair": pair, "denoiser": named}
    with pytest.raises(TypeError, match="it cannot be run"):
        first.node.target()


def test_what_a_module_does_inside_is_not_recorded() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
    with torch.no_grad(), record() as recording:
        model(torch.ones(1, 3))
    assert [call.module for call in recording.calls] == ["Sequential"]
    assert not any(node.target is aten.relu.default for node in recording.graph.nodes)


def test_modules_of_one_class_have_names_of_their_own() -> None:
    layers = [torch.nn.Linear(3, 3) for _ in range(3)]
    with torch.no_grad(), record() as recording:
        for layer in (*layers, layers[0]):
            layer(torch.ones(1, 3))
    assert [call.module for call in recording.calls] == ["Linear", "Linear_1", "Linear_2", "Linear"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("inside", [True, False])
def test_exceptions_leave_everything_as_it_was(error: type[BaseException], inside: bool) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            if inside:
                raise error
            return x

    original = torch.nn.Module.__call__
    with pytest.raises((error, RuntimeError)), record():
        Broken()(torch.ones(1))
        raise error
    assert torch.nn.Module.__call__ is original
    assert _get_current_dispatch_mode() is None
    assert not active()


def test_within_a_recording_nothing_else_is_recorded() -> None:
    with record() as outer, record() as inner:
        torch.ones(1) + 1
    assert len(list(inner.graph.nodes)) == 0
    assert len(list(outer.graph.nodes)) > 0


class Silent(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_modes_that_overlap_a_recording() -> None:
    mode: Any = Silent()  # type: ignore[no-untyped-call]
    with record():
        mode.__enter__()
        torch.ones(1) + 1
    top: Any = _get_current_dispatch_mode()
    assert top is mode
    mode.__exit__(None, None, None)
    assert _get_current_dispatch_mode() is None


def test_two_threads_record_at_once() -> None:
    original, found = torch.nn.Module.__call__, dict[int, list[str]]()
    together = threading.Barrier(2)

    def work(number: int) -> None:
        model = torch.nn.Linear(3, 3)
        together.wait()
        with torch.no_grad(), record({model: f"model {number}"}) as recording:
            x = torch.ones(1, 3)
            for _ in range(20 * (number + 1)):
                x = model(x)
        found[number] = [call.module for call in recording.calls]

    workers = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == {number: [f"model {number}"] * (20 * (number + 1)) for number in (0, 1)}
    assert torch.nn.Module.__call__ is original


def test_tracing_is_of_one_thread() -> None:
    model, begun, done = torch.nn.Linear(3, 3), threading.Event(), threading.Event()
    results: list[torch.Tensor] = []

    class Waiting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Any) -> Any:
            begun.set()
            done.wait(20)
            return self.inner(x) + 1

    def other() -> None:
        begun.wait(20)
        with torch.no_grad():
            results.append(model(torch.ones(2, 3)))
        done.set()

    original = torch.nn.Module.__call__
    worker = threading.Thread(target=other)
    worker.start()
    with tracing():
        traced = fx.symbolic_trace(Waiting())
    worker.join()
    assert type(results[0]) is torch.Tensor
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_function", "output"]
    assert torch.nn.Module.__call__ is original
