"""Every pass on random graphs, alone and in any order; and the graphs on which passes once failed."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fuzz import EAGER, case
from graphopt.ir.printer import dump, parse
from graphopt.ir.program import Program, remembering
from graphopt.ir.rewrite import Pass
from graphopt.ir.stages import placement, stage_name
from graphopt.passes import PASSES, FoldConstants, FuseAttention, Hoist, MergeLinears, PackWeights
from graphopt.testing import check_pass, check_sequence, programs, random_sequence, sketch
from graphopt.testing.growing import Grower, inputs


@pytest.mark.parametrize("kind", PASSES)
@given(program=programs())
def test_pass(kind: type[Pass], program: Program) -> None:
    check_pass(kind(), program, seeds=1)


@given(program=programs(related=None), seed=st.integers(0, 999))
def test_in_any_order(program: Program, seed: int) -> None:
    check_sequence(random_sequence(random.Random(seed).randrange, PASSES, EAGER), program, seed=seed)


@given(program=programs(8, symbolic=True), seed=st.integers(0, 999))
def test_symbolic_sizes(program: Program, seed: int) -> None:
    check_sequence(random_sequence(random.Random(seed).randrange, PASSES, EAGER), program, seed=seed)


def run_seeds(seeds: range) -> set[str]:
    """The passes that fired."""
    fired: set[str] = set()
    with remembering():
        for seed in seeds:
            found = case(seed)
            fired |= check_sequence(found.passes, found.program, seed=seed).fired.keys()
    return fired


def test_seeds() -> None:
    run_seeds(range(60))


@pytest.mark.slow
def test_many_seeds() -> None:
    assert run_seeds(range(1_000_000, 1_001_000)) == {kind().name for kind in PASSES}


@given(program=programs())
def test_reads_back(program: Program) -> None:
    assert dump(parse(dump(program))) == dump(program)


# -- found by fuzzing: docs/fuzzing.md ---------------------------------------------------------------------------------


def test_rewrites_among_hoisted_nodes_stay_hoisted() -> None:
    before = sketch(
        """
        query = ops.aten.linear.default(c, w)
        key = ops.aten.linear.default(c, v)
        mul = ops.aten.mul.Tensor(query, key)
        add = ops.aten.add.Tensor(x, mul)
        return (add,)
        """,
        x="f32[4, 8]", c="condition f32[4, 8]", w="weight f32[8, 8]", v="weight f32[8, 8]",
    )  # fmt: skip
    passes = [FoldConstants(), Hoist(), MergeLinears()]
    ran = check_sequence(passes, before.program)
    assert ran.fired["merge_linears"] == 1
    placed = {node.name: stage_name(placement(node)) for node in ran.program.calls()}
    assert placed.pop("add") == "step"
    assert set(placed.values()) <= {"request", "weights"}


def test_one_symbolic_size_is_priced() -> None:
    program = inputs({"c": "condition bool[B]"}, {"B": 11}, frozenset("B"))
    grower = Grower(lambda bound: 0, program)
    grower.add(torch.ops.aten.logical_not.default, program.placeholders[0])
    assert check_sequence([Hoist()], grower.finish()).fired == {"hoist": 1}


def test_group_norm_reads_plain_copies_of_packed_convolutions() -> None:
    before = sketch(
        """
        conv = ops.aten.conv2d.default(x, w, b, [2, 2], [1, 1], [1, 1], 4)
        norm = ops.aten.group_norm.default(conv, 2, b, b)
        return (norm,)
        """,
        x="f32[64, 4, 1, 1]", w="weight f32[4, 1, 3, 3]", b="weight f32[4]",
    )  # fmt: skip
    assert check_pass(PackWeights(min_flops=0), before.program, seeds=8).fired == 1


def test_views_of_unknown_size_that_leave_keep_layers_apart() -> None:
    program = inputs({"c": "condition f32[B, 5, 8]", "w": "weight f32[8, 8]"}, {"B": 11}, frozenset("B"))
    grower = Grower(lambda bound: 0, program)
    layers = [grower.add(torch.ops.aten.linear.default, *program.placeholders) for _ in range(2)]
    views = [grower.add(torch.ops.aten.transpose.int, layer, 1, 2) for layer in layers]
    program.output.args = (tuple(views),)
    (reason,) = check_pass(MergeLinears(), program).reasons
    assert reason.startswith("a view of the result leaves the program")
    ends = [grower.add(torch.ops.aten.silu.default, view) for view in views]
    program.output.args = (tuple(ends),)
    assert check_sequence([MergeLinears()], program).fired == {"merge_linears": 1}


def test_masks_wider_than_the_scores_are_no_masks() -> None:
    before = sketch(
        """
        scores = ops.aten.matmul.default(q, k)
        masked = ops.aten.add.Tensor(scores, k)
        softmax = ops.aten.softmax.int(masked, -1)
        mixed = ops.aten.matmul.default(softmax, q)
        return (mixed,)
        """,
        q="f32[4, 1, 8]", k="f32[4, 8, 1]",
    )  # fmt: skip
    reasons = check_pass(FuseAttention(min_bytes=0), before.program).reasons
    assert reasons == ["a mask has queries or keys that the scores lack"]
