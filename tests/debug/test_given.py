"""A dump in a pipeline of passes, in place of what led to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import graphopt
from graphopt.debug.dumps import CONSTANTS, load, save
from graphopt.debug.given import Boundary, Given, boundary, check
from graphopt.debug.history import History
from graphopt.errors import UsageError
from graphopt.ir.driver import run_pass
from graphopt.ir.printer import dump
from graphopt.ir.relations import Repeated
from graphopt.ir.rewrite import spell
from graphopt.ir.verify import evaluate, example_inputs
from graphopt.passes import RemoveDead
from graphopt.testing import Recorder, sketch, trace

BODY = """
    unused = ops.aten.neg.default(x)
    sin = ops.aten.sin.default(x)
    mul = ops.aten.mul.Tensor(sin, w)
    return (mul,)
"""


def sketched(body: str = BODY, **changes: str) -> Any:
    return sketch(body, **{"x": "f32[2, 3]", "w": "weight f32[3]", **changes}).program


def test_takes_the_place_of_the_program(tmp_path: Path) -> None:
    save(sketched(BODY.replace("sin.default", "cos.default")), tmp_path / "dump.py")
    given = Given(str(tmp_path / "dump.py"))
    program = sketched()
    program.name = given.program.name
    recorder = Recorder()
    after = run_pass(given, program, recorder)
    assert dump(after) == dump(given.program)
    assert dump(program) != dump(after)
    assert recorder.fired == [("given", "output")]
    assert spell(given) == f"given{{dump={str(tmp_path / 'dump.py')!r}}}"
    assert given.exploits == ()


def test_leaves_programs_of_other_modules_alone(tmp_path: Path) -> None:
    save(sketched(), tmp_path / "dump.py")
    program = sketched()
    program.name = "another"
    recorder = Recorder()
    assert dump(run_pass(Given(str(tmp_path / "dump.py")), program, recorder)) == dump(program)
    assert not recorder.fired and not recorder.refusals


@pytest.mark.parametrize(
    ("changes", "body", "reason"),
    [
        ({"x": "f32[4, 3]"}, BODY, r"input x is f32\[2, 3\] in the dump, and f32\[4, 3\] in the model"),
        ({"x": "f64[2, 3]"}, BODY, r"input x is f32\[2, 3\] in the dump, and f64\[2, 3\] in the model"),
        ({"x": "time f32[2, 3]"}, BODY, "input x is state 'x' in the dump, and time 'x' in the model"),
        ({"y": "f32[1]"}, BODY, "the inputs of the dump are others: it lacks y"),
        ({}, BODY.replace("(mul,)", "(mul, sin)"), "the dump returns 1 results, and the model 2"),
        ({}, BODY.replace("(mul,)", "(w,)"), r"result 0 is f32\[2, 3\] in the dump, and f32\[3\] in the model"),
        ({}, BODY.replace("(mul,)", "(None,)"), r"result 0 is f32\[2, 3\] in the dump, and None in the model"),
    ],
)
def test_refuses_another_boundary(changes: dict[str, str], body: str, reason: str, tmp_path: Path) -> None:
    save(sketched(), tmp_path / "dump.py")
    given, program, recorder = Given(str(tmp_path / "dump.py")), sketched(body, **changes), Recorder()
    program.name = given.program.name
    assert dump(run_pass(given, program, recorder)) == dump(program)
    ((_, refusal),) = recorder.refusals
    with pytest.raises(UsageError, match=rf"{reason}\n  where: .*dump.py:\d+: (INPUTS|return)"):
        check(program, given)
    with pytest.raises(UsageError, match=reason):
        Boundary(given).program_begins(program)
    program.name = "another"
    Boundary(given).program_begins(program)
    assert refusal.reason == boundary(program, given.program)


class Shifted(torch.nn.Module):
    """Holds a tensor outside its parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.shift = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).t()

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return (sample * self.weight) @ self.shift


def test_constants_lie_beside_the_dump(tmp_path: Path) -> None:
    module, x = Shifted(), torch.randn(2, 3)
    program = trace(module, x).program
    save(program, tmp_path / "000_captured.py")
    again = load(tmp_path / "000_captured.py")
    (name,) = program.constants
    assert again.constants[name].stride() == module.shift.stride() == (1, 3)
    inputs = [module.weight, again.constants[name], x]
    assert torch.equal(evaluate(again, inputs)[0], module(x))
    (tmp_path / CONSTANTS).unlink()
    with pytest.raises(UsageError, match=r"(?s)constants of the dump cannot be read.*keep the file"):
        load(tmp_path / "000_captured.py")


def test_a_dump_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the dump cannot be read: No such file"):
        _ = Given(str(tmp_path / "gone.py")).program
    with pytest.raises(UsageError, match="this is a folder, not a dump"):
        load(tmp_path)


def test_example_inputs_have_the_strides_of_the_program() -> None:
    program = sketch("return (x,)", x="f32[4, 3] strides (0, 1)", i="i64[3, 2] strides (1, 3)").program
    first, second = example_inputs(program)
    assert (first.stride(), second.stride()) == ((0, 1), (1, 3))


class Silu(torch.nn.Module):
    """A denoiser of one layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(self.layer(sample)) * timestep


@torch.no_grad()
def test_an_edit_is_what_runs_and_later_passes_go_on_from_it(tmp_path: Path) -> None:
    model, arguments, history = Silu(), (torch.randn(2, 4), torch.tensor(3.0)), History()
    graphopt.compile(model, target="eager", pipeline="bitwise", observers=[history])
    original = model(*arguments)
    graphopt.restore(model)
    path = tmp_path / "dump.py"
    save(history.last("Silu").captured, path)
    graphopt.compile(model, target="eager", pipeline=(Given(str(path)), RemoveDead()), strict=True)
    assert torch.equal(model(*arguments), original)
    graphopt.restore(model)
    path.write_text(path.read_text().replace("silu.default", "relu.default"))
    graphopt.compile(model, target="eager", pipeline=(Given(str(path)), RemoveDead()), strict=True)
    for _ in range(2):
        assert torch.equal(model(*arguments), torch.relu(model.layer(arguments[0])) * arguments[1])
    assert not graphopt.report(model).modules[0].asides


@torch.no_grad()
def test_weights_are_those_of_the_model(tmp_path: Path) -> None:
    model, arguments = Silu(), (torch.randn(2, 4), torch.tensor(3.0))
    program = trace(model, *arguments, roles={"timestep": "time"}).program
    program.name = "Silu"
    save(program, tmp_path / "dump.py")
    graphopt.compile(model, target="eager", pipeline=(Given(str(tmp_path / "dump.py")),), strict=True)
    before = model(*arguments)
    model.layer.weight.data += 1
    assert not torch.equal(model(*arguments), before)


def test_relations_are_assumed_again(tmp_path: Path) -> None:
    program = sketched()
    program.relations = (Repeated("x", 2),)
    save(program, tmp_path / "dump.py")
    assert Given(str(tmp_path / "dump.py")).exploits == (Repeated,)
