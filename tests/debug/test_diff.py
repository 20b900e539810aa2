from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_structure

from graphopt.debug.diff import difference
from graphopt.ir.driver import run_pass, run_pipeline
from graphopt.ir.printer import dump, parse
from graphopt.ir.program import Program
from graphopt.ir.relations import Unchanged
from graphopt.passes import FoldConstants, Hoist, MergeCommon, RemoveDead, Tabulate
from graphopt.pipelines import bitwise
from graphopt.testing import random_graph, sketch, trace

BODY = """
    key = ops.aten.linear.default(c, w)
    mul = ops.aten.mul.Tensor(x, 2)
    add = ops.aten.add.Tensor(mul, key)
    return (add,)
"""
INPUTS = {"x": "f32[2, 3]", "c": "condition f32[2, 3]", "w": "weight f32[3, 3]"}


def lines(old: str = "", new: str = "") -> Program:
    return sketch(BODY.replace(old, new) if old else BODY, **INPUTS).program


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("mul.Tensor(x, 2)", "mul.Tensor(x, 3)", {"changed": ["mul"]}),
        ("mul.Tensor(x, 2)", "div.Tensor(x, 2)", {"removed": ["mul"], "added": ["mul"]}),
        ("add.Tensor(mul, key)", "add.Tensor(key, mul)", {"changed": ["add"]}),
        ("return (add,)", "neg = ops.aten.neg.default(add)\n    return (neg,)",
         {"added": ["neg"], "changed": ["output"]}),
        ("return (add,)", "return (mul,)", {"changed": ["output"]}),
        ("default(c, w)", "default(c, w)  # f32[2, 3]; @request", {"moved": ["key"]}),
        ("default(c, w)", "default(c, w, None)  # f32[2, 3]; @request", {"changed": ["key"]}),
    ],
)  # fmt: skip
def test_kinds_of_changes(old: str, new: str, expected: dict[str, list[str]]) -> None:
    found = difference(lines(), lines(old, new))
    assert {kind: [change.node for change in found.of(kind)] for kind in found.counts} == expected


def test_a_change_says_what_it_was_and_what_it_costs() -> None:
    found = difference(lines(), run_pass(Hoist(), lines()))
    (moved,) = found.changes
    assert (moved.kind, moved.stages) == ("moved", ("step", "request"))
    assert moved.before == moved.after == "key = ops.aten.linear.default(c, w)"
    assert (moved.cost.flops, moved.cost.bytes) == (0, 0)
    was, now = found.step
    assert was.flops - now.flops == 2 * 2 * 3 * 3
    assert found.costs["request"][1].nodes == 1
    (added,) = difference(lines("return (add,)", "neg = ops.aten.neg.default(add)\n    return (add, neg)"), lines()).of(
        "removed"
    )
    assert (added.cost.flops, added.cost.bytes) == (-6, -48)
    assert added.after is None


def test_names_alone_make_no_difference() -> None:
    text = BODY.replace("mul = ", "product = ").replace("(mul,", "(product,")
    other = sketch(text, **INPUTS).program
    found = difference(lines(), other)
    assert not found.changes
    assert found.renamed == {"mul": "product"}


def test_a_name_given_to_another_operation() -> None:
    body = "one = ops.aten.sin.default(x)\ntwo = ops.aten.cos.default(x)\nreturn (one, two)"
    swapped = "two = ops.aten.sin.default(x)\none = ops.aten.cos.default(x)\nreturn (two, one)"
    found = difference(sketch(body, x="f32[3]").program, sketch(swapped, x="f32[3]").program)
    assert not found.changes
    assert found.renamed == {"one": "two", "two": "one"}


class _Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))
        return found


def test_another_body_of_a_subgraph() -> None:
    text = dump(trace(_Branch(), torch.ones(3)).program)
    (change,) = difference(parse(text), parse(text.replace("ops.aten.sin.default", "ops.aten.exp.default"))).changes
    assert change.kind == "changed"
    assert "aten.sin" in str(change.before) and "aten.exp" in str(change.after)
    assert not difference(parse(text), parse(text.replace("sin = ", "value = ").replace("(sin,)", "(value,)"))).changes


def test_the_boundary() -> None:
    def only(program: Program) -> tuple[str, str, str]:
        (change,) = difference(lines(), program).changes
        assert change.kind == "changed"
        return change.node, str(change.before), str(change.after)

    other = sketch(BODY, **INPUTS | {"c": "time f32[2, 3]"}).program
    assert only(other) == ("c", "c: condition 'c', f32[2, 3]", "c: time 'c', f32[2, 3]")
    other = lines()
    other.relations = (Unchanged("c"),)
    assert only(other)[0] == "RELATIONS" and only(other)[1] == "RELATIONS: nothing"
    other = lines()
    other.out_spec = tree_structure([0])
    assert only(other)[0] == "RESULT"
    other.out_spec = tree_structure((0,))
    assert not difference(lines(), other).changes
    swapped = sketch(BODY, **dict(reversed(INPUTS.items()))).program
    assert only(swapped) == ("INPUTS", "INPUTS in the order x, c, w", "INPUTS in the order w, c, x")


def test_values_of_constants() -> None:
    before, after = lines(), lines()
    before.constants, after.constants = {"w": torch.zeros(3, 3)}, {"w": torch.zeros(3, 3)}
    assert not difference(before, after).changes
    after.constants["w"][1, 2] = 4
    (change,) = difference(before, after).changes
    assert (change.kind, change.node) == ("changed", "w")
    assert change.after == "w.flatten()[5] = 4.0  # 1 of 9 values differ"


seeds = st.integers(0, 10_000)


@settings(max_examples=10)
@given(seeds)
def test_a_program_does_not_differ_from_itself(seed: int) -> None:
    program = random_graph(seed)
    assert not difference(program, program).changes
    assert not difference(program, program.copy()).changes


@settings(max_examples=10)
@given(seeds)
def test_a_renamed_copy_does_not_differ(seed: int) -> None:
    program = random_graph(seed)
    renamed = program.copy()
    for number, node in enumerate(renamed.calls()):
        node._rename(f"value_{number}")
    found = difference(program, renamed)
    assert not found.changes
    assert found.costs["step"][0] == found.costs["step"][1]


@settings(max_examples=10)
@given(seeds, st.sampled_from([RemoveDead(), MergeCommon(), FoldConstants(), Hoist(), Tabulate(), None]))
def test_changes_account_for_every_node(seed: int, pass_: RemoveDead | None) -> None:
    before = random_graph(seed)
    after = run_pass(pass_, before) if pass_ else run_pipeline(bitwise, before)
    found = difference(before, after)
    nodes = [len(program.nodes) for program in (before, after)]
    assert nodes[1] - nodes[0] == found.counts["added"] - found.counts["removed"]
    assert sum(found.counts.values()) == len(found.changes)
    for change in found.changes:
        assert (change.before is None, change.after is None) == (change.kind == "added", change.kind == "removed")
    back = difference(after, before)
    assert (back.counts["added"], back.counts["removed"]) == (found.counts["removed"], found.counts["added"])
    assert back.counts["moved"] == found.counts["moved"]
