"""The document of a compilation: golden, whole, and the same every time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings

from graphopt.debug.history import Compilation
from graphopt.debug.viz import FORMATS
from graphopt.debug.viz.model import View, document, document_json
from graphopt.energy import WorkEstimate
from graphopt.ir.printer import line
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Match, Pass
from graphopt.ir.stages import STAGES, placement, stage_name
from graphopt.passes import PASSES, Hoist, MergeCommon, RemoveDead, SimplifyIdentities, Tabulate
from graphopt.pipelines import bitwise
from graphopt.testing import programs, sketch
from tests.goldens import Golden
from tests.structure.checks import ROOT
from tests.viz.conftest import compiled

BODY = """
scale = ops.aten.linear.default(t, w)
again = ops.aten.linear.default(t, w)
key = ops.aten.linear.default(c, w)
copy = ops.aten.mul.Tensor(x, 1)
left = ops.aten.mul.Tensor(copy, scale)
right = ops.aten.mul.Tensor(copy, again)
add = ops.aten.add.Tensor(left, right)
out = ops.aten.add.Tensor(add, key)
unread = ops.aten.neg.default(out)
return (out,)
"""
INPUTS = {"x": "f32[64, 64]", "t": "time f32[64, 64]", "c": "condition f32[64, 64]", "w": "weight f32[64, 64]"}


@dataclass(frozen=True)
class Broken(Pass):
    """Raises where it should rewrite."""

    def find(self, program: Program) -> Any:
        yield Match(next(program.calls()))

    def rewrite(self, program: Program, match: Match) -> None:
        raise ValueError("not today")


def small() -> Compilation:
    passes = (RemoveDead(), SimplifyIdentities(), MergeCommon(), Broken(), Hoist(), Tabulate())
    return compiled(sketch(BODY, **INPUTS).program, passes)


def test_document(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHOPT_WATTS_PER_CORE", raising=False)
    golden(document_json(small(), View("a sketch", steps=10, calls=20)).decode(), suffix=".json")


def test_is_json_and_the_same_every_time() -> None:
    view = View("a sketch", steps=10, calls=10)
    assert json.loads(FORMATS["json"](small(), view)) == document(small(), view)
    assert FORMATS["json"](small(), view) == FORMATS["json"](small(), view)


def alive(found: dict[str, Any], number: int) -> dict[str, dict[str, Any]]:
    """The versions that a pass left, by their names."""
    versions = [entry for node in found["nodes"] for entry in node["versions"]]
    return {entry["name"]: entry for entry in versions if entry["from"] <= number <= entry["to"]}


@settings(max_examples=8)
@given(program=programs())
def test_every_program_can_be_read_off(program: Program) -> None:
    compilation = compiled(program, [kind() for kind in PASSES if kind.accuracy == "bitwise"])
    found = document(compilation)
    names = [[entry["name"] for entry in node["versions"]] for node in found["nodes"]]
    for snapshot in compilation.snapshots:
        versions = alive(found, snapshot.number)
        assert set(versions) == {node.name for node in snapshot.program.nodes}
        for node in snapshot.program.nodes:
            version = versions[node.name]
            assert version["text"] == line(node)
            assert version.get("stage", "") == (stage_name(placement(node)) if node.op == "call_function" else "")
            sources = [source.name for source in node.all_input_nodes]
            assert all(name in names[k] for k, name in zip(version.get("inputs", []), sources, strict=True))
        before = alive(found, snapshot.number - 1)
        counts = {kind: len(nodes) for kind, nodes in found["passes"][snapshot.number]["changes"].items()}
        if snapshot.number:
            assert len(versions) == len(before) - counts["removed"] + counts["added"]


@settings(max_examples=8)
@given(program=programs())
def test_stages_add_up(program: Program) -> None:
    found = document(compiled(program, bitwise), View(steps=4, calls=8))
    for entry in found["passes"]:
        for which, runs in found["runs"].items():
            for key in ("flops", "bytes"):
                total = sum(stage[key] * runs[name] for name, stage in entry["stages"].items())
                assert entry["image"][which][key] == total


def test_a_node_that_no_pass_touches_has_one_version() -> None:
    found = document(small())
    assert [node["versions"] for node in found["nodes"] if node["kind"] == "input"] == [
        [{"from": 0, "to": 6, "name": name, "text": name, "value": "f32[64, 64]"}] for name in INPUTS
    ]


def test_a_pass_that_was_rolled_back_changed_nothing() -> None:
    entry = document(small())["passes"][4]
    assert "not today" in entry["error"]
    assert entry["fired"] == []
    assert not any(entry["changes"].values())


@pytest.mark.parametrize(
    ("steps", "calls", "first", "later"),
    [
        (10, 10, (1, 1, 10, 10, 10, 10), (0, 1, 0, 10, 10, 10)),
        (10, 20, (1, 2, 10, 20, 10, 20), (0, 2, 0, 20, 10, 20)),  # guidance branches are calls of their own
        (10, 1, (1, 1, 1, 1, 1, 1), (0, 1, 0, 1, 1, 1)),  # a decoder
        (10, 19, (1, 2, 10, 19, 10, 19), (0, 2, 0, 19, 10, 19)),  # a solver of second order
    ],
)
def test_runs_per_image(steps: int, calls: int, first: tuple[int, ...], later: tuple[int, ...]) -> None:
    runs = View(steps=steps, calls=calls).runs
    assert runs == {"first": dict(zip(STAGES, first, strict=True)), "later": dict(zip(STAGES, later, strict=True))}


def test_energy_is_the_longer_of_computing_and_moving() -> None:
    price = WorkEstimate(watts=2.0, flops_per_second=100.0, bytes_per_second=10.0)
    assert price.joules(flops=100, bytes=1) == 2.0
    assert price.joules(flops=1, bytes=20) == 4.0
    assert "2 W per core" in price.source


def test_every_field_is_documented() -> None:
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    found = document(small(), View())
    call = next(node for node in found["nodes"] if node["kind"] == "call")
    sample = [found, found["passes"][1], *found["nodes"], *call["versions"], *found["passes"][1]["stages"].values()]
    missing = sorted({key for entry in sample for key in entry if f"`{key}`" not in text})
    assert not missing, f"docs/report.md does not name {', '.join(missing)}"
