"""The diffusers pipelines that benchmarks run are what they say, and are counted and timed consistently."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import graphopt
from benchmarks.exact_gain import RACED, Contender, ladder, leave_one_out, parts, summary
from benchmarks.harness import interleave, paired
from benchmarks.pipelines import TINY, diffusers_pipelines
from benchmarks.redundancy import markdown, of_pipeline
from benchmarks.watching import noted, overhead
from graphopt.ir.rewrite import spell

PIPELINES = diffusers_pipelines(TINY)
RANDOM = [name for name in PIPELINES if not name.startswith("emoji")]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", RANDOM)
def test_every_pipeline_is_the_same_every_time(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.make()
    first = entry.call(pipe, 0, 2)
    assert first.isfinite().all() and first.std() > 0
    assert torch.equal(first, entry.call(entry.make(), 0, 2))
    assert not torch.equal(first, entry.call(pipe, 1, 2))  # another prompt, another noise


def test_counts_are_consistent() -> None:
    counts = of_pipeline(PIPELINES["pixart-like"])
    assert [entry.module for entry in counts] == ["transformer"]
    (entry,) = counts
    assert len(entry.passes) == len(graphopt.pipelines.exact)
    assert [row.name for row in entry.passes] == [spell(pass_) for pass_ in graphopt.pipelines.exact]
    for one, other in pairwise(entry.passes):
        assert one.after == other.before
    first, last = entry.passes[0].before, entry.passes[-1].after
    assert first.flops == entry.before.flops  # what puts the parts of repeated arguments together comes on top
    assert 0 <= first.nodes - entry.before.nodes <= 4 and first.bytes >= entry.before.bytes
    assert (last.nodes, last.flops, last.bytes) == (entry.after.nodes, entry.after.flops, entry.after.bytes)
    once = entry.stages["request"]
    assert once > 0 and entry.stages["schedule"] > 0
    for steps, (before, after) in entry.images.items():
        assert before == steps * entry.before.flops
        assert after == once + steps * (entry.stages["schedule"] + entry.stages["step"])
    assert f"| {entry.passes[0].name} | {entry.passes[0].fired} |" in markdown("title", counts)


def test_a_ladder_climbs_to_the_pipeline() -> None:
    exact = graphopt.pipelines.exact
    clean, own, place = parts(exact)
    assert (*clean, *own, *place) == exact and clean and own and place
    fired = {spell(own[0])}
    rungs = list(ladder(exact, fired).values())
    assert rungs == [(), place, (*clean, *place), exact]
    every = ladder(exact, {spell(entry) for entry in exact})
    assert len(every) == 3 + len({spell(entry) for entry in own}) and list(every.values())[-1] == exact
    without = leave_one_out(exact, fired)
    assert list(without) == [own[0].name] and own[0] not in without[own[0].name]


def test_contenders_are_timed_step_by_step() -> None:
    runs = {
        name: Contender(entry, entry.make()) for name, entry in PIPELINES.items() if name in ("dit-s/2", "sd3-like")
    }
    images = interleave(runs, lambda number: (number, 3), rounds=2, warm_up=1)
    assert [len(found) for found in images.values()] == [2, 2]
    assert all(0 < image.step < image.seconds for found in images.values() for image in found)
    seconds = [image.seconds for image in images["dit-s/2"]]
    assert paired("itself", seconds, seconds).ratio == 1.0


def test_overhead_is_split_into_parts() -> None:
    module, calls = noted(PIPELINES["pixart-like"])
    row = overhead("tiny", module, calls[:4], 0.2)
    assert 0 < row.overhead < row.call and row.kernel < row.call
    assert all(seconds >= 0 for seconds in row.parts.values())
    assert {name for name, seconds in row.parts.items() if not seconds} <= {"rebuilding the output"}  # a plain tuple


def test_what_users_get_is_one_line_a_model() -> None:
    raced = {"name": RACED, "ratio": 0.8, "low": 0.75, "high": 1.25}
    races = {"step": [{"name": "original"}, raced], "image": [raced | {"ratio": 0.9}]}
    text = summary({"a": {"gains": {"20": races, 4: races}}, "b": {"gains": {"4": races}}})
    assert text.splitlines()[0] == "| | step of 4 | step of 20 | image of 4 | image of 20 |"
    assert text.splitlines()[2].count("**0.80** (0.75 to 1.25)") == 2
    assert text.splitlines()[3] == "| b | **0.80** (0.75 to 1.25) |  | **0.90** (0.75 to 1.25) |  |"
