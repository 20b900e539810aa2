"""Bad input gives one clear error, or one clear warning and the original behaviour; never a model left half changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import graphopt
from graphopt.errors import CaptureError, PassError, RoleError, UsageError
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Match, Pass
from graphopt.ir.stages import Part
from graphopt.passes import Hoist
from graphopt.targets import Kernel

aten = torch.ops.aten


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.requires_grad_(False).eval()

    def forward(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(sample) * timestep + self.linear(encoder_hidden_states)
        return result


class Branching(Net):
    def forward(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return sample * 2 if sample.sum() > 0 else sample * 3


class Estimator:
    def fit(self) -> None: ...

    def predict(self) -> None: ...


def _call(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = module(torch.ones(2, 4), torch.tensor(3.0), torch.full((2, 4), 2.0))
    return result


def _installed(module: torch.nn.Module) -> bool:
    return "_compiled_call_impl" in module.__dict__


CALL = {"sample": torch.ones(2, 4), "timestep": torch.tensor(3.0), "encoder_hidden_states": torch.ones(2, 4)}


@pytest.mark.parametrize("x", [3, {}, "emoji-unet", Estimator(), None, Net], ids=lambda x: type(x).__name__)
def test_nothing_that_can_be_compiled(x: Any) -> None:
    with pytest.raises(UsageError, match=f"cannot compile a {type(x).__name__}"):
        graphopt.compile(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "indutor"}, UsageError, "did you mean 'inductor'"),
        ({"pipeline": "exakt"}, UsageError, "did you mean 'exact'"),
        ({"pipeline": [3]}, UsageError, "3 is not a pass"),
        ({"pipeline": 3}, UsageError, "3 is not a pass"),
        ({"pipeline": Hoist}, UsageError, r"the class Hoist is not a pass\n.*\n.*an instance of it: Hoist\(\)"),
        ({"pipeline": [Hoist]}, UsageError, r"the class Hoist is not a pass\n.*\n.*an instance of it: Hoist\(\)"),
        (
            {"pipeline": (graphopt.pipelines.exact, Hoist())},
            UsageError,
            r"^a tuple of \d+ passes is not a pass\n  where: pipeline\n.*\(\*graphopt.pipelines.exact, MyPass\(\)\)",
        ),
        ({"roles": {"sample": "stat"}}, RoleError, "did you mean 'state'"),
        ({"roles": {"sample": "weight"}}, RoleError, "no role of an argument"),
        ({"roles": {"smaple": "state"}}, RoleError, "did you mean 'sample'"),
        ({"inputs": 3}, UsageError, "must be a tuple or a dict, not int"),
        ({"inputs": (torch.ones(2, 4),)}, UsageError, "does not fit Net.forward: missing"),
        ({"inputs": {"simple": torch.ones(2)}}, UsageError, "does not fit Net.forward"),
        ({"inputs": [[CALL, CALL, CALL]]}, RoleError, "two requests of three calls"),
        ({"inputs": [[CALL, CALL], [CALL, CALL]]}, RoleError, "two requests of three calls"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_used(options: dict[str, Any], error: type[Exception], message: str) -> None:
    module = Net()
    expected = _call(module)
    with pytest.raises(error, match=message):
        graphopt.compile(module, **options)
    assert not _installed(module)
    assert torch.equal(_call(module), expected)


def test_a_failed_compilation_leaves_the_earlier_one() -> None:
    module = graphopt.compile(Net(), target="eager")
    earlier = module._compiled_call_impl
    with pytest.raises(CaptureError):
        graphopt.compile(module, target="eager", inputs={**CALL, "timestep": {1}}, strict=True)
    assert module._compiled_call_impl is earlier


def test_nothing_compiled_has_no_report() -> None:
    with pytest.raises(UsageError, match="not compiled"):
        graphopt.report(Net())


def test_no_such_bundled_pipeline() -> None:
    with pytest.raises(UsageError, match="did you mean 'emoji-unet'"):
        graphopt.bundled("emoji-unte")


def test_a_model_that_cannot_be_captured_warns_once_and_runs() -> None:
    module = graphopt.compile(Branching(), target="eager")
    with pytest.warns(RuntimeWarning, match="runs uncompiled: Branching could not be exported"):
        assert torch.equal(_call(module), torch.full((2, 4), 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(_call(module), torch.full((2, 4), 2.0))
    (entry,) = graphopt.report(module).modules
    assert sum(entry.asides.values()) == 2


class _Broken(graphopt.Target):
    name = "broken"

    def build(self, part: Part, examples: Sequence[Any]) -> Kernel:
        raise ValueError("a slip")


def test_a_target_that_raises_warns_once_and_the_model_runs() -> None:
    module = graphopt.compile(Net(), target=_Broken())
    module.load_state_dict((other := Net()).state_dict())
    with pytest.warns(RuntimeWarning, match="compiling it raised ValueError: a slip"):
        expected = _call(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(_call(module), expected)
    assert torch.equal(_call(other), expected)
    with pytest.raises(ValueError, match="a slip"):
        graphopt.compile(Net(), target=_Broken(), inputs=CALL, strict=True)


def test_restore_brings_back_what_was_there() -> None:
    module = Net()
    module.compile(backend="eager")
    before = module._compiled_call_impl
    graphopt.compile(graphopt.compile(module, target="eager"), target="eager")
    assert module._compiled_call_impl is not before
    graphopt.restore(module)
    assert module._compiled_call_impl is before
    graphopt.restore(module)
    assert module._compiled_call_impl is before


def test_a_model_that_cannot_be_captured_raises_when_strict() -> None:
    module = Branching()
    with pytest.raises(CaptureError, match="could not be exported"):
        graphopt.compile(module, target="eager", strict=True, inputs=CALL)
    assert not _installed(module)


def test_wrong_arguments_raise_what_the_module_raises() -> None:
    original, module = Net(), graphopt.compile(Net(), target="eager")
    for args in ((), (torch.ones(2, 4), 1, torch.ones(2, 4), 3), (torch.ones(2, 3), 1, torch.ones(2, 3))):
        with pytest.raises((TypeError, RuntimeError)) as theirs:
            original(*args)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(theirs.type) as ours:
                module(*args)
        assert str(ours.value) == str(theirs.value)


# -- passes that are wrong -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wrong(Pass):
    def find(self, program: Program) -> Iterable[Match]:
        for node in program.calls():
            if not program.rule or program.rule not in node.meta.get("rules", ()):
                yield Match(node)
                return


@dataclass(frozen=True)
class Raises(_Wrong):
    def rewrite(self, program: Program, match: Match) -> None:
        raise ZeroDivisionError("a slip")


@dataclass(frozen=True)
class ChangesShapes(_Wrong):
    def rewrite(self, program: Program, match: Match) -> None:
        (result,) = program.results
        assert result is not None
        new = program.call(aten.unsqueeze.default, result, 0, before=program.output)
        program.output.args = ((new,),)


@dataclass(frozen=True)
class BreaksTheGraph(_Wrong):
    def rewrite(self, program: Program, match: Match) -> None:
        first, *_, last = program.calls()
        first.args = (last, *first.args[1:])
        program.touch(first)


@dataclass(frozen=True)
class DropsAnInput(_Wrong):
    def rewrite(self, program: Program, match: Match) -> None:
        program.inputs = program.inputs[1:]
        program.touch(match.root)


@dataclass(frozen=True)
class PlacesTooEarly(_Wrong):
    def rewrite(self, program: Program, match: Match) -> None:
        for node in program.calls():
            node.meta["placement"] = frozenset()
            program.touch(node)


@dataclass(frozen=True)
class ChangesValues(_Wrong):
    """Nothing structural is wrong here; the comparison at the first call finds it."""

    def rewrite(self, program: Program, match: Match) -> None:
        (result,) = program.results
        assert result is not None
        new = program.call(aten.mul.Tensor, result, 2.0, before=program.output)
        program.touch(match.root)
        program.output.args = ((new,),)


@pytest.mark.parametrize("wrong", [Raises, ChangesShapes, BreaksTheGraph, DropsAnInput, PlacesTooEarly])
def test_a_wrong_pass_is_rolled_back(wrong: Callable[[], Pass]) -> None:
    expected = _call(module := Net())
    name = wrong().name
    with pytest.warns(RuntimeWarning, match=f"pass '{name}' was rolled back"):
        graphopt.compile(module, target="eager", pipeline=[wrong()], inputs=CALL)
    assert torch.equal(_call(module), expected)
    (variant,) = graphopt.report(module).modules[0].variants
    assert variant.passes[0].error
    with pytest.raises(PassError, match=f"{name}|is placed in stage"):
        graphopt.compile(other := Net(), target="eager", pipeline=[wrong()], inputs=CALL, strict=True)
    assert not _installed(other)


def test_wrong_values_are_never_returned() -> None:
    expected = _call(module := Net())
    graphopt.compile(module, target="eager", pipeline=[ChangesValues()])
    with pytest.warns(RuntimeWarning, match="runs uncompiled: its result is off by"):
        assert torch.equal(_call(module), expected)
    assert torch.equal(_call(module), expected)
    with pytest.raises(graphopt.GraphoptError, match="off by"):
        graphopt.compile(other := Net(), target="eager", pipeline=[ChangesValues()], inputs=CALL, strict=True)
    assert not _installed(other)
