from __future__ import annotations

import builtins
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from graphopt.errors import UsageError
from graphopt.ir.driver import check_order
from graphopt.ir.printer import dump
from graphopt.ir.program import Program
from graphopt.ir.relations import Constant, Paired, Repeated
from graphopt.ir.rewrite import Match, Pass
from graphopt.ir.verify import evaluate, example_inputs
from graphopt.testing import minimise, programs, random_graph, random_sequence, strategies
from graphopt.testing.minimise import shortest


def test_a_seed_gives_one_graph() -> None:
    assert dump(random_graph(3)) == dump(random_graph(3)) != dump(random_graph(4))


def test_graphs_have_what_models_have() -> None:
    graphs = [random_graph(seed) for seed in range(40)]
    targets = Counter(str(node.target) for graph in graphs for node in graph.calls())
    for name in ("linear", "conv2d", "scaled_dot_product_attention", "softmax", "layer_norm", "group_norm", "rms_norm",
                 "cat", "slice", "split", "embedding", "where", "expand", "view", "rand_like"):  # fmt: skip
        assert any(target.startswith(f"aten.{name}.") for target in targets), name
    values = [node.meta["val"] for graph in graphs for node in graph.calls()]
    dtypes = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    assert dtypes >= {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool}
    assert {entry.role for graph in graphs for entry in graph.inputs} == {"weight", "condition", "time", "state"}
    assert all(node.users for graph in graphs for node in graph.placeholders)


def test_symbolic_sizes_stay_free() -> None:
    for seed in range(6):
        program = random_graph(seed, 10, symbolic=True)
        values = [node.meta["val"] for node in program.placeholders]
        free = {size.node.expr for value in values for size in value.shape if not isinstance(size, int)}
        assert free and all(size.is_symbol for size in free)
        for number in (3, 6):
            evaluate(program, example_inputs(program, 0, dict.fromkeys(free, number)))


def test_related_graphs_have_relations_in_front() -> None:
    kinds: set[type] = set()
    for seed in range(12):
        program = random_graph(seed, 8, related=True)
        kinds |= {type(relation) for relation in program.relations}
        evaluate(program, example_inputs(program))
    assert kinds >= {Repeated, Constant, Paired}


@pytest.mark.parametrize("target", ["aten.sin.default", "aten.conv2d.default"])
def test_failing_programs_shrink(target: str) -> None:
    def fails(program: Program) -> bool:
        return any(str(node.target) == target for node in program.calls())

    settings = hypothesis.settings(max_examples=500, database=None)
    found = hypothesis.find(programs(12), fails, settings=settings, random=random.Random(0))
    assert len(list(found.calls())) <= 12  # one block
    smallest = minimise(found, fails)
    assert [str(node.target) for node in smallest.calls()] == [target]
    assert len(smallest.results) == 1


def test_minimised_programs_keep_placements_and_run() -> None:
    program = random_graph(5, 20)
    smallest = minimise(program, lambda smaller: len(list(smaller.calls())) >= 3, attempts=60)
    assert 3 <= len(list(smallest.calls())) < len(list(program.calls()))
    evaluate(smallest, example_inputs(smallest))


def test_shortest() -> None:
    assert shortest("abcabc", lambda text: "b" in text) == ["b"]


def test_without_hypothesis_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("hypothesis"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    strategies._strategy.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="need hypothesis, which is not installed"):
        programs()


@dataclass(frozen=True)
class First(Pass):
    """Ensures what the other requires."""

    ensures: ClassVar[tuple[str, ...]] = ("order",)
    limit: int = 3
    exact: bool = True
    share: float = 0.5
    terms: int | None = None

    def find(self, program: Program) -> Iterable[Match]:
        return ()

    def rewrite(self, program: Program, match: Match) -> None:
        raise AssertionError


@dataclass(frozen=True)
class Second(First):
    """Requires what the other ensures."""

    ensures: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ("order",)


def test_sequences_are_legal_and_complete() -> None:
    seen: set[Pass] = set()
    for seed in range(50):
        sequence = random_sequence(random.Random(seed).randrange, [Second, First], [First(limit=7)])
        check_order(sequence)
        assert {type(pass_) for pass_ in sequence} == {First, Second}
        seen |= set(sequence)
    assert First(limit=7) in seen
    assert {pass_.exact for pass_ in seen if isinstance(pass_, First)} == {True, False}
    with pytest.raises(UsageError, match="no pass ensures order"):
        random_sequence(random.Random(0).randrange, [Second])
    assert random_sequence(random.Random(0).randrange, []) == []


@hypothesis.settings(max_examples=10)
@hypothesis.given(program=programs(6, symbolic=None, related=None), data=st.data())
def test_strategies_give_programs_that_run(program: Program, data: st.DataObject) -> None:
    evaluate(program, example_inputs(program, data.draw(st.integers(0, 9))))
