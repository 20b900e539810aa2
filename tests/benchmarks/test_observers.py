"""Building without hooks builds the same thing, and the table is made of what was measured."""

from __future__ import annotations

from benchmarks.observers import Straight, measure, table, without_hooks
from benchmarks.pipelines import TINY, diffusers_pipelines
from graphopt import pipelines
from graphopt.ir.driver import Observers, run_pipeline
from graphopt.ir.printer import dump
from graphopt.testing import Recorder
from tests.viz import blocks


def test_straight_observers_hear_the_same() -> None:
    ways = [Recorder(), Recorder()]
    plain = run_pipeline(pipelines.exact, blocks.program(), Observers([ways[0]]))
    with without_hooks():
        straight = run_pipeline(pipelines.exact, blocks.program(), Straight([Observers([ways[1]])]))
    assert dump(plain) == dump(straight)
    assert ways[0].fired == ways[1].fired and ways[0].fired
    assert [r.reason for _, r in ways[0].refusals] == [r.reason for _, r in ways[1].refusals]


def test_a_row_per_pipeline() -> None:
    row = measure(diffusers_pipelines(TINY)["dit-s/2"], rounds=2)
    assert [timing.name for timing in row.timings] == ["without hooks", "observers off", "History"]
    assert row.nodes > 0 and row.events > 0 and row.timings[0].ratio == 1.0
    assert table([row]).count("\n") == 3 and "| dit-s/2 |" in table([row])
