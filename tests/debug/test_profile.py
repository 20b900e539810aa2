"""Measured against predicted: what is recorded, that nodes compute what kernels do, and what is made of the times."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.debug.machine import Machine, measure_machine
from graphopt.debug.profile import (
    NodeTime,
    Recorded,
    grouped,
    main_dtype,
    measure,
    misjudged,
    rank_correlation,
    recording,
)
from graphopt.ir.accuracy import relative_error
from graphopt.ir.cost import Cost, program_cost
from graphopt.ir.stages import split
from graphopt.ir.verify import example_inputs
from graphopt.targets import Eager
from graphopt.targets.eager import lowered
from graphopt.testing import sketch
from tests.viz import blocks

MACHINE = Machine("cpu", "float32", 1, flops=1e9, bytes=1e8)


def stages() -> list[Recorded]:
    """The stages of a small network, recorded in two calls that keep nothing."""
    compilation = blocks.compilation()
    program, parts = compilation.result, split(compilation.result)
    kernels = [Eager().build(part, []) for part in parts]
    inputs = example_inputs(program, 0)
    with recording(parts, kernels, ["eager"] * len(parts)) as found:
        for _ in range(2):
            known = {entry.name: value for entry, value in zip(program.inputs, inputs, strict=True)}
            for part, kernel in zip(parts, kernels, strict=True):
                known |= dict(zip(part.gives, kernel(*(known[name] for name in part.reads)), strict=True))
    return found


def node(name: str, seconds: float, predicted: float, operator: str = "add.Tensor") -> NodeTime:
    return NodeTime(name, operator, "", "", "f32[2]", not predicted, seconds, 10, 20, predicted)


def test_kernels_are_recorded_and_put_back() -> None:
    parts = split(blocks.compilation().result)
    kernels = [Eager().build(part, []) for part in parts]
    before = list(kernels)
    with pytest.raises(RuntimeError, match="in the middle"), recording(parts, kernels, ["eager"] * 4) as found:
        assert kernels != before
        raise RuntimeError("in the middle")
    assert kernels == before and found == []
    assert [(stage.part.name, stage.calls) for stage in stages()] == [
        ("weights", 2), ("request", 2), ("schedule", 2), ("step", 2),
    ]  # fmt: skip


def test_every_node_is_timed_and_computes_what_the_kernel_does() -> None:
    times = measure(stages(), MACHINE, repeats=2)
    program = blocks.compilation().result
    timed = {node.node for stage in times for node in stage.nodes}
    assert timed == {node.name for node in program.calls()}
    assert all(stage.off == 0.0 for stage in times)
    assert all(node.seconds >= 0 for stage in times for node in stage.nodes)
    assert all(stage.seconds > 0 and stage.target == "eager" for stage in times)
    total = program_cost(program)
    assert sum(node.flops for stage in times for node in stage.nodes) == total.flops
    assert sum(node.bytes for stage in times for node in stage.nodes) == total.bytes
    projected = next(node for node in times[-1].nodes if node.node == "projected")
    assert (projected.operator, projected.shape, projected.source) == ("linear", "f32[2, 10, 8]", "model.py:9")
    assert projected.predicted == pytest.approx(max(projected.flops / 1e9, projected.bytes / 1e8))
    view = next(node for node in times[-1].nodes if node.node == "flat")
    assert view.view and view.predicted == 0 and view.ratio is None


def test_a_kernel_that_computes_something_else_shows() -> None:
    (*_, step) = stages()
    wrong = Recorded(step.part, lambda *given: tuple(2 * value for value in step.kernel(*given)), "other",
                     step.arguments, 1)  # fmt: skip
    (found,) = measure([wrong], MACHINE, repeats=1)
    assert found.off == pytest.approx(0.5)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        measure(stages(), MACHINE, repeats=0)


def test_lowering_keeps_the_stage_as_it_is() -> None:
    graph = stages()[-1].part.graph
    before = [node.target for node in graph.nodes]
    names = [node.name for node in lowered(graph).nodes if node.op == "call_function"]
    assert [node.target for node in graph.nodes] == before
    assert names == [node.name for node in graph.nodes if node.op == "call_function"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("graphopt.debug.machine._CEILING_SECONDS", 0.01)
    monkeypatch.setattr("graphopt.debug.machine._PRODUCT", 64)
    monkeypatch.setattr("graphopt.debug.machine._COPY", 1 << 20)
    yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_machine_has_two_ceilings(dtype: torch.dtype, quick: None) -> None:
    machine = measure_machine(dtype)
    assert machine.flops > 0 and machine.bytes > 0
    assert machine.dtype == str(dtype).removeprefix("torch.") and machine.threads == torch.get_num_threads()


def test_a_roofline_is_the_longer_of_both() -> None:
    assert MACHINE.seconds(Cost(10**9, 0)) == 1.0
    assert MACHINE.seconds(Cost(10**9, 10**9)) == 10.0
    assert MACHINE.seconds(Cost()) == 0.0


def test_the_dtype_is_that_of_most_work() -> None:
    body = "a = ops.aten.mm.default(x, x)\nb = ops.aten._to_copy.default(a, dtype=torch.float64)\nreturn (b,)"
    program = sketch(body, x="bf16[8, 8]").program
    parts = split(program)
    kernel = Eager().build(parts[0], [])
    inputs = example_inputs(program, 0)
    assert main_dtype([Recorded(parts[0], kernel, "eager", tuple(inputs), 1)]) == torch.bfloat16
    assert main_dtype([]) == torch.float32


def test_nodes_are_grouped_the_slowest_first() -> None:
    nodes = [node("a", 1, 2), node("b", 4, 2, "mm"), node("c", 2, 0), node("d", 2, 1)]
    groups = grouped(nodes, lambda entry: entry.operator)
    assert [(group.name, group.seconds, group.predicted, group.flops) for group in groups] == [
        ("add.Tensor", 5, 3, 30), ("mm", 4, 2, 10),
    ]  # fmt: skip
    assert [group.name for group in misjudged(nodes)] == ["mm", "add.Tensor"]


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.integers(1, 5)), min_size=2, max_size=20))
def test_a_rank_correlation_is_that_of_ranks(pairs: list[tuple[float, int]]) -> None:
    nodes = [node(str(k), seconds, predicted) for k, (seconds, predicted) in enumerate(pairs)]
    found = rank_correlation(nodes)
    if len({seconds for seconds, _ in pairs}) < 2 or len({predicted for _, predicted in pairs}) < 2:
        assert found is None
        return
    assert found is not None and -1 - 1e-9 <= found <= 1 + 1e-9
    same = [node(str(k), seconds, seconds) for k, (seconds, _) in enumerate(pairs)]
    assert rank_correlation(same) == pytest.approx(1)
    stretched = [node(str(k), seconds**3, predicted) for k, (seconds, predicted) in enumerate(pairs)]
    if len({entry.seconds for entry in stretched}) == len({entry.seconds for entry in nodes}):
        assert rank_correlation(stretched) == pytest.approx(found)


def test_a_rank_correlation_by_hand() -> None:
    nodes = [node("a", 1, 1), node("b", 2, 3), node("c", 3, 2), node("d", 9, 0)]
    assert rank_correlation(nodes) == pytest.approx(0.5)
    assert rank_correlation([]) is None


def test_differences_are_relative_and_see_shapes() -> None:
    one, two = torch.tensor([1.0, 4.0]), torch.tensor([1.0, 3.0])
    assert relative_error((one,), (one.clone(),)) == 0.0
    assert relative_error((one,), (two,)) == pytest.approx(0.25)
    assert relative_error((one,), (one[:1],)) == math.inf
    assert relative_error((one, one), (one,)) == math.inf
    assert relative_error((torch.tensor([math.nan, 1.0]),), (torch.tensor([math.nan, 1.0]),)) == 0.0
    assert relative_error((torch.tensor([math.nan, 1.0]),), (torch.tensor([0.0, 1.0]),)) == math.inf
    assert relative_error((None, 3), (None, 3)) == 0.0
