from __future__ import annotations

import pytest
import torch
from torch import fx

from graphopt.errors import VerificationError
from graphopt.ir.program import Program
from graphopt.ir.stages import (
    REQUEST,
    SCHEDULE,
    STEP,
    WEIGHTS,
    check_placements,
    placement,
    settle,
    split,
    stage_name,
    stages,
)
from graphopt.ir.verify import example_inputs
from graphopt.testing import sketch

INPUTS = {"x": "f32[2, 3]", "t": "time f32[2]", "c": "condition f32[2, 3]", "w": "weight f32[3, 3]"}


def named(body: str) -> dict[str, str]:
    program = sketch(body, **INPUTS).program
    return {node.name: stage_name(stage) for node, stage in stages(program).items() if node.op == "call_function"}


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("y = ops.aten.sin.default(w)", "weights"),
        ("y = ops.aten.arange.default(3)", "weights"),
        ("y = ops.aten.linear.default(c, w)", "request"),
        ("y = ops.aten.sin.default(t)", "schedule"),
        ("y = ops.aten.mul.Tensor(c, c)", "request"),
        ("y = ops.aten.linear.default(x, w)", "step"),
        ("y = ops.aten.zeros_like.default(x)", "weights"),
        ("y = ops.aten.new_full.default(x, [3], 1.0)", "weights"),
        ("y = ops.aten.sym_size.int(x, 0)", "weights"),
        ("n = ops.aten.sym_size.int(x, 0)\ny = ops.aten.expand.default(t, [n])", "schedule"),
        ("y = ops.aten.rand.default([3])", "step"),
        ("y = ops.aten.rand_like.default(w)", "step"),
        ("y = ops.aten.dropout.default(c, 0.5, True)", "step"),
        ("y = ops.aten.dropout.default(c, 0.5, False)", "request"),
        ("a = ops.aten.unsqueeze.default(t, 1)\ny = ops.aten.mul.Tensor(a, c)", "request_schedule"),
    ],
)
def test_stage_is_what_values_depend_on(line: str, stage: str) -> None:
    assert named(f"{line}\nreturn (x,)")["y"] == stage


def test_an_unbacked_number_is_a_value() -> None:
    program = sketch("total = ops.aten.sum.default(c)\nreturn (total,)", **INPUTS).program
    (total,) = program.calls()
    with program.graph.inserting_after(total):
        number = program.graph.call_function(torch.ops.aten._local_scalar_dense.default, (total,))
    with program.graph.inserting_after(number):
        size = program.graph.call_function(torch.ops.aten.full.default, ([number], 1.0))
    assert stages(program)[size] == REQUEST


def staged() -> Program:
    body = """
        fold = ops.aten.mul.Tensor(w, 2)  # f32[3, 3]; @weights
        key = ops.aten.linear.default(c, fold)  # f32[2, 3]; @request
        view = ops.aten.view.default(key, [6])  # f32[6]; @request
        row = ops.aten.sin.default(t)  # f32[2]; @schedule
        column = ops.aten.unsqueeze.default(row, 1)  # f32[2, 1]; @schedule
        mixed = ops.aten.add.Tensor(column, key)  # f32[2, 3]; @request_schedule
        mul = ops.aten.mul.Tensor(x, mixed)
        again = ops.aten.view.default(key, [3, 2])
        return (mul, view, again, x, key)
    """
    return sketch(body, **INPUTS).program


def run_parts(program: Program, known: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    results: list[torch.Tensor] = []
    for part in split(program):
        results = list(part.module()(*(known[name] for name in part.reads)))
        if part.name != "step":
            known |= dict(zip(part.gives, results, strict=True))
    return results


def test_split_passes_values_on() -> None:
    parts = {part.name: part for part in split(staged())}
    assert list(parts) == ["weights", "request", "schedule", "request_schedule", "step"]
    assert (parts["weights"].reads, parts["weights"].gives) == (("w",), ("fold",))
    assert (parts["request"].reads, parts["request"].gives) == (("c", "fold"), ("key", "view"))
    assert parts["schedule"].gives == ("column",)
    assert set(parts["step"].reads) == {"x", "mixed", "key", "view"}


def test_split_gives_the_results_of_the_whole() -> None:
    program = staged()
    inputs = example_inputs(program)
    whole = program.module()(*inputs)
    parts = run_parts(program, dict(zip((entry.name for entry in program.inputs), inputs, strict=True)))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_kept_values_leave_as_copies() -> None:
    program = staged()
    inputs = example_inputs(program)
    known = dict(zip((entry.name for entry in program.inputs), inputs, strict=True))
    _, view, again, state, key = run_parts(program, known)
    kept = {known["key"].untyped_storage().data_ptr(), known["view"].untyped_storage().data_ptr()}
    assert not kept & {result.untyped_storage().data_ptr() for result in (view, again, key)}
    assert state is known["x"]


def test_the_step_always_exists() -> None:
    (part,) = split(sketch("return (x,)", **INPUTS).program)
    assert (part.name, part.reads, part.gives) == ("step", ("x",), ("x",))


@pytest.mark.parametrize(
    ("node", "stage"), [("key", WEIGHTS), ("key", SCHEDULE), ("mul", REQUEST), ("mixed", REQUEST), ("fold", SCHEDULE)]
)
def test_checks_placements(node: str, stage: frozenset[str]) -> None:
    program = staged()
    found: dict[str, fx.Node] = {entry.name: entry for entry in program.nodes}
    check_placements(program)
    found[node].meta["placement"] = stage
    with pytest.raises(VerificationError, match="is placed in stage"):
        check_placements(program)


def test_settling_places_new_nodes_with_their_readers() -> None:
    program = staged()
    found = {node.name: node for node in program.nodes}
    for name in ("fold", "row"):  # read by one of the request, and by one of the schedule
        del found[name].meta["placement"]
    with pytest.raises(VerificationError, match="placed in stage 'request' but reads 'fold' of 'step'"):
        check_placements(program)
    settle(program)
    check_placements(program)
    assert [placement(found[name]) for name in ("fold", "row", "mul")] == [REQUEST, SCHEDULE, STEP]


def test_a_shape_reader_of_state_stays_where_the_state_is() -> None:
    program = sketch("y = ops.aten.zeros_like.default(x)\nreturn (y,)", **INPUTS).program
    (node,) = program.calls()
    assert stages(program)[node] == WEIGHTS
    node.meta["placement"] = WEIGHTS
    with pytest.raises(VerificationError, match="is placed in stage"):
        check_placements(program)
    node.meta["placement"] = STEP
    check_placements(program)
    assert len(split(program)) == 1
